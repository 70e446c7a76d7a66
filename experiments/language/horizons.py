"""Compares horizons on one task: does a short one reach the same accuracy at a lower cost?"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.experiment import Claim, Page, Results, table
from experiments.figures import interval, mean, save
from experiments.language.setting import OPD, SEEDS, Setting, final, quickstart, train
from hopd.assembly.evaluator import evaluate_model
from hopd.run.files import write_atomically

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
POINT = 0.01 + 1e-9  # a difference of exactly one point is within it
Variants = Mapping[str, tuple[Mapping[str, Any], int, int]]
"""Maps each variant to its horizon, its number of steps (more where they are shorter), and the steps from one
evaluation to the next."""


def homogeneous(results: Results) -> Sequence[Claim]:
    """Judges what the paper says about tasks whose skill is the same at every position of an answer."""
    times = times_sooner(results, "POPD")
    reached = [ratio for ratio in times if ratio]
    return [
        *(_short(results, name) for name in results if name.startswith("TOPD")),
        Claim(
            "POPD reaches OPD's final accuracy at least 2.5 times sooner",
            f"OPD's seconds over POPD's, by seed: {multiples(times)}",
            "holds"
            if len(reached) == len(times) and min(reached) >= 2.5
            else "holds in part"
            if reached and mean(reached) >= 1.5
            else "does not hold",
        ),
    ]


def _short(results: Results, name: str) -> Claim:
    lost = [100 * (opd - t) for opd, t in zip(final(results["OPD"]), final(results[name]), strict=True)]
    times = times_sooner(results, name, within=POINT)
    cheap = [ratio for ratio in times if ratio and ratio >= 5]
    return Claim(
        f"{name} ends within 1 point of OPD, and gets there at no more than 1/5 of the seconds",
        f"OPD minus TOPD by seed: {', '.join(f'{points:+.1f}' for points in lost)} points; OPD's seconds over TOPD's "
        f"to within 1 point of where OPD ends: {multiples(times)}",
        "holds"
        if max(lost) <= 100 * POINT and len(cheap) == len(lost)
        else "holds in part"
        if mean(lost) <= 100 * POINT or cheap
        else "does not hold",
    )


@dataclass
class HorizonComparison:
    """Compares horizons on one task: the quickstart's, or that of a `setting`, whose models `make` writes."""

    name: str
    title: str
    source: str
    text: str
    plan: Variants
    setting: Setting | None = None
    make: Callable[[Path], None] | None = None
    claims: Callable[[Results], Sequence[Claim]] = homogeneous
    remarks: str = ""
    seeds: int = SEEDS

    def prepare(self, seed: int, work: Path) -> None:
        if self.setting and self.make and not (self.setting.models(work) / "student").exists():
            self.make(self.setting.models(work))
            recipe = quickstart("teacher", seed, work, OPD, 1, 1, self.setting)
            score = evaluate_model(str(self.setting.models(work) / "teacher"), recipe).score
            write_atomically(_teacher(self.setting, work), json.dumps(score))

    def variants(self) -> Sequence[str]:
        return list(self.plan)

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        horizon, steps, every = self.plan[variant]
        curve = train(quickstart(variant, seed, work, horizon, steps, every, self.setting))
        return {"curve": curve} | (
            {"teacher": json.loads(_teacher(self.setting, work).read_text())} if self.setting else {}
        )

    def page(self, results: Results, out: Path) -> Page:
        _draw(results, out / f"{self.name}.png")
        rows = [
            [
                name,
                interval(final(results[name])),
                f"{mean(final(results[name], 'training_seconds')):.1f}",
                f"{mean(final(results[name], 'generated_tokens')) / 1000:.0f}k",
                _serial(results[name]),
                f"{mean(final(results[name], 'training_flops')) / 1e12:.2f}",
                "; ".join(_cost(cost) for cost in to_target(results, name)),
            ]
            for name in results
        ]
        untrained = mean([run["curve"][0]["accuracy"] for runs in results.values() for run in runs])
        models = f"The untrained student: {100 * untrained:.0f} %"
        if teacher := results["OPD"][0].get("teacher"):
            models += f"; the teacher: {100 * teacher:.0f} %"
        costs = ["seconds", "tokens", "serial tokens", "TFLOP"]
        columns = ["", "accuracy (seeds)", *costs, "to OPD's final accuracy, by seed"]
        return Page(
            title=self.title,
            source=self.source,
            setting=self.text,
            tables=[table(columns, rows) + f"\n\n{models}."],
            figures={f"{self.name}.png": "Accuracy against seconds and tokens, one line a seed"},
            claims=self.claims(results),
            remarks=self.remarks,
        )


def _teacher(setting: Setting, work: Path) -> Path:
    return setting.models(work) / "teacher.json"


def to_target(results: Results, name: str, within: float = 0.0) -> list[dict[str, Any] | None]:
    """Returns for each seed the first evaluation that reaches OPD's final accuracy on the same seed, less `within`;
    None if there is none."""
    return [
        next((point for point in run["curve"][1:] if point["accuracy"] >= target - within), None)
        for run, target in zip(results[name], final(results["OPD"]), strict=True)
    ]


def times_sooner(results: Results, name: str, within: float = 0.0) -> list[float | None]:
    """Returns OPD's seconds to the target over the variant's, by seed."""
    pairs = zip(to_target(results, "OPD", within), to_target(results, name, within), strict=True)
    return [opd["training_seconds"] / other["training_seconds"] if opd and other else None for opd, other in pairs]


def multiples(ratios: Sequence[float | None]) -> str:
    """Writes ratios as multiples, with "never" for those that do not exist."""
    return ", ".join("never" if ratio is None else f"{ratio:.1f} ×" for ratio in ratios)


def _cost(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return "never"
    return f"{point['training_seconds']:.1f} s, {point['generated_tokens'] / 1000:.0f}k"


def _serial(runs: Sequence[Mapping[str, Any]]) -> str:
    if not all("serial_tokens" in run["curve"][-1] for run in runs):  # results of hopd before 0.3
        return "–"
    return f"{mean(final(runs, 'serial_tokens')) / 1000:.1f}k"


def _draw(results: Results, path: Path) -> None:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for colour, (name, runs) in zip(COLOURS, results.items(), strict=False):
        for i, run in enumerate(runs):
            accuracy = [100 * point["accuracy"] for point in run["curve"]]
            for panel, key in zip(panels, ("training_seconds", "generated_tokens"), strict=True):
                x = [point[key] / (1 if key == "training_seconds" else 1000) for point in run["curve"]]
                panel.plot(x, accuracy, color=colour, linewidth=1, label=name if i == 0 else None)
    panels[0].set(xlabel="seconds of training, one core", ylabel="accuracy at full length, %")
    panels[1].set(xlabel="thousand tokens generated", xscale="symlog")
    panels[0].legend(frameon=False)
    save(figure, path)
