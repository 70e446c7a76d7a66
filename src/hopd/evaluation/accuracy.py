"""Measures accuracy on a task, always to the full length: the training horizon does not apply here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hopd.errors import RecipeError
from hopd.evaluation.intervals import bootstrap_interval, pass_at
from hopd.rollout import Engine, FinishReason, Rollout, Sampling
from hopd.tasks import Outcome, PromptSet


@dataclass(frozen=True)
class Accuracy:
    """Holds the accuracy on a task.

    `accuracy` is avg@k and `interval` its 95 % bootstrap interval over problems. `pass_at` maps k to pass@k.
    `stop_rate` and `context_rate` are the fractions of rollouts with these finish reasons; lengths are response tokens.
    `scores` holds one number per problem, the mean over its samples. `failed` counts the answers that could not be
    checked, which score 0, and `first_failure` says why of the first.
    """

    accuracy: float
    interval: tuple[float, float]
    pass_at: dict[int, float]
    problems: int
    samples: int
    stop_rate: float
    context_rate: float
    mean_length: float
    length_quantiles: dict[str, int]
    tokens: int
    scores: tuple[float, ...]
    failed: int = 0
    first_failure: str | None = None

    @property
    def score(self) -> float:
        """Returns the accuracy; greater is better."""
        return self.accuracy

    def summary(self) -> str:
        """Returns one line for a person."""
        low, high = self.interval
        return (
            f"accuracy {100 * self.accuracy:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}, "
            f"{self.problems} problems × {self.samples}), stop rate {100 * self.stop_rate:.1f} %, "
            f"mean length {self.mean_length:.0f}{self._failures()}"
        )

    def _failures(self) -> str:
        if not self.failed:
            return ""
        total = self.problems * self.samples
        if self.failed == total:
            return (
                f"; WARNING: none of {total} answers could be checked, so this accuracy says nothing of the student "
                f"(the first: {self.first_failure})"
            )
        return f"; {self.failed} of {total} answers could not be checked and score 0 (the first: {self.first_failure})"

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields but the scores of each problem."""
        return {name: value for name, value in asdict(self).items() if name != "scores"}


def evaluate(
    engine: Engine,
    prompts: PromptSet,
    full_tokens: int,
    sampling: Sampling,
    samples: int = 1,
    seed: int = 0,
) -> tuple[Accuracy, list[Rollout]]:
    """Samples `samples` rollouts of up to `full_tokens` tokens for every problem of `prompts`, and measures them.

    With one seed, every model gets the same random numbers, so that models are compared on common draws. Returns the
    rollouts too, in the engine's order. Raises `RecipeError` for a number below 1.
    """
    for name, number in (("full_tokens", full_tokens), ("samples", samples)):
        if number < 1:
            raise RecipeError(f"{name} must be at least 1, got {number}")
    rollouts = engine.sample(prompts.prompts, full_tokens, sampling, seed, samples)
    return measure(rollouts, prompts.check(rollouts), samples), rollouts


def measure(rollouts: Sequence[Rollout], outcomes: Sequence[Outcome], samples: int) -> Accuracy:
    """Measures rollouts in the engine's order: `samples` of the first problem, then of the second, and so on.
    `outcomes` are what checking each of them gave."""
    scores = np.array([outcome.score for outcome in outcomes]).reshape(-1, samples)
    failed = [(each.prompt.id, outcome) for each, outcome in zip(rollouts, outcomes, strict=True) if outcome.failure]
    lengths = np.array([rollout.length for rollout in rollouts])
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples]
    return Accuracy(
        accuracy=float(scores.mean()),
        interval=bootstrap_interval(scores),
        pass_at={k: pass_at(k, scores) for k in ks},
        problems=len(scores),
        samples=samples,
        stop_rate=_rate(rollouts, FinishReason.STOP),
        context_rate=_rate(rollouts, FinishReason.CONTEXT),
        mean_length=float(lengths.mean()),
        length_quantiles={f"{q:g}": int(np.quantile(lengths, q)) for q in (0.1, 0.5, 0.9, 1.0)},
        tokens=int(lengths.sum()),
        scores=tuple(scores.mean(axis=1).tolist()),
        failed=len(failed),
        first_failure=next((f"row {row + 1}: {outcome.failure}" for row, outcome in failed), None),
    )


def _rate(rollouts: Sequence[Rollout], reason: FinishReason) -> float:
    return sum(rollout.finish is reason for rollout in rollouts) / len(rollouts)
