"""The loss of samples and reference answers together, against a plain float64 reference."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hopd.horizon import First, Whole
from hopd.model import LanguageModel, load
from hopd.model.flops import PassCost
from hopd.objective import Full, TopK
from hopd.processes import Processes
from hopd.recipe import TrainingSection
from hopd.rollout import NativeEngine, Prompt, Rollout, Sampling
from hopd.run.ledger import Ledger
from hopd.tasks.addition import prompt, scratchpad
from hopd.teacher import LocalTeacher
from hopd.training.learner import Learner
from hopd.training.optimizer import MasterOptimizer
from hopd.training.sketch import Sketch
from hopd.training.statistics import StepStatistics

T = 80


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
    return load("package:hopd/quickstart/student"), load("package:hopd/quickstart/teacher")


@pytest.fixture(scope="module")
def rollouts(models: tuple[LanguageModel, LanguageModel]) -> list[Rollout]:
    """Samples three, and takes three reference answers: one is whole, the others are cut."""
    student, _ = models
    ids = student.tokenizer

    def asked(i: int, steps: int) -> Prompt:
        answer = [*ids(scratchpad(472 + i, 185, steps), add_special_tokens=False).input_ids, 1]
        return Prompt(i, torch.tensor(ids(prompt(472 + i, 185, steps)).input_ids), reference=torch.tensor(answer))

    prompts = [asked(i, steps) for i, steps in enumerate((1, 2, 3))]
    sampled = NativeEngine(student).sample(prompts, 50, Sampling(), seed=0)
    return sampled + [Rollout.of_reference(one, 1, 50, 0) for one in prompts]


def learner(models: tuple[LanguageModel, LanguageModel], path: Path, **options: Any) -> Learner:
    student, teacher = models
    given: dict[str, Any] = {"objective": Full(), "window": Whole(), "tokens_per_batch": 8192} | options
    return Learner(
        student=student,
        teacher=LocalTeacher(teacher),
        student_cost=PassCost.of(student),
        teacher_costs={None: PassCost.of(teacher)},
        optimizer=MasterOptimizer(student.model, TrainingSection(steps=1, learning_rate=1e-4), 1),
        ledger=Ledger(path / "ledger.json"),
        processes=Processes(),
        temperature=1.0,
        **given,
    )


def accumulated(made: Learner, rollouts: list[Rollout]) -> tuple[dict[str, Tensor], StepStatistics]:
    made.optimizer.adamw.zero_grad()
    statistics = StepStatistics(T, exact=True)
    made.accumulate(rollouts, seed=0, statistics=statistics)
    statistics.add_rollouts(rollouts)
    masters = made.optimizer.masters
    return {name: each.grad.clone() for name, each in masters.items() if each.grad is not None}, statistics


def plain(models: tuple[LanguageModel, LanguageModel], rollouts: list[Rollout], window: int, kind: str) -> Any:
    """Returns gradients and the mean loss of samples, of references and of both, token by token in float64."""
    student, teacher = (deepcopy(one.model).double() for one in models)
    losses: dict[bool, list[Tensor]] = {False: [], True: []}
    for one in rollouts:
        ids, start = torch.cat([one.prompt.ids, one.ids])[None], len(one.prompt.ids)
        logits, wanted = (m(ids).logits[0, start - 1 : -1].log_softmax(-1) for m in (student, teacher))
        wanted = wanted.detach()
        if kind == "forward_kl":
            loss = (wanted.exp() * (wanted - logits)).sum(-1)
        elif kind == "top_k":
            s, places = logits.topk(4)
            s, g = s.log_softmax(-1), wanted.gather(-1, places).log_softmax(-1)
            loss = (s.exp() * (s - g)).sum(-1)
        else:
            loss = (logits.exp() * (logits - wanted)).sum(-1)
        losses[one.is_reference].append(loss[:window])
    every = torch.cat(losses[False] + losses[True])
    every.mean().backward()
    means = [float(torch.cat(part).detach().mean()) for part in (losses[False], losses[True], [every])]
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}, means


@pytest.mark.parametrize("window", [T, 24])
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "top_k"])
def test_it_is_the_float64_reference(
    models: Any, rollouts: list[Rollout], tmp_path: Path, kind: Any, window: int
) -> None:
    objective = TopK(k=4, tail="renormalised") if kind == "top_k" else Full(divergence=kind)
    expected, (sampled, given, both) = plain(models, rollouts, window, kind)
    for tokens in (8192, 64):
        made = learner(models, tmp_path, objective=objective, window=First(window), tokens_per_batch=tokens)
        found, statistics = accumulated(made, rollouts)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name].to(gradient), rtol=2e-3, atol=1e-5)
        metrics = statistics.metrics()
        assert [metrics["on_policy_loss"], metrics["off_policy_loss"], metrics["loss"]] == pytest.approx(
            [sampled, given, both], rel=1e-4
        )


def test_evidence_and_the_rest_of_the_metrics_are_of_the_samples_alone(
    models: Any, rollouts: list[Rollout], tmp_path: Path
) -> None:
    _, alone = accumulated(learner(models, tmp_path), rollouts[:3])
    _, mixed = accumulated(learner(models, tmp_path), rollouts)
    one, both = alone.evidence(0, 50), mixed.evidence(0, 50)
    assert (one.references, both.references, both.rollouts) == (0, 3, 3)
    assert both.reverse_kl == pytest.approx(one.reverse_kl)
    assert [b.reverse_kl for b in both.blocks] == pytest.approx([b.reverse_kl for b in one.blocks])
    assert (both.stopped, both.mean_length, both.counts) == (one.stopped, one.mean_length, one.counts)
    apart = {"loss", "off_policy_share", "off_policy_loss", "on_policy_loss", "reference_tokens"}
    same, metrics = alone.metrics(), mixed.metrics()
    assert {k: v for k, v in metrics.items() if k not in apart} == pytest.approx(
        {k: v for k, v in same.items() if k not in apart}
    )
    assert metrics["mismatch"] < 1e-3  # no NaN of a token that was not sampled
    assert (metrics["off_policy_share"], metrics["reference_tokens"]) == (0.5, 34 + 50 + 50)


def test_sketches_compare_the_gradients_of_samples_alone(models: Any, rollouts: list[Rollout], tmp_path: Path) -> None:
    def sketched(given: list[Rollout]) -> Any:
        sums = accumulated(learner(models, tmp_path, sketch=Sketch.of(models[0], T)), given)[1].gradients
        assert sums is not None
        return sums

    alone, mixed = sketched(rollouts[:3]), sketched(rollouts)
    torch.testing.assert_close(mixed.counts, alone.counts, rtol=0, atol=0)
    torch.testing.assert_close(mixed.products, alone.products, rtol=1e-4, atol=1e-6)


def test_of_references_alone_metrics_have_their_loss_and_evidence_is_empty(
    models: Any, rollouts: list[Rollout], tmp_path: Path
) -> None:
    _, statistics = accumulated(learner(models, tmp_path), rollouts[3:])
    metrics, evidence = statistics.metrics(), statistics.evidence(0, 50)
    assert metrics["rollouts"] == 0
    assert metrics["loss"] == metrics["off_policy_loss"] > 0
    assert "reverse_kl" not in metrics
    assert "on_policy_loss" not in metrics
    assert (evidence.rollouts, evidence.references, evidence.counts) == (0, 3, ())
