"""Checks sketches of the last layer's gradients against whole gradients: alignment and noise of a rollout's tenths."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.experiment import Claim, Page, Results, Verdict, table
from experiments.figures import save
from experiments.language.count_bits import COUNT_BITS
from experiments.language.horizons import HorizonComparison
from experiments.language.long_addition import LONG_ADDITION
from experiments.language.quickstart_horizons import QUICKSTART
from experiments.language.setting import OPD, SEEDS, quickstart
from experiments.language.two_phase import TWO_PHASE
from hopd.analysis.probe import Answers, answer
from hopd.horizon import Gradients
from hopd.objective.loss import distillation_loss
from hopd.objective.stop_class import StopClass
from hopd.recipe import Recipe
from hopd.rollout import FinishReason, Rollout, pack
from hopd.teacher import LocalTeacher
from hopd.training.block_sums import BlockSums, block_edges

ROLLOUTS = 24
SETTINGS = {comparison.name: comparison for comparison in (QUICKSTART, TWO_PHASE, COUNT_BITS, LONG_ADDITION)}
SIGNAL = ROLLOUTS / 2  # noise over signal up to which a tenth's gradient is known well enough to be compared
NEAR = 0.15  # alignments closer than this agree
FACTOR = 2.0  # noises over signal within this factor agree


class BlockGradients:
    name = "block-gradients"
    seeds = SEEDS

    def prepare(self, seed: int, work: Path) -> None:
        if seed == 0:
            for comparison in SETTINGS.values():
                place = _place(comparison, work)
                place.mkdir(parents=True, exist_ok=True)
                comparison.prepare(seed, place)

    def variants(self) -> Sequence[str]:
        return list(SETTINGS)

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        comparison = SETTINGS[variant]
        return look(quickstart(variant, seed, _place(comparison, work), OPD, 1, 1, comparison.setting))

    def page(self, results: Results, out: Path) -> Page:
        _draw(results, out / f"{self.name}.png")
        looks = [look for of_variant in results.values() for look in of_variant]
        compared = [pair for look in looks for pair in _compared(look, first=0)]
        later = [pair for look in looks for pair in _compared(look, first=1)]
        apart = [abs(sketch["alignment"] - whole["alignment"]) for sketch, whole in later]
        ratios = [sketch["noise"] / whole["noise"] for sketch, whole in compared]
        return Page(
            title="Gradients by tenth of a rollout: sketches against whole gradients",
            source="What `hopd probe` and controllers read before and during training",
            setting=(
                f"The untrained student of each task, {ROLLOUTS} full rollouts a seed, and the gradient in each tenth "
                "of the full length: of all parameters, by a backward pass for each tenth, and the sketch of the "
                "last layer's. Alignment is the cosine between the expected gradients of a tenth and the first; noise "
                "over signal is about the number of rollouts at which a step stops gaining. Both are from pairs of "
                f"different rollouts. Tenths whose noise over signal is above {SIGNAL:g} are not compared."
            ),
            tables=[
                table(
                    ["task, first seed", *(f"{tenth}" for tenth in range(1, 11))],
                    [row for variant, looks in results.items() for row in _rows(variant, looks[0])],
                ),
                table(
                    ["task", "verdict before training, by seed"],
                    [[variant, "<br>".join(look["verdict"] for look in looks)] for variant, looks in results.items()],
                ),
            ],
            figures={f"{self.name}.png": "Whole gradients: lines; sketches: crosses; one of each a seed"},
            claims=[
                Claim(
                    "a sketch of the last layer's gradients has the alignment of whole gradients",
                    f"{len(later)} later tenths with a signal; apart by {max(apart):.2f} at most",
                    _verdict([difference <= NEAR for difference in apart]),
                ),
                Claim(
                    f"and their noise over signal, within a factor of {FACTOR:g}",
                    f"the sketch's over the whole's: {min(ratios):.2f} to {max(ratios):.2f}",
                    _verdict([1 / FACTOR <= ratio <= FACTOR for ratio in ratios]),
                ),
            ],
        )


def look(recipe: Recipe) -> dict[str, Any]:
    """Compares the tenths of the recipe's untrained student by sketches and by whole gradients, on `ROLLOUTS` prompts
    that no other seed has."""
    answers = answer(recipe, ROLLOUTS * (recipe.seed + 1))
    answers = replace(answers, rollouts=answers.rollouts[-ROLLOUTS:])
    found = answers.alignment()
    sketch = [{"alignment": tenth.alignment.value, "noise": tenth.noise.value} for tenth in found.tenths]
    return {"sketch": sketch, "whole": tenths(whole_gradients(answers)), "verdict": found.verdict()}


def whole_gradients(answers: Answers) -> Gradients:
    """Returns what all trained parameters show: a forward pass for each rollout, and a backward pass for each tenth."""
    parameters = [p for p in answers.student.model.parameters() if p.requires_grad]
    edges = block_edges(answers.recipe.rollout.full_tokens)
    sums = BlockSums.zeros(sum(p.numel() for p in parameters))
    for rollout in answers.rollouts:
        vectors = _by_tenth(answers, rollout, parameters, edges.tolist())
        complete = (rollout.length >= edges[1:]) | (rollout.finish is FinishReason.STOP)
        sums.add(vectors[None], complete[None])
    return sums.gradients()


def _by_tenth(answers: Answers, rollout: Rollout, parameters: Sequence[Tensor], edges: Sequence[int]) -> Tensor:
    student, temperature = answers.student, answers.recipe.rollout.temperature
    (batch,) = pack([rollout], [(0, rollout.length)], 1, student.device)
    signal = LocalTeacher(answers.teacher, temperature).score(batch)
    hidden = batch.states(student.hidden(batch.ids))
    objective, gradients = answers.recipe.objective, []
    stop = StopClass.of(objective, student.stop_ids, student.head.vocabulary)
    for start, end in pairwise(edges):
        inside = (batch.at.position >= start) & (batch.at.position < end)
        at = replace(batch.at, weight=inside.float())
        total, _ = distillation_loss(objective, student.head, hidden, signal, at, temperature, stop=stop)
        found = torch.autograd.grad(total, parameters, retain_graph=True)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]).cpu())
    return torch.stack(gradients)


def tenths(found: Gradients) -> list[dict[str, float]]:
    """Returns alignment with the first tenth and noise over signal; infinite without a signal."""
    products = torch.tensor(found.products)
    signal = products.diagonal().clamp(min=0)
    alignment = products[0] / (signal[0] * signal).sqrt()
    noise = torch.where(signal > 0, torch.tensor(found.noise) / signal, torch.inf)
    return [{"alignment": a, "noise": n} for a, n in zip(alignment.tolist(), noise.tolist(), strict=True)]


def _place(comparison: HorizonComparison, work: Path) -> Path:
    """Returns the folder of a seed of another experiment, if its models are complete, or one of our own."""
    others = work.parents[1] / comparison.name
    return (others if (others / "models" / "teacher.json").exists() else work.parent / comparison.name) / work.name


def _compared(look: Mapping[str, Any], first: int) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Returns the tenths with a signal, from the `first` one on, as sketches and as whole gradients show them."""
    pairs = zip(look["sketch"][first:], look["whole"][first:], strict=True)
    return [(sketch, whole) for sketch, whole in pairs if whole["noise"] <= SIGNAL]


def _verdict(agree: Sequence[bool]) -> Verdict:
    if all(agree):
        return "holds"
    return "holds in part" if sum(agree) >= 0.9 * len(agree) else "does not hold"


def _rows(variant: str, look: Mapping[str, Any]) -> list[list[str]]:
    return [
        [f"{variant}: {what}, {side}", *(f"{tenth[key]:.2f}" for tenth in look[side])]
        for what, key in (("alignment", "alignment"), ("noise over signal", "noise"))
        for side in ("whole", "sketch")
    ]


def _draw(results: Results, path: Path) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        2, len(results), figsize=(3.2 * len(results), 5), squeeze=False, layout="constrained"
    )
    for column, (variant, looks) in enumerate(results.items()):
        for row, key in enumerate(("alignment", "noise")):
            panel = panels[row][column]
            for look in looks:
                for side, style in (("whole", "-"), ("sketch", "x")):
                    values = [tenth[key] if abs(tenth[key]) < 1000 else None for tenth in look[side]]
                    panel.plot(
                        range(1, 11), values, style, color="tab:blue" if side == "whole" else "tab:red", ms=5, lw=1
                    )
        panels[0][column].set(title=variant, ylim=(-1.6, 1.6))
        panels[1][column].set(xlabel="tenth", yscale="log")
    panels[0][0].set_ylabel("alignment with the first tenth")
    panels[1][0].set_ylabel("noise over signal")
    save(figure, path)
