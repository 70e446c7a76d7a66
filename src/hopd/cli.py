"""The command line: parses, calls, prints. Heavy imports wait until a command needs them."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hopd import __version__
from hopd.errors import HopdError, Interrupted, RecipeError

app = typer.Typer(
    name="hopd",
    help="Horizon-controlled on-policy distillation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: --set training.steps=10. May be repeated."),
]


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 (typer reads the default)
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")] = False,
    ray: Annotated[int | None, typer.Option(metavar="N", min=1, help="On so many workers of Ray Train.")] = None,
    ray_restarts: Annotated[int, typer.Option(min=0, help="How often Ray starts the workers again.")] = 3,
) -> None:
    """Distil as the recipe says: check, then train. SIGTERM or Ctrl-C saves and stops."""
    from hopd.recipe import Recipe

    if ray is not None:
        from hopd.launch.ray import train_on_ray

        loaded = Recipe.load(recipe, overrides)
        typer.echo(f"done: {train_on_ray(loaded, ray, ray_restarts, resume)} steps, {loaded.directory}/")
        return
    from hopd.build import build
    from hopd.distiller import Distiller
    from hopd.forecast.preflight import preflight

    parts = build(Recipe.load(recipe, overrides), resume=resume)
    note = parts.recorder.progress.note
    for line in preflight(parts):
        note(line)
    result = Distiller(parts).train()
    note(f"done: {result.steps} steps, {result.directory.path}/")


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    without_weights: Annotated[
        bool, typer.Option("--without-weights", help="Check the recipe only; load no models and no prompts.")
    ] = False,
) -> None:
    """Preflight alone: everything that can be known before training, and one real step, taken back."""
    from hopd.recipe import Recipe

    loaded = Recipe.load(recipe, overrides)
    if without_weights:
        from hopd.forecast.outlook import check_recipe

        lines = check_recipe(loaded)
    else:
        from hopd.build import build
        from hopd.forecast.preflight import preflight

        lines = preflight(build(loaded))
    for line in lines:
        typer.echo(line)
    typer.echo("ok")


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    budget: Annotated[float, typer.Option(min=0, help="Seconds that the calibration may take, about.")] = 60.0,
) -> None:
    """What a run will cost on this machine: tokens, FLOPs, time and memory, beside full rollouts."""
    from hopd.forecast.plan import make_plan
    from hopd.recipe import Recipe

    for line in make_plan(Recipe.load(recipe, overrides), budget).lines():
        typer.echo(line)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A directory (a checkpoint, say), a hub name, or package:NAME/PATH.")],
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    greedy: Annotated[bool, typer.Option("--greedy", help="Decode greedily, one sample a problem.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the measures to this JSON file too.")] = None,
) -> None:
    """Evaluate a model on the recipe's evaluation task, to the full length."""
    import json

    if out and not out.absolute().parent.is_dir():
        raise RecipeError(f"--out {out}: there is no directory {out.parent}")
    from hopd.build.evaluator import evaluate_model
    from hopd.recipe import Recipe

    measured = evaluate_model(model, Recipe.load(recipe, overrides), greedy)
    typer.echo(measured.summary())
    text = json.dumps(measured.as_dict(), indent=1)
    typer.echo(text)
    if out:
        out.write_text(text, encoding="utf-8")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the runs, the figure and the table go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of prompts and rollouts.")] = 0,
) -> None:
    """Watch a student learn from its teacher three times: full rollouts, POPD, TOPD. A few minutes on two cores."""
    from hopd.quickstart.demo import run_demo

    run_demo(out, seed)


@app.command()
def probe(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    student: Annotated[
        str | None, typer.Option(help="Another student: a checkpoint's directory, a hub name, package:NAME/PATH.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many of the task's prompts are answered.")] = 64,
    bins: Annotated[int, typer.Option(min=1, help="Bins of equal width, over the longest rollout.")] = 20,
    out: Annotated[Path, typer.Option(help="Where probe.json and probe.png go.")] = Path("runs/probe"),
) -> None:
    """Where in a rollout student and teacher part, position by position, and what horizon that suggests."""
    from hopd.analysis.probe import probe_recipe
    from hopd.recipe import Recipe

    probed = probe_recipe(Recipe.load(recipe, overrides), prompts, bins, student)
    probed.save(out)
    for sentence in probed.sentences():
        typer.echo(sentence)
    typer.echo(f"{out}/probe.json, {out}/probe.png")


@app.command()
def segments(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Steps of each training.")] = 16,
    starts: Annotated[str, typer.Option(help="Where the parts start, as shares of a rollout.")] = "0,0.2,0.4,0.6,0.8",
    width: Annotated[float, typer.Option(help="The share of a rollout that a part is.")] = 0.1,
    out: Annotated[Path, typer.Option(help="Where the runs, segments.json and segments.png go.")] = Path(
        "runs/segments"
    ),
) -> None:
    """Which part of a rollout teaches: a short training for each, with loss on that part of full rollouts only."""
    from hopd.analysis.segments import segments_recipe
    from hopd.recipe import Recipe

    found = segments_recipe(Recipe.load(recipe, overrides), steps, out, _shares(starts), width)
    found.save(out)
    for sentence in found.sentences():
        typer.echo(sentence)
    typer.echo(f"{out}/segments.json, {out}/segments.png")


@app.command()
def continuation(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    after: Annotated[
        str | None, typer.Option(help="The trained student, beside the recipe's: a checkpoint's directory, say.")
    ] = None,
    ratios: Annotated[
        str, typer.Option(help="The teacher's shares of an answer of full length.")
    ] = "0,0.025,0.05,0.1,0.25,0.5",
    problems: Annotated[int | None, typer.Option(min=2, help="How many of the evaluation's; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="Where continuation.json and continuation.png go.")] = Path(
        "runs/continuation"
    ),
) -> None:
    """How much a good beginning helps: the teacher writes the first part of each answer, the student the rest."""
    from hopd.analysis.continuation import continuation_recipe
    from hopd.recipe import Recipe

    found = continuation_recipe(Recipe.load(recipe, overrides), after, _shares(ratios), problems)
    found.save(out)
    for sentence in found.sentences():
        typer.echo(sentence)
    typer.echo(f"{out}/continuation.json, {out}/continuation.png")


def _shares(text: str) -> list[float]:
    try:
        return sorted({float(share) for share in text.split(",")})
    except ValueError:
        raise RecipeError(f"write shares as numbers with commas between, such as 0,0.1,0.5; got {text!r}") from None


@app.command()
def compare(
    baseline: Annotated[str, typer.Argument(metavar="NAME=RUN,RUN,…", help="Runs of one way, one a seed.")],
    other: Annotated[str, typer.Argument(metavar="NAME=RUN,RUN,…", help="Runs of the other, with the same seeds.")],
    out: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file too.")] = None,
) -> None:
    """Compare finished runs: scores at the full length, their difference over seeds, and cost to the target."""
    import json
    from dataclasses import asdict

    from hopd.analysis.comparison import compare as run

    compared = run(_named_runs(baseline), _named_runs(other))
    for line in compared.lines():
        typer.echo(line)
    if out:
        out.write_text(json.dumps(asdict(compared), indent=1), encoding="utf-8")


def _named_runs(text: str) -> tuple[str, list[Path]]:
    name, given, paths = text.partition("=")
    if not given or not name or not paths:
        raise RecipeError(
            f"write NAME=RUN,RUN,… for the runs to compare, such as opd=runs/opd-0,runs/opd-1; got {text!r}"
        )
    return name, [Path(path) for path in paths.split(",")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hopd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Exit codes: 0 done, 1 a bug (with its traceback), 2 bad input (one sentence), 3 servers or Ray's workers are
    gone, 128 + n stopped by signal n."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they would tear the live line apart
    try:
        app()
    except HopdError as error:
        print(f"hopd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as stop:
        print(f"hopd: {stop}: saved; go on with --resume", file=sys.stderr)
        sys.exit(stop.exit_code)
