"""Runs the demo: trains the quickstart recipe with full rollouts (OPD), POPD, TOPD and the adaptive controller, and
compares their costs.

All are evaluated to the full length, on the same held-out problems. With one seed, the demo shows the effect but
does not measure it: a reliable comparison needs several seeds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hopd.distiller import Distiller
from hopd.errors import RecipeError
from hopd.quickstart import RECIPE
from hopd.recipe import Recipe
from hopd.run.files import json_text
from hopd.run.progress import Progress


@dataclass(frozen=True)
class Variant:
    """Describes one run of the demo: its horizon, its steps, and the interval of its evaluations in steps."""

    title: str
    horizon: Mapping[str, Any]
    steps: int
    every: int


VARIANTS = {
    "opd": Variant("OPD, full", {"controller": "full"}, steps=16, every=4),
    "popd": Variant("POPD, 30 + 6k", {"controller": "progressive", "start": 30, "increment": 6}, 24, 4),
    "topd": Variant("TOPD, 0.1", {"controller": "truncated", "ratio": 0.1}, steps=48, every=6),
    "adaptive": Variant("adaptive", {"controller": "adaptive"}, steps=40, every=5),
}


@dataclass(frozen=True)
class Outcome:
    """Holds the result of one run. Seconds and tokens are of training; `seconds_to_target` is None if never reached."""

    accuracy: float
    interval: tuple[float, float]
    seconds: float
    generated_tokens: int
    trained_tokens: int
    stop_rate: float
    seconds_to_target: float | None


def run_demo(out: Path, seed: int = 0, console: Console | None = None) -> dict[str, Outcome]:
    """Trains all variants, writes `out/NAME/` for each, `out/figure.png` and `out/summary.json`, and prints a table.

    Raises `RecipeError` if `out` is not empty.
    """
    console = console or Console(highlight=False)
    if out.exists() and any(out.iterdir()):
        raise RecipeError(f"{out} is not empty: remove it, or choose another directory with out=...")
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, variant in VARIANTS.items():
        console.print(f"\n{variant.title}", style="bold")
        recipe = Recipe.load(RECIPE, [f"seed={seed}"])
        evaluation = recipe.evaluation
        assert evaluation is not None
        recipe = recipe.with_changes(
            name=name,
            output=str(out),
            horizon=dict(variant.horizon),
            training=recipe.training.model_dump() | {"steps": variant.steps},
            # All start from the same student, so only the first run evaluates it.
            evaluation=evaluation.model_dump() | {"every": variant.every, "at_start": not curves},
        )
        result = Distiller.of(recipe, progress=Progress(console=console)).train()
        start = next((curve[:1] for curve in curves.values()), [])
        curves[name] = start + result.directory.read("evaluations")
    target = curves["opd"][-1]["accuracy"]
    outcomes = {name: _outcome(curve, target) for name, curve in curves.items()}
    summary = {name: asdict(outcome) for name, outcome in outcomes.items()}
    (out / "summary.json").write_text(json_text(summary, indent=1), encoding="utf-8")
    draw(curves, target, out / "figure.png")
    console.print()
    console.print(_table(outcomes, target))
    console.print(f"figure: {out / 'figure.png'}\nnumbers: {out / 'summary.json'}\nruns: {out}/{', '.join(VARIANTS)}")
    return outcomes


def _outcome(curve: list[dict[str, Any]], target: float) -> Outcome:
    last = curve[-1]
    reached = [point["training_seconds"] for point in curve if point["accuracy"] >= target]
    return Outcome(
        accuracy=last["accuracy"],
        interval=tuple(last["interval"]),
        seconds=last["training_seconds"],
        generated_tokens=last["generated_tokens"],
        trained_tokens=last["trained_tokens"],
        stop_rate=last["stop_rate"],
        seconds_to_target=min(reached) if reached else None,
    )


def _table(outcomes: Mapping[str, Outcome], target: float) -> Table:
    title = f"evaluated at the full length; target: OPD's final accuracy, {100 * target:.1f} %"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    table.add_column("horizon", no_wrap=True)
    for column in ("accuracy", "95 %", "seconds", "to target", "tokens", "stops"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, o in outcomes.items():
        table.add_row(
            VARIANTS[name].title,
            f"{100 * o.accuracy:.1f} %",
            f"{100 * o.interval[0]:.0f}–{100 * o.interval[1]:.0f}",
            f"{o.seconds:.1f}",
            "not reached" if o.seconds_to_target is None else f"{o.seconds_to_target:.1f}",
            f"{o.generated_tokens / 1000:.0f}k",
            f"{100 * o.stop_rate:.0f} %",
        )
    return table


def draw(curves: Mapping[str, list[dict[str, Any]]], target: float, path: Path) -> None:
    """Plots accuracy against seconds and against generated tokens."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    axes = (
        ("training_seconds", 1, "seconds of training"),
        ("generated_tokens", 1000, "thousand tokens generated in training"),
    )
    for panel, (key, unit, label) in zip(panels, axes, strict=True):
        for name, curve in curves.items():
            x = [point[key] / unit for point in curve]
            y = [100 * point["accuracy"] for point in curve]
            low, high = ([100 * point["interval"][side] for point in curve] for side in (0, 1))
            (line,) = panel.plot(x, y, marker="o", markersize=3.5, label=VARIANTS[name].title)
            panel.fill_between(x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        panel.axhline(100 * target, color="0.6", linewidth=0.8, linestyle=":")
        panel.set_xlabel(label)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy at full length, %")
    panels[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
