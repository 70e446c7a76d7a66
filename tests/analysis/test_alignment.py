"""Alignment of tenths before training: estimates and intervals, the verdict, and what the command prints."""

import json

import numpy as np
import pytest
import torch

from hopd.analysis.alignment import Alignment, Interval, Tenth, alignment, compare_tenths
from hopd.errors import ModelError
from hopd.model import load
from hopd.model.adapters import add_adapters
from hopd.objective import Full
from hopd.rollout import FinishReason, NativeEngine, Prompt, Sampling
from hopd.tasks import RepeatedAddition
from hopd.teacher import LocalTeacher
from hopd.training.block_sums import BlockSums

STUDENT, TEACHER = (load(f"package:hopd/quickstart/{name}") for name in ("student", "teacher"))


def drawn(mean, noise, n, seed=0):
    """Gradients of n rollouts in ten tenths, whose means are rows of `mean`."""
    generator = np.random.default_rng(seed)
    return mean + noise * generator.standard_normal((n, *mean.shape))


DIRECTIONS = np.zeros((10, 50))
DIRECTIONS[:, 0] = [1, 1, 0, -1, 0.6, 1, 1, 1, 1, 0]
DIRECTIONS[2, 1], DIRECTIONS[4, 1] = 1, 0.8
COSINES = [1, 1, 0, -1, 0.6, 1, 1, 1, 1]  # the last tenth has no signal
ALL = np.ones((40, 10), dtype=bool)


def test_estimates_are_those_of_the_sums_in_training():
    vectors, complete = drawn(DIRECTIONS, 0.3, 40), ALL.copy()
    complete[:7, 6:] = False
    sums = BlockSums.zeros(50)
    sums.add(torch.from_numpy(vectors), torch.from_numpy(complete))
    products, noise = np.array(sums.gradients().products), np.array(sums.gradients().noise)
    found = compare_tenths(vectors, complete)
    for c in range(1, 9):
        assert found[c][0].value == pytest.approx(products[0, c] / (products[0, 0] * products[c, c]) ** 0.5)
    for c in range(9):
        assert found[c][1].value == pytest.approx(noise[c] / products[c, c])


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = []
    for seed in range(60):
        found = compare_tenths(drawn(DIRECTIONS, 0.3, 40, seed), ALL)
        held += [found[c][0].low <= COSINES[c] <= found[c][0].high for c in (2, 4)]
        held += [found[c][1].low <= 50 * 0.3**2 <= found[c][1].high for c in (0, 3)]
    assert 0.85 <= np.mean(held) <= 1


def test_without_a_signal_nothing_is_claimed():
    found = compare_tenths(drawn(DIRECTIONS, 0.3, 40), ALL)[9]
    assert found[1].high == np.inf
    assert found[0].low < 0.5 < found[0].high
    alone = compare_tenths(drawn(DIRECTIONS, 0.3, 1), ALL[:1])[1]  # no pair of rollouts
    assert (alone[0].low, alone[0].high, alone[1].high) == (-np.inf, np.inf, np.inf)


def tenths(*intervals, rollouts=None):
    noise = Interval(2.0, 1.0, 3.0)
    return Alignment(
        tuple(
            Tenth(10 * i, 10 * i + 10, (rollouts or [24] * len(intervals))[i], Interval(sum(pair) / 2, *pair), noise)
            for i, pair in enumerate(intervals)
        ),
        24,
    )


ONE = (1.0, 1.0)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (tenths(ONE, (0.6, 1.1), (0.51, 0.7)), "A short horizon can do"),
        (tenths(ONE, (0.6, 1.1), (-0.1, 0.4)), "must fail: the first tenth does not teach tokens 20 to 30."),
        (tenths(ONE, (0.1, 0.4), (-0.9, -0.1)), "will harm: a step on the first tenth unlearns tokens 20 to 30."),
        (tenths(ONE, (0.6, 1.1), (0.4, 0.9)), "is not clear for tokens 20 to 30: take more rollouts"),
        (tenths(ONE, (0.6, 1.1), (-np.inf, np.inf)), "is not clear for tokens 20 to 30: take more rollouts"),
        (tenths(ONE, (0.6, 1.1), (-0.1, 0.4), rollouts=[24, 24, 11]), "A short horizon can do"),
        (tenths(ONE, (-0.1, 0.4), rollouts=[24, 11]), "is not clear, as most rollouts end in the first tenth"),
    ],
)
def test_the_verdict_follows_its_rule(found, verdict):
    assert verdict in found.verdict()
    assert "drift" in found.sentences()[2]


@pytest.fixture(scope="module")
def rollouts():
    ids = [STUDENT.tokenizer(problem.prompt).input_ids for problem in RepeatedAddition(5, 8).problems]
    prompts = [Prompt(i, torch.tensor(prompt)) for i, prompt in enumerate(ids)]
    return NativeEngine(STUDENT).sample(prompts, 60, Sampling(), seed=0)


def test_a_student_is_left_as_it_was(rollouts):
    frozen = STUDENT.model.get_input_embeddings().weight
    trained = [parameter.requires_grad for parameter in STUDENT.model.parameters()]
    before = {name: tensor.clone() for name, tensor in STUDENT.model.state_dict().items()}
    found = alignment(STUDENT, LocalTeacher(TEACHER), rollouts, Full(), 60)
    assert frozen.grad is None
    assert [parameter.requires_grad for parameter in STUDENT.model.parameters()] == trained
    assert all(torch.equal(tensor, before[name]) for name, tensor in STUDENT.model.state_dict().items())
    assert [tenth.end for tenth in found.tenths] == [6 * i for i in range(1, 11)]
    assert [tenth.rollouts for tenth in found.tenths] == [sum(r.length > 6 * i for r in rollouts) for i in range(10)]
    assert {rollout.finish for rollout in rollouts} == {FinishReason.HORIZON}


@pytest.mark.parametrize("tokens_per_batch", [1, 200])
def test_how_rollouts_are_batched_changes_no_gradient(rollouts, tokens_per_batch):
    one, other = (
        alignment(STUDENT, LocalTeacher(TEACHER), rollouts, Full(), 60, tokens_per_batch=size)
        for size in (8192, tokens_per_batch)
    )
    for a, b in zip(one.tenths, other.tenths, strict=True):
        assert b.alignment.value == pytest.approx(a.alignment.value, abs=1e-3)
        assert b.noise.value == pytest.approx(a.noise.value, rel=1e-2)


def test_the_command_prints_table_and_verdict(command, tiny, tmp_path):
    ended = command("probe", tiny, "--prompts", "6", "--out", tmp_path / "probe")
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "probe" / "alignment.json").read_text())
    assert written["rollouts"] == 6
    assert [tenth["end"] for tenth in written["tenths"]] == [4 * i for i in range(1, 11)]  # of the full length
    assert all(sentence in ended.out for sentence in written["sentences"])
    assert "36 to 40" in ended.out


def test_a_student_without_sketches_is_probed_all_the_same(command, tiny, tmp_path):
    lora = "lora={rank: 4, alpha: 8, targets: [q_proj]}"
    ended = command("probe", tiny, "--prompts", "2", "--out", tmp_path / "probe", "--set", lora)
    assert ended.code == 0, ended.err
    assert "the gradients of tenths are not compared: the last layer of" in ended.out
    assert (tmp_path / "probe" / "probe.json").exists()
    student = load("package:hopd/quickstart/student")
    add_adapters(student, rank=4, alpha=8, targets=["q_proj"], seed=0)
    student.model.requires_grad_(False)
    with pytest.raises(ModelError, match="positions no longer mix"):
        alignment(student, LocalTeacher(TEACHER), [], Full(), 60)
