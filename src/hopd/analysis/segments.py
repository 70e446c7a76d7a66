"""Runs the segment ablation (Fig. 12): trains on full rollouts with loss on one segment each, and compares segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hopd.distiller import Distiller
from hopd.errors import RecipeError
from hopd.evaluation.intervals import paired_interval
from hopd.horizon import Segment
from hopd.recipe import Recipe
from hopd.run.files import json_text
from hopd.run.progress import Progress

STARTS = (0.0, 0.2, 0.4, 0.6, 0.8)
WIDTH = 0.1


@dataclass(frozen=True)
class Trained:
    """Holds the result of a short training with loss on one segment: the last score at the full length (greater is
    better) and that of each problem. `start` and `end` are fractions of the rollout."""

    start: float
    end: float
    score: float
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Segments:
    """Holds the results of all segments. `untrained` is the score before training; `steps` are those of each training.

    At the first step, all segments are trained on the same rollouts.
    """

    steps: int
    untrained: float
    parts: tuple[Trained, ...]

    def against_first(self) -> list[tuple[float, tuple[float, float]]]:
        """Returns each later segment's score minus the first one's, with its 95 % interval, paired by problem."""
        first = np.array(self.parts[0].scores)
        differences = [np.array(part.scores) - first for part in self.parts[1:]]
        return [(float(found.mean()), paired_interval(found[None])) for found in differences]

    def sentences(self) -> tuple[str, str]:
        """Says which segment taught most, and which later segments differ from the first."""
        best = max(self.parts, key=lambda part: part.score)
        first, later = self.parts[0], list(zip(self.parts[1:], self.against_first(), strict=True))
        different = [f"{_name(part)} by {gain:+.3f}" for part, (gain, (low, high)) in later if low > 0 or high < 0]
        return (
            f"In {self.steps} steps with loss on one segment of each rollout, {_name(best)} teaches most: the score "
            f"goes from {self.untrained:.3f} to {best.score:.3f}, with {_name(first)} to {first.score:.3f}.",
            f"These later segments differ from {_name(first)} by more than the choice of problems explains: "
            f"{', '.join(different)}; another seed may differ too."
            if different
            else f"No later segment differs from {_name(first)} by more than the choice of problems explains.",
        )

    def save(self, out: Path) -> None:
        """Writes `out/segments.json` and `out/segments.png`."""
        out.mkdir(parents=True, exist_ok=True)
        parts = [
            {"start": part.start, "end": part.end, "score": part.score, "against_first": None if i == 0 else gain}
            for i, (part, gain) in enumerate(zip(self.parts, [None, *self.against_first()], strict=True))
        ]
        content = {"sentences": self.sentences(), "steps": self.steps, "untrained": self.untrained, "parts": parts}
        (out / "segments.json").write_text(json_text(content, indent=1), encoding="utf-8")
        draw(self, out / "segments.png")


def segments_recipe(
    recipe: Recipe, steps: int, out: Path, starts: Sequence[float] = STARTS, width: float = WIDTH
) -> Segments:
    """Runs `hopd segments`: trains `steps` steps for each segment, under `out`, and skips runs that are complete there.

    `starts` and `width` are fractions of the rollout. Raises `RecipeError` if the recipe has no evaluation section, or
    if a segment does not lie within the rollout.
    """
    if recipe.evaluation is None:
        raise RecipeError("a segment ablation needs an evaluation section: it sets what the students are evaluated on")
    if not starts:
        raise RecipeError("a segment ablation needs the starts of its segments, such as 0,0.2,0.4,0.6,0.8")
    ends = [round(start + width, 6) for start in starts]
    for start, end in zip(starts, ends, strict=True):
        Segment(start, end)  # raises now, not after the first trainings
    parts, untrained = [], 0.0
    for start, end in zip(starts, ends, strict=True):
        curve, scores = train_segment(recipe_for_segment(recipe, steps, out, start, end))
        untrained = curve[0]["score"]
        parts.append(Trained(start, end, curve[-1]["score"], tuple(scores)))
    return Segments(steps, untrained, tuple(parts))


def recipe_for_segment(recipe: Recipe, steps: int, out: Path, start: float, end: float) -> Recipe:
    """Returns the recipe with full rollouts and loss on one segment of each, evaluated before and after."""
    assert recipe.evaluation is not None
    return recipe.with_changes(
        name=f"{start:g}-{end:g}",
        output=str(out),
        horizon={"controller": "full"},
        window={"kind": "segment", "start": start, "end": end},
        training=recipe.training.model_dump() | {"steps": steps, "epochs": None},
        evaluation=recipe.evaluation.model_dump() | {"every": None, "every_flops": None, "at_start": True},
    )


def train_segment(recipe: Recipe) -> tuple[list[dict[str, Any]], list[float]]:
    """Trains, resuming an interrupted run, and returns its evaluations and the last score of each problem."""
    directory = Distiller.of(recipe, resume=True, progress=Progress(quiet=True)).train().directory
    return directory.read("evaluations"), directory.read("scores")[-1]["scores"]


def draw(found: Segments, path: Path) -> None:
    """Plots the score of each segment, and the untrained score."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    panel.plot([part.score for part in found.parts], "o-", color="tab:blue", markersize=4, linewidth=1)
    panel.axhline(found.untrained, color="0.6", linestyle=":", label="untrained")
    panel.set_xticks(range(len(found.parts)), [f"{part.start:g}–{part.end:g}" for part in found.parts])
    panel.set(xlabel="segment of the rollout that carries loss", ylabel="score at the full length")
    panel.legend(frameon=False)
    panel.grid(alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _name(part: Trained) -> str:
    return f"the segment {part.start:g}–{part.end:g}"
