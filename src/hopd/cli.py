"""Provides the command line: it parses arguments, calls the library and prints.

Heavy imports are made inside the commands, so that `hopd --help` is fast.
"""

import errno
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hopd import __version__
from hopd.arguments import Overrides, RecipePath, fractions, named_runs
from hopd.errors import HopdError, Interrupted, RecipeError, shown, with_options

app = typer.Typer(
    name="hopd",
    help="Distil language models on-policy, with a controlled rollout horizon.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 (typer reads the default)
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint, if there is one.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although prompts or models are not those of the start.")
    ] = False,
    ray: Annotated[int | None, typer.Option(metavar="N", min=1, help="Train on N Ray workers.")] = None,
    ray_restarts: Annotated[int, typer.Option(min=0, help="Restart lost Ray workers up to this many times.")] = 3,
) -> None:
    """Check a recipe, then train it. SIGTERM or Ctrl-C saves and stops."""
    from hopd.recipe import Recipe
    from hopd.run.environment import earlier_settings

    earlier = earlier_settings(Recipe.directory_of(recipe, overrides), overrides) if resume else []
    settings = [*earlier, *overrides]
    loaded = Recipe.load(recipe, settings)
    if earlier:
        typer.echo(f"settings of the run so far: {', '.join(earlier)}")
    if ray is not None:
        from hopd.launch.ray import train_on_ray

        steps = train_on_ray(loaded, ray, ray_restarts, resume, accept_changes=accept_changes, overrides=settings)
        typer.echo(f"done: {steps} steps, {loaded.directory}/")
        return
    from hopd.assembly import build
    from hopd.distiller import Distiller
    from hopd.forecast.preflight import preflight
    from hopd.processes import Processes
    from hopd.run.directory import RunDirectory
    from hopd.run.lock import locked

    with locked(RunDirectory(loaded.directory), Processes.start()) as notes:  # before anything takes time
        parts = build(loaded, resume=resume, accept_changes=accept_changes, overrides=settings)
        note = parts.recorder.progress.note
        for line in (*notes, *preflight(parts)):
            note(line)
        result = Distiller(parts).train()
    parts.processes.stop()
    note(f"done: {result.steps} steps, {result.directory.path}/")


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    without_weights: Annotated[
        bool,
        typer.Option(
            "--without-weights", help="Check the recipe alone: load no models or prompts, import no code of yours."
        ),
    ] = False,
) -> None:
    """Check a recipe with its models and data, and run one real step that is rolled back."""
    from hopd.forecast.outlook import check_recipe, existing_run
    from hopd.recipe import Recipe

    loaded = Recipe.load(recipe, overrides, imports=not without_weights)
    for line in existing_run(loaded):
        typer.echo(line)
    if without_weights:
        lines = check_recipe(loaded, imports=False)
    else:
        from hopd.assembly import build
        from hopd.forecast.preflight import preflight

        lines = preflight(build(loaded, resume=None))
    for line in lines:
        typer.echo(line)
    typer.echo("ok")


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    budget: Annotated[float, typer.Option(min=0, help="Calibrate for about this many seconds.")] = 60.0,
) -> None:
    """Estimate a run's tokens, FLOPs, time and memory on this machine, compared with full rollouts."""
    from hopd.forecast.plan import make_plan
    from hopd.recipe import Recipe

    for line in make_plan(Recipe.load(recipe, overrides), budget).lines():
        typer.echo(line)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Evaluate this model: a directory, a hub name, or package:NAME/PATH.")],
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    greedy: Annotated[bool, typer.Option("--greedy", help="Decode greedily, with one sample per problem.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the measures to this JSON file.")] = None,
) -> None:
    """Evaluate a model on the recipe's evaluation task, to the full length."""
    if out and not out.absolute().parent.is_dir():
        raise RecipeError(f"--out {out}: there is no directory {out.parent}")
    from hopd.assembly.evaluator import evaluate_model
    from hopd.recipe import Recipe
    from hopd.run.files import json_text

    measured = evaluate_model(model, Recipe.load(recipe, overrides), greedy)
    typer.echo(measured.summary())
    text = json_text(measured.as_dict(), indent=1)
    typer.echo(text)
    if out:
        out.write_text(text, encoding="utf-8")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Write runs, figure and table to this directory.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed prompts and rollouts with this number.")] = 0,
) -> None:
    """Train the quickstart with full rollouts, POPD and TOPD; takes about a minute on two cores."""
    from hopd.quickstart.demo import run_demo

    run_demo(out, seed)


@app.command()
def probe(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    student: Annotated[
        str | None, typer.Option(help="Probe this student instead: a directory, a hub name, or package:NAME/PATH.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Answer this many of the task's prompts.")] = 64,
    bins: Annotated[int, typer.Option(min=1, help="Divide the longest rollout into this many bins.")] = 20,
    out: Annotated[Path, typer.Option(help="Write probe.json, probe.png and alignment.json to this directory.")] = Path(
        "runs/probe"
    ),
) -> None:
    """Compare student and teacher by position, and the gradients of a rollout's tenths; suggest a horizon."""
    from hopd.analysis.probe import answer
    from hopd.recipe import Recipe

    answers = answer(Recipe.load(recipe, overrides), prompts, student)
    probed = answers.probe(bins)
    probed.save(out)
    for sentence in probed.sentences():
        typer.echo(sentence)
    typer.echo(f"{out}/probe.json, {out}/probe.png")
    for line in answers.compared(out):
        typer.echo(line)


@app.command()
def segments(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Train each segment for this many steps.")] = 16,
    starts: Annotated[
        str, typer.Option(help="Start segments here, as fractions of the rollout.")
    ] = "0,0.2,0.4,0.6,0.8",
    width: Annotated[float, typer.Option(help="Segment length, as a fraction of the rollout.")] = 0.1,
    out: Annotated[Path, typer.Option(help="Write runs, segments.json and segments.png to this directory.")] = Path(
        "runs/segments"
    ),
) -> None:
    """Train briefly on each segment of full rollouts alone, and compare which segment teaches most."""
    from hopd.analysis.segments import segments_recipe
    from hopd.recipe import Recipe

    found = segments_recipe(Recipe.load(recipe, overrides), steps, out, fractions(starts), width)
    found.save(out)
    for sentence in found.sentences():
        typer.echo(sentence)
    typer.echo(f"{out}/segments.json, {out}/segments.png")


@app.command()
def continuation(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006
    after: Annotated[
        str | None, typer.Option(help="Also measure this trained student, such as a checkpoint's directory.")
    ] = None,
    ratios: Annotated[
        str, typer.Option(help="Let the teacher write these fractions of the full length.")
    ] = "0,0.025,0.05,0.1,0.25,0.5",
    problems: Annotated[
        int | None, typer.Option(min=2, help="Use this many of the evaluation's problems; by default, all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Write continuation.json and continuation.png to this directory.")] = Path(
        "runs/continuation"
    ),
) -> None:
    """Let the teacher start each answer and the student finish it, and measure how much the start helps."""
    from hopd.analysis.continuation import continuation_recipe
    from hopd.recipe import Recipe

    found = continuation_recipe(Recipe.load(recipe, overrides), after, fractions(ratios), problems)
    found.save(out)
    for sentence in found.sentences():
        typer.echo(sentence)
    typer.echo(f"{out}/continuation.json, {out}/continuation.png")


@app.command()
def compare(
    baseline: Annotated[
        str, typer.Argument(metavar="NAME=RUN,RUN,…", help="Compare with these runs, one for each seed.")
    ],
    other: Annotated[str, typer.Argument(metavar="NAME=RUN,RUN,…", help="Compare these runs, with the same seeds.")],
    machine: Annotated[
        str | None,
        typer.Option(
            metavar="MACHINE",
            help="Also model the seconds of this machine: h200, h100, 8xh100, or a=…,b=… as hopd plan prints them.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
) -> None:
    """Compare finished runs by score at the full length, difference over seeds, and cost to the target."""
    from hopd.analysis.comparison import compare as run
    from hopd.forecast.machine import Machine
    from hopd.run.files import json_text

    compared = run(named_runs(baseline), named_runs(other), Machine.parse(machine) if machine else None)
    for line in compared.lines():
        typer.echo(line)
    if out:
        out.write_text(json_text(asdict(compared), indent=1), encoding="utf-8")


def _version(wanted: bool) -> None:
    """Prints the version and exits."""
    if wanted:
        typer.echo(f"hopd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Runs the command line and exits.

    The exit code is 0 if done, 1 for a bug (with its traceback), 2 for bad input (one sentence), 3 if servers or Ray
    workers are gone, and 128 + n after signal n.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # progress bars would break the live line
    try:
        app()
    except HopdError as error:
        print(f"hopd: {with_options(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"hopd: {shown(error.filename)} is too long for the name of a file", file=sys.stderr)
        sys.exit(RecipeError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as stop:
        print(f"hopd: {stop}: saved; continue with --resume", file=sys.stderr)
        sys.exit(stop.exit_code)
