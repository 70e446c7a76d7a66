"""The gradient of a step does not depend on how its rollouts are batched, ordered or divided among processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hopd.horizon import First, Segment, Whole
from hopd.model import load
from hopd.model.flops import PassCost
from hopd.objective import Full, Sampled, TopK
from hopd.processes import Processes
from hopd.recipe import TrainingSection
from hopd.rollout import NativeEngine, Prompt, Sampling, pack
from hopd.run.ledger import Ledger
from hopd.tasks import RepeatedAddition
from hopd.teacher import LocalTeacher
from hopd.training.learner import Learner
from hopd.training.optimizer import MasterOptimizer
from hopd.training.statistics import StepStatistics

STUDENT, TEACHER = "package:hopd/quickstart/student", "package:hopd/quickstart/teacher"


@pytest.fixture(scope="module")
def models():
    return load(STUDENT), load(TEACHER)


@pytest.fixture(scope="module")
def rollouts(models):
    """Samples rollouts of very different lengths: 1 to 5 additions, some cut by the horizon."""
    student, _ = models
    prompts = []
    for steps in (1, 2, 3, 5):
        for problem in RepeatedAddition(steps, 3).problems:
            ids = student.tokenizer(problem.prompt).input_ids
            prompts.append(Prompt(10 * steps + problem.id, torch.tensor(ids)))
    return NativeEngine(student).sample(prompts, 100, Sampling(), seed=0, samples=2)


def learner(models, tmp_path, objective=None, window=None, tokens_per_batch=8192):
    student, teacher = models
    return Learner(
        student=student,
        teacher=LocalTeacher(teacher),
        student_cost=PassCost.of(student),
        teacher_costs={None: PassCost.of(teacher)},
        objective=objective or Full(),
        window=window or Whole(),
        optimizer=MasterOptimizer(student.model, TrainingSection(steps=1, learning_rate=1e-4), 1),
        ledger=Ledger(tmp_path / "ledger.json"),
        processes=Processes(),
        temperature=1.0,
        tokens_per_batch=tokens_per_batch,
    )


def gradient(models, tmp_path, rollouts, **options):
    made = learner(models, tmp_path, **options)
    made.optimizer.adamw.zero_grad()
    statistics = StepStatistics(full_tokens=400)
    made.accumulate(rollouts, seed=0, statistics=statistics)
    flat = torch.cat([master.grad.flatten() for master in made.optimizer.masters.values()])
    return flat, statistics


OBJECTIVES = [Full(), Sampled(), Sampled(gamma=0.9), TopK(k=4)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.estimator}-{o.gamma:g}")
@pytest.mark.parametrize("window", [Whole(), First(17), Segment(0.4, 0.6)], ids=lambda w: type(w).__name__)
def test_micro_batches_and_order_do_not_change_the_gradient(models, tmp_path, rollouts, objective, window):
    whole, statistics = gradient(models, tmp_path, rollouts, objective=objective, window=window)
    shuffled = [rollouts[i] for i in torch.randperm(len(rollouts)).tolist()]
    for tokens_per_batch in (1, 150, 700):
        split, other = gradient(
            models, tmp_path, shuffled, objective=objective, window=window, tokens_per_batch=tokens_per_batch
        )
        torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))
        assert other.mean("loss") == pytest.approx(statistics.mean("loss"), rel=1e-4)
    assert float(whole.abs().max()) > 0
    spans = [window.span(rollout.length, 0.0) for rollout in rollouts]
    assert statistics.sums["tokens"] == sum(end - start for start, end in spans)


def test_the_loss_is_a_mean_over_loss_tokens(models, tmp_path, rollouts):
    """Compares with a plain loop over single rollouts: it is no mean over rollouts or over a maximum length."""
    made = learner(models, tmp_path)
    total, count = 0.0, 0
    for rollout in rollouts:
        (batch,) = pack([rollout], [(0, rollout.length)], 10_000)
        loss, terms = made.loss(batch)
        total, count = total + float(loss.detach()), count + rollout.length
        assert len(terms.loss) == rollout.length
    _, statistics = gradient(models, tmp_path, rollouts)
    assert statistics.mean("loss") == pytest.approx(total / count, rel=1e-4)
    assert statistics.sums["tokens"] == count


def test_a_change_of_horizon_leaves_the_common_tokens_unchanged(models, tmp_path, rollouts):
    student, _ = models
    made = learner(models, tmp_path)
    prompts = list({r.prompt.id: r.prompt for r in rollouts}.values())
    by_horizon = {}
    for horizon in (20, 60):
        sampled = NativeEngine(student).sample(prompts, horizon, Sampling(), seed=0)
        terms = {}
        for batch in made.batches(sampled, seed=0):
            _, statistics = made.loss(batch)
            for n, loss in enumerate(statistics.loss.tolist()):
                owner = batch.rollouts[int(batch.at.row[n])]
                terms[owner.prompt.id, int(batch.at.position[n])] = loss
        by_horizon[horizon] = terms
    assert len(by_horizon[20]) < len(by_horizon[60])
    for key, loss in by_horizon[20].items():
        assert by_horizon[60][key] == pytest.approx(loss, rel=1e-3, abs=1e-5)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), min_size=1, max_size=20),
    budget=st.integers(1, 200),
    whole=st.booleans(),
)
def test_packing_keeps_every_loss_token_once_and_its_budget(lengths, budget, whole):
    from hopd.rollout import FinishReason, Rollout

    made = [
        Rollout(
            Prompt(i, torch.arange(p) + 1),
            0,
            torch.arange(t) + 1000 * (i + 1),
            torch.arange(t) / -10,
            FinishReason.HORIZON,
        )
        for i, (p, t) in enumerate(lengths)
    ]
    spans = [(t // 3, t - t // 4) for _, t in lengths]
    seen = []
    for batch in pack(made, spans, budget, whole_response=whole):
        assert batch.ids.numel() + len(batch.rollouts) <= budget or len(batch.rollouts) == 1
        for row, column, token, weight in zip(
            batch.at.row, batch.column, batch.at.tokens, batch.at.weight, strict=True
        ):
            rollout = batch.rollouts[row]
            sequence = torch.cat([rollout.prompt.ids, rollout.ids])
            assert batch.ids[row, : column + 1].tolist() == sequence[: column + 1].tolist()
            assert sequence[column + 1] == token
            seen += [int(token)] if weight > 0 else []
    expected = [1000 * (i + 1) + t for i, (start, end) in enumerate(spans) for t in range(start, end)]
    assert sorted(seen) == sorted(expected)


def train(directory, name, processes, *overrides):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    settings = {
        "name": name,
        "output": str(directory),
        "rollout.prompts": 6,
        "rollout.samples": 2,
        "rollout.full_tokens": 60,
        "horizon": "{controller: progressive, start: 10, increment: 7}",
        "training.steps": 4,
        "training.mini_batch": 3,
        "training.learning_rate": 1e-3,
        "evaluation.task.size": 5,
        "evaluation.every": 2,
    }
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "hopd", "train", str(recipe), *changes]
    on_cpus = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # two processes cannot share one GPU
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=300, env=on_cpus)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory / name


def test_two_processes_train_like_one(tmp_path):
    one, two = train(tmp_path, "one", 1), train(tmp_path, "two", 2)
    weights = [load_file(run / "checkpoints" / "step-000004" / "model.safetensors") for run in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
    for file in ("metrics.jsonl", "evaluations.jsonl"):
        a, b = ([json.loads(line) for line in (run / file).read_text().splitlines()] for run in (one, two))
        assert [line["step"] for line in a] == [line["step"] for line in b]
        for x, y in zip(a, b, strict=True):
            for key in ("loss", "reverse_kl", "gradient_norm", "accuracy", "mean_length"):
                if key in x:
                    assert y[key] == pytest.approx(x[key], rel=1e-2, abs=1e-4), (file, key)
    a, b = (json.loads((run / "ledger.json").read_text())["run"] for run in (one, two))
    assert a["generated_tokens"] == b["generated_tokens"]
    assert a["trained_tokens"] == b["trained_tokens"]
