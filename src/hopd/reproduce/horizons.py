"""The quickstart's three horizons: does a short one reach as much, for less?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hopd.reproduce.experiment import Claim, Page, Results, table
from hopd.reproduce.figures import interval, mean, save
from hopd.reproduce.language import HELD_OUT, OPD, POPD, SEEDS, final, quickstart, topd, train

# Horizon, steps, and how often it is looked at: the shorter its steps, the more of them.
VARIANTS: Mapping[str, tuple[Mapping[str, Any], int, int]] = {
    "OPD": (OPD, 16, 2),
    "POPD": (POPD, 24, 3),
    "TOPD 0.1": (topd(0.1), 48, 6),
}


class QuickstartHorizons:
    name = "quickstart-horizons"
    seeds = SEEDS

    def prepare(self, seed: int, work: Path) -> None: ...

    def variants(self) -> Sequence[str]:
        return list(VARIANTS)

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        horizon, steps, every = VARIANTS[variant]
        return {"curve": train(quickstart(variant, seed, work, horizon, steps, every))}

    def page(self, results: Results, out: Path) -> Page:
        accuracy = {name: final(runs) for name, runs in results.items()}
        seconds = {name: final(runs, "training_seconds") for name, runs in results.items()}
        to_target = {name: _to_target(results, name) for name in VARIANTS}
        _draw(results, out)
        lost = [100 * (opd - t) for opd, t in zip(accuracy["OPD"], accuracy["TOPD 0.1"], strict=True)]
        share = mean(seconds["TOPD 0.1"]) / mean(seconds["OPD"])
        faster = [
            opd / popd if opd and popd else None for opd, popd in zip(to_target["OPD"], to_target["POPD"], strict=True)
        ]
        rows = [
            [
                name,
                interval(accuracy[name]),
                f"{mean(seconds[name]):.1f}",
                ", ".join("never" if cost is None else f"{cost:.1f}" for cost in to_target[name]),
                f"{mean(final(results[name], 'generated_tokens')) / 1000:.0f}k",
                f"{mean(final(results[name], 'training_flops')) / 1e12:.2f}",
            ]
            for name in VARIANTS
        ]
        said = ", ".join("never" if times is None else f"{times:.1f} ×" for times in faster)
        reached = [times for times in faster if times is not None]
        return Page(
            title="The quickstart's horizons: OPD, POPD, TOPD",
            source="After Table 1 of the paper, on a task and models of our own",
            setting=(
                "Repeated addition with a scratchpad, 353 tokens an answer; student and teacher of 0.65M parameters "
                f"from the package; 32 rollouts a step. Evaluated on {HELD_OUT} held-out problems to the full length. "
                "What is to be learnt, addition with carry, is the same everywhere in an answer: the case for which "
                "the paper expects TOPD to work. Seconds are those of training, on one core."
            ),
            tables=[
                table(["", "accuracy (seeds)", "seconds", "seconds to OPD's final accuracy", "tokens", "TFLOP"], rows)
            ],
            figures={"quickstart-horizons.png": "Accuracy against seconds and steps, one line a seed"},
            claims=[
                Claim(
                    "TOPD 0.1 ends within 1 point of OPD at no more than 1/5 of its seconds",
                    f"OPD minus TOPD by seed: {', '.join(f'{points:+.1f}' for points in lost)} points, at "
                    f"{share:.2f} of its seconds",
                    "holds"
                    if max(lost) <= 1 and share <= 0.2
                    else "holds in part"
                    if mean(lost) <= 1 or share <= 0.2
                    else "does not hold",
                ),
                Claim(
                    "POPD reaches OPD's final accuracy at least 2.5 times sooner",
                    f"by seed: {said}",
                    "holds"
                    if len(reached) == len(faster) and min(reached) >= 2.5
                    else "holds in part"
                    if reached and mean(reached) >= 1.5
                    else "does not hold",
                ),
            ],
        )


def _to_target(results: Results, name: str) -> list[float | None]:
    """Seconds until a run's evaluation first gives what OPD ends with on the same seed."""
    return [
        next((p["training_seconds"] for p in run["curve"] if p["accuracy"] >= target), None)
        for run, target in zip(results[name], final(results["OPD"]), strict=True)
    ]


def _draw(results: Results, out: Path) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for colour, (name, runs) in zip(("tab:blue", "tab:orange", "tab:green"), results.items(), strict=True):
        for i, run in enumerate(runs):
            accuracy = [100 * point["accuracy"] for point in run["curve"]]
            for panel, key in zip(panels, ("training_seconds", "generated_tokens"), strict=True):
                x = [point[key] / (1 if key == "training_seconds" else 1000) for point in run["curve"]]
                panel.plot(x, accuracy, color=colour, linewidth=1, label=name if i == 0 else None)
    panels[0].set(xlabel="seconds of training, one core", ylabel="accuracy at full length, %")
    panels[1].set(xlabel="thousand tokens generated", xscale="symlog")
    panels[0].legend(frameon=False)
    save(figure, out / "quickstart-horizons.png")
