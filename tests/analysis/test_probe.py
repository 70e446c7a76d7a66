"""The position probe: its numbers against their definitions, and its rule for a horizon."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from hopd.analysis.probe import MEASURES, TOP, Bin, Probe, _token_measures, measure, probe, suggested_horizon
from hopd.model import load
from hopd.rollout import NativeEngine, Prompt, Sampling

STUDENT, TEACHER = (load(f"package:hopd/quickstart/{name}") for name in ("student", "teacher"))


@pytest.fixture(scope="module")
def rollouts():
    prompts = [Prompt(i, torch.tensor([1, 2 + i, 3])) for i in range(6)]
    return NativeEngine(STUDENT).sample(prompts, 30, Sampling(), seed=0)


def test_measures_are_what_they_are_called():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 40, generator=generator, dtype=torch.float64)
    s, g = logits.log_softmax(-1)
    tokens = torch.randint(40, (5,), generator=generator)
    found = dict(zip(MEASURES, _token_measures(s, g, tokens).unbind(-1), strict=True))
    p, q = s.exp().numpy(), g.exp().numpy()
    for n in range(5):
        ours, theirs = set(np.argsort(-p[n])[:TOP]), set(np.argsort(-q[n])[:TOP])
        expected = {
            "reverse_kl": (p[n] * np.log(p[n] / q[n])).sum(),
            "forward_kl": (q[n] * np.log(q[n] / p[n])).sum(),
            "log_ratio": np.log(q[n][tokens[n]] / p[n][tokens[n]]),
            "overlap": len(ours & theirs) / TOP,
            "shared_mass": sum(p[n][v] for v in ours & theirs),
            "student_entropy": -(p[n] * np.log(p[n])).sum(),
            "teacher_entropy": -(q[n] * np.log(q[n])).sum(),
        }
        assert {name: float(found[name][n]) for name in expected} == pytest.approx(expected)
    raw = logits[0].clone().requires_grad_()
    kl = (raw.softmax(-1) * (raw.log_softmax(-1) - g)).sum()
    (gradient,) = torch.autograd.grad(kl, raw)
    torch.testing.assert_close(found["gradient"], gradient.norm(dim=-1))


def test_a_student_that_is_its_teacher_has_no_suggested_horizon(rollouts):
    same = probe(STUDENT, STUDENT, rollouts, bins=5)
    assert same.horizon is None
    assert all(bin.reverse_kl == pytest.approx(0, abs=1e-5) and bin.overlap == 1 for bin in same.bins)
    assert "no evidence" in same.sentences()[1]


def test_bins_hold_every_token_once(rollouts):
    found = probe(STUDENT, TEACHER, rollouts, bins=7)
    assert sum(bin.tokens for bin in found.bins) == sum(rollout.length for rollout in rollouts)
    assert [bin.start for bin in found.bins[1:]] == [bin.end for bin in found.bins[:-1]]
    assert sum(bin.gradient_share for bin in found.bins) == pytest.approx(1)
    assert sum(bin.token_share for bin in found.bins) == pytest.approx(1)
    one = probe(STUDENT, TEACHER, rollouts, bins=1).bins[0]
    assert sum(bin.reverse_kl * bin.token_share for bin in found.bins) == pytest.approx(one.reverse_kl)


def test_each_token_is_measured_by_both_models_at_its_position(rollouts):
    """Compares with each rollout alone, through the models' own logits."""
    measured, position, row = measure(STUDENT, TEACHER, rollouts)
    for number, rollout in enumerate(rollouts):
        here = np.flatnonzero(row == number)[np.argsort(position[row == number])]
        ids = torch.cat([rollout.prompt.ids, rollout.ids])[None]
        before = slice(len(rollout.prompt.ids) - 1, -1)
        with torch.no_grad():
            s, g = (m.model(input_ids=ids).logits[0, before].double().log_softmax(-1) for m in (STUDENT, TEACHER))
        log_ratio = (g - s).gather(-1, rollout.ids[:, None])[:, 0]
        assert measured["log_ratio"][here] == pytest.approx(log_ratio.numpy(), rel=1e-2, abs=1e-3)
        assert measured["reverse_kl"][here] == pytest.approx((s.exp() * (s - g)).sum(-1).numpy(), rel=1e-2, abs=1e-3)


def test_a_bin_is_made_of_the_tokens_in_it(rollouts):
    found = probe(STUDENT, TEACHER, rollouts, bins=4)
    longest = max(rollout.length for rollout in rollouts)
    assert len(found.bins) == 4
    assert found.bins[-1].end == longest
    measured, position, row = measure(STUDENT, TEACHER, rollouts)
    for bin in found.bins:
        here = (bin.start <= position) & (position < bin.end)
        reached = [measured["reverse_kl"][here & (row == number)] for number in np.unique(row[here])]
        alone = len(reached) == 1
        error = float("inf") if alone else np.std([kl.mean() for kl in reached], ddof=1) / len(reached) ** 0.5
        assert (bin.tokens, bin.rollouts) == (here.sum(), len(reached))
        assert bin.error == pytest.approx(error)
        assert bin.log_ratio == pytest.approx(np.quantile(np.abs(measured["log_ratio"][here]), [0.5, 0.9, 0.99]))
        for name in set(MEASURES) - {"log_ratio", "gradient"}:
            assert getattr(bin, name) == pytest.approx(measured[name][here].mean())
        assert bin.gradient_share == pytest.approx(measured["gradient"][here].sum() / measured["gradient"].sum())


def test_how_rollouts_are_batched_changes_nothing(rollouts):
    small, large = (measure(STUDENT, TEACHER, rollouts, tokens_per_batch=size) for size in (32, 4096))
    key = [np.lexsort((position, row)) for _, position, row in (small, large)]
    for name in MEASURES:
        assert small[0][name][key[0]] == pytest.approx(large[0][name][key[1]], rel=1e-3, abs=1e-5)


def bins(*kl, error=0.01, rollouts=None):
    plain: dict[str, Any] = {field.name: 0.0 for field in dataclasses.fields(Bin)} | {"tokens": 10, "log_ratio": (0.0,)}
    reach = rollouts or [100] * len(kl)
    return [
        Bin(**plain | {"start": 10 * i, "end": 10 * i + 10, "reverse_kl": k, "error": error, "rollouts": reach[i]})
        for i, k in enumerate(kl)
    ]


def test_the_horizon_ends_where_the_kl_first_doubles():
    assert suggested_horizon(bins(0.1, 0.1, 0.11, 0.5, 0.6)) == 30
    assert suggested_horizon(bins(0.1, 0.1, 0.15, 0.19)) is None
    assert suggested_horizon(bins(0.5, 0.3, 0.1)) is None
    assert suggested_horizon(bins(0.1, 0.3, error=0.2)) is None  # chance explains it
    assert suggested_horizon(bins(0.1, 0.1, 0.5, rollouts=[100, 100, 10])) is None  # hardly any rollout got there


def test_the_command_writes_figure_and_numbers(command, tiny, tmp_path):
    ended = command("probe", tiny, "--prompts", "4", "--out", tmp_path / "probe")
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert written["rollouts"] == 4
    assert written["bins"][-1]["end"] > 8  # the recipe's horizon, which does not apply here
    assert max(bin["reverse_kl"] for bin in written["bins"]) > 0.01
    assert all(sentence in ended.out for sentence in written["sentences"])
    assert (tmp_path / "probe" / "probe.png").stat().st_size > 10_000


def test_the_sentences_describe_the_bin_at_the_horizon():
    first, second = Probe(tuple(bins(0.1, 0.1, 0.5, 0.6)), 100, 20).sentences()
    assert "From token 20 on," in first
    assert "0.500 nats per token there, 5.0 times that of the tokens before (0.100)" in first
    assert "rollouts of 20 tokens" in second


def test_another_student_may_be_probed(command, tiny, tmp_path):
    ended = command("probe", tiny, "--prompts", "2", "--student", "package:hopd/quickstart/teacher", "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert max(bin["reverse_kl"] for bin in json.loads((tmp_path / "probe.json").read_text())["bins"]) < 1e-5
