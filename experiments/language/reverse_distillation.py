"""Runs reverse distillation (Fig. 11): a strong student follows a weak teacher, and becomes as weak."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.experiment import Claim, Page, Results, table
from experiments.figures import interval, mean, save
from experiments.language.setting import OPD, SEEDS, final, quickstart, topd, train
from hopd.assembly.evaluator import evaluate_model
from hopd.recipe import ModelSource

# All have about the same number of tokens.
VARIANTS: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "OPD": (OPD, 24),
    "TOPD 0.5": (topd(0.5), 48),
    "TOPD 0.25": (topd(0.25), 48),
}
NEAR = 0.1  # about the teacher's accuracy


class ReverseDistillation:
    name = "reverse-distillation"
    seeds = SEEDS

    def prepare(self, seed: int, work: Path) -> None: ...

    def variants(self) -> Sequence[str]:
        return list(VARIANTS)

    def run(self, variant: str, seed: int, work: Path) -> dict[str, Any]:
        horizon, steps = VARIANTS[variant]
        recipe = quickstart(variant, seed, work, horizon, steps, every=steps // 8)
        assert isinstance(recipe.teacher, ModelSource)
        strong, weak = ({"model": side.model} for side in (recipe.teacher, recipe.student))
        curve = train(recipe.with_changes(student=strong, teacher=weak))
        return {"curve": curve, "teacher": evaluate_model(weak["model"], recipe).score}

    def page(self, results: Results, out: Path) -> Page:
        accuracy = {name: final(runs) for name, runs in results.items()}
        teacher = mean([run["teacher"] for runs in results.values() for run in runs])
        start = mean([run["curve"][0]["accuracy"] for runs in results.values() for run in runs])
        _draw(results, teacher, out)
        apart = {name: max(abs(value - teacher) for value in values) for name, values in accuracy.items()}
        return Page(
            title="Reverse distillation: a weak teacher",
            source="Fig. 11 of the paper",
            setting="The quickstart's models with their roles exchanged.",
            tables=[
                table(
                    ["", "student before", *VARIANTS, "teacher"],
                    [
                        ["accuracy", f"{100 * start:.0f} %"]
                        + [interval(accuracy[name]) for name in VARIANTS]
                        + [f"{100 * teacher:.0f} %"]
                    ],
                )
            ],
            figures={"reverse-distillation.png": "Accuracy over steps; the dotted line is the teacher"},
            claims=[
                Claim(
                    "OPD, TOPD 0.5 and TOPD 0.25 pull the student down to about the teacher",
                    f"from {100 * start:.0f} % to "
                    + ", ".join(f"{100 * mean(values):.0f} % ({name})" for name, values in accuracy.items())
                    + f"; the teacher has {100 * teacher:.0f} %",
                    "holds"
                    if max(apart.values()) <= NEAR
                    else "holds in part"
                    if all(mean(values) < start - NEAR for values in accuracy.values())
                    else "does not hold",
                )
            ],
        )


def _draw(results: Results, teacher: float, out: Path) -> None:
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for colour, (name, runs) in zip(("tab:blue", "tab:orange", "tab:green"), results.items(), strict=True):
        for i, run in enumerate(runs):
            steps = [point["step"] for point in run["curve"]]
            accuracy = [100 * point["accuracy"] for point in run["curve"]]
            panel.plot(steps, accuracy, color=colour, linewidth=1, label=name if i == 0 else None)
    panel.axhline(100 * teacher, color="0.4", linestyle=":")
    panel.set(xlabel="step", ylabel="accuracy, %")
    panel.legend(frameon=False)
    save(figure, out / "reverse-distillation.png")
