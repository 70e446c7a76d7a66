"""Runs the segment ablation (Fig. 12): only a tenth of each full rollout carries loss. Do early tenths teach more?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.experiment import Claim, Page, Results, table
from experiments.figures import interval, mean, save
from experiments.language.setting import OPD, SEEDS, final, quickstart
from hopd.analysis.segments import STARTS, WIDTH, recipe_for_segment, train_segment

STEPS = 16


class SegmentAblation:
    name = "segment-ablation"
    seeds = SEEDS

    def prepare(self, seed: int, work: Path) -> None: ...

    def variants(self) -> Sequence[str]:
        return [f"{start:g}-{start + WIDTH:.1f}" for start in STARTS]

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        start, end = map(float, variant.split("-"))
        recipe = quickstart(variant, seed, work, OPD, STEPS, every=STEPS)
        return {"curve": train_segment(recipe_for_segment(recipe, STEPS, work, start, end))[0]}

    def page(self, results: Results, out: Path) -> Page:
        accuracy = {variant: final(runs) for variant, runs in results.items()}
        untrained = mean([run["curve"][0]["accuracy"] for runs in results.values() for run in runs])
        means = [mean(values) for values in accuracy.values()]
        _draw(accuracy, untrained, out)
        falls = means[0] - means[-1]
        return Page(
            title="Segment ablation: which tenth of a rollout teaches",
            source="Fig. 12 of the paper",
            setting=(
                f"Full rollouts of the quickstart, {STEPS} steps, with loss on one tenth of each rollout only "
                "(`window: {kind: segment}`); every run generates the same."
            ),
            tables=[
                table(
                    ["tenth that carries loss", *accuracy],
                    [["accuracy (seeds)", *(interval(values) for values in accuracy.values())]],
                )
                + f"\n\nUntrained: {100 * untrained:.0f} %."
            ],
            figures={"segment-ablation.png": "Accuracy by the tenth of the rollout that carries loss"},
            claims=[
                Claim(
                    "early and middle segments help most, and the gain falls with position",
                    f"first minus last: {100 * falls:+.1f} points",
                    "holds"
                    if falls > 0.03 and means == sorted(means, reverse=True)
                    else "holds in part"
                    if falls > 0.03
                    else "does not hold",
                ),
                Claim(
                    "the last segment can end below the untrained student",
                    f"the worst run of all ends at {100 * min(map(min, accuracy.values())):.0f} %, untrained "
                    f"{100 * untrained:.0f} %",
                    "holds" if min(accuracy[self.variants()[-1]]) < untrained else "does not hold",
                ),
            ],
        )


def _draw(accuracy: dict[str, list[float]], untrained: float, out: Path) -> None:
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for place, values in enumerate(accuracy.values()):
        panel.plot([place] * len(values), [100 * value for value in values], "o", color="tab:blue", ms=4)
    panel.plot([100 * mean(values) for values in accuracy.values()], color="tab:blue", linewidth=1)
    panel.axhline(100 * untrained, color="0.6", linestyle=":")
    panel.set_xticks(range(len(accuracy)), list(accuracy))
    panel.set(xlabel="part of the rollout that carries loss", ylabel="accuracy, %")
    save(figure, out / "segment-ablation.png")
