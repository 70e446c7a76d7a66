"""Compares the gradients of a rollout's tenths before any training: is a step on the first also one on the others, and
how many rollouts can a step use?

Gradients are sketches, so those of the last layer only. Nothing is trained.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn

from hopd.compute.layers import fast_layers
from hopd.model import LanguageModel
from hopd.objective import Objective
from hopd.objective.loss import distillation_loss
from hopd.objective.stop_class import StopClass
from hopd.rollout import Rollout, pack
from hopd.run.files import json_text
from hopd.teacher import Teacher
from hopd.training.sketch import NUMBERS, Sketch

RESAMPLES = 1000
LEVEL = 0.95
ALIGNED = 0.5
REACH = 0.5  # tenths that fewer of the rollouts reach are not judged
RULE = (
    f"The rule: a short horizon can do if the {100 * LEVEL:.0f} % interval of every later tenth's alignment lies above "
    f"{ALIGNED:g}; it must fail if one lies below {ALIGNED:g}, and harms if one lies below 0. Tenths that fewer than "
    "half of the rollouts reach are not judged. The rule sees this student only, not the drift of later tokens that "
    "training may bring: in a long addition all tenths look aligned, and later lines drift under a short horizon."
)
Values = Float[np.ndarray, " R"]
Weights = Float[np.ndarray, "R n"]


@dataclass(frozen=True)
class Interval:
    """Holds an estimate and its interval from a bootstrap over rollouts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:5.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Tenth:
    """Compares the tokens `start <= t < end` with those of the first tenth; `rollouts` have some.

    `alignment` is the cosine between the expected gradients of both, and `noise` that of one rollout over the signal,
    tr Σ / |G|²: about the number of rollouts at which a larger step stops helping. Where chance leaves no signal, the
    alignment is ±∞, of the product's sign, and the noise ∞.
    """

    start: int
    end: int
    rollouts: int
    alignment: Interval
    noise: Interval


@dataclass(frozen=True)
class Alignment:
    """Holds the tenths of the full length, from `rollouts` rollouts."""

    tenths: tuple[Tenth, ...]
    rollouts: int

    def lines(self) -> list[str]:
        """Returns a table, the verdict, the number of rollouts that a step can use, and the rule with its limits."""
        rows = [
            f"{tenth.start:>6} to {tenth.end:<6} {tenth.rollouts:>5}  {tenth.alignment!s:<24} {tenth.noise}"
            for tenth in self.tenths
        ]
        return ["       tokens rollouts  alignment                noise over signal", *rows, *self.sentences()]

    def sentences(self) -> tuple[str, str, str]:
        """Says what a short horizon would do, how many rollouts a step can use, and by which rule."""
        noise = [tenth.noise.value for tenth in self._judged()]
        return (
            self.verdict(),
            f"One rollout's noise over the signal is {_rounded(min(noise))} to {_rounded(max(noise))}, by tenth: with "
            "about as many rollouts, and at least one, a step stops gaining. The number grows as the student learns.",
            RULE,
        )

    def verdict(self) -> str:
        """Says whether a short horizon can do, must fail or will harm, or that this is not clear."""
        later = {f"{t.start} to {t.end}": t.alignment for t in self._judged()[1:]}
        against = [tokens for tokens, found in later.items() if found.high < 0]
        apart = [tokens for tokens, found in later.items() if found.high < ALIGNED]
        unclear = [tokens for tokens, found in later.items() if found.low <= ALIGNED <= found.high]
        if against:
            return f"A short horizon will harm: a step on the first tenth unlearns tokens {', '.join(against)}."
        if apart:
            return f"A short horizon must fail: the first tenth does not teach tokens {', '.join(apart)}."
        if unclear or not later:
            where = f" for tokens {', '.join(unclear)}" if unclear else ", as most rollouts end in the first tenth"
            return f"Whether a short horizon can do is not clear{where}: take more rollouts."
        return "A short horizon can do: what the first tenth teaches, all later tokens need."

    def _judged(self) -> list[Tenth]:
        return [tenth for tenth in self.tenths if tenth.rollouts >= REACH * self.rollouts]

    def save(self, out: Path) -> None:
        """Writes `out/alignment.json`."""
        out.mkdir(parents=True, exist_ok=True)
        content = {"sentences": self.sentences(), **asdict(self)}
        (out / "alignment.json").write_text(json_text(content, indent=1), encoding="utf-8")


def alignment(
    student: LanguageModel,
    teacher: Teacher,
    rollouts: Sequence[Rollout],
    objective: Objective,
    full_tokens: int,
    temperature: float = 1.0,
    tokens_per_batch: int = 8192,
) -> Alignment:
    """Compares the tenths of `full_tokens` by the gradient of the objective's loss on the student's own `rollouts`.

    Raises `ModelError` if the student's gradients cannot be sketched.
    """
    sketch = Sketch.of(student, full_tokens)
    vectors = np.zeros((len(rollouts), len(sketch.edges) - 1, NUMBERS))
    complete = np.zeros(vectors.shape[:2], dtype=bool)
    index_of = {id(rollout): index for index, rollout in enumerate(rollouts)}
    spans = [(0, rollout.length) for rollout in rollouts]
    whole = objective.gamma > 0
    stop = StopClass.of(objective, student.stop_ids, student.head.vocabulary)
    with _trained_alone(student.model, [watched.layer for watched in sketch.watched]) as weights, sketch.watching():
        for batch in pack(rollouts, spans, tokens_per_batch, student.device, whole_response=whole):
            signal = teacher.score(batch)
            with fast_layers(student.backbone):
                hidden = batch.states(student.hidden(batch.ids))
                total, _ = distillation_loss(objective, student.head, hidden, signal, batch.at, temperature, stop=stop)
                torch.autograd.grad(total, weights)
            here = [index_of[id(rollout)] for rollout in batch.rollouts]
            vectors[here] = sketch.vectors(batch).double().cpu().numpy()
            complete[here] = sketch.complete(batch).cpu().numpy()
    edges, lengths = sketch.edges.tolist(), np.array([rollout.length for rollout in rollouts])
    found = compare_tenths(vectors, complete)
    tenths = (
        Tenth(start, end, int((lengths > start).sum()), aligned, noise)
        for (start, end), (aligned, noise) in zip(pairwise(edges), found, strict=True)
    )
    return Alignment(tuple(tenths), len(rollouts))


def compare_tenths(
    vectors: Float[np.ndarray, "n K D"], complete: Bool[np.ndarray, "n K"]
) -> list[tuple[Interval, Interval]]:
    """Returns alignment with the first tenth, and noise over signal, of K tenths: estimates from pairs of different
    rollouts, also in each resample."""
    n = len(vectors)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, n)), drawn])
    vectors, has = vectors * complete[..., None], [weights * complete[:, c] for c in range(complete.shape[1])]
    first = _product(vectors[:, 0], vectors[:, 0], has[0], has[0])
    found = []
    for c in range(len(has)):
        shared = _product(vectors[:, 0], vectors[:, c], has[0], has[c])
        signal = _product(vectors[:, c], vectors[:, c], has[c], has[c])
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = shared / np.sqrt(np.maximum(first, 0) * np.maximum(signal, 0))
            squares = has[c] @ (vectors[:, c] ** 2).sum(-1) / has[c].sum(-1)
            noise = np.where(signal > 0, squares / signal - 1, np.inf)
        found.append((_interval(np.ones_like(cosine) if c == 0 else cosine), _interval(noise)))
    return found


def _product(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "n D"], of_a: Weights, of_b: Weights) -> Values:
    """Returns the mean of a_i · b_j over pairs of different rollouts, weighted; NaN if there are none."""
    products = a @ b.T
    np.fill_diagonal(products, 0)
    pairs = of_a.sum(-1) * of_b.sum(-1) - (of_a * of_b).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pairs > 0, ((of_a @ products) * of_b).sum(-1) / pairs, np.nan)


def _interval(values: Values) -> Interval:
    """Makes an interval from the estimate, which comes first, and its resamples; NaN may be any value."""
    tail, resampled = (1 - LEVEL) / 2, values[1:]
    unknown = np.isnan(resampled)
    low = np.quantile(np.where(unknown, -np.inf, resampled), tail, method="lower")
    high = np.quantile(np.where(unknown, np.inf, resampled), 1 - tail, method="higher")
    return Interval(float(values[0]), float(low), float(high))


@contextmanager
def _trained_alone(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """Yields the layers' matrices, which alone have gradients until the block ends: all before keep no activations."""
    weights = [layer.get_parameter("weight") for layer in layers]
    others = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield weights
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def _rounded(number: float) -> str:
    return "∞" if number == np.inf else f"{number:.0f}" if number >= 10 else f"{number:.1f}"
