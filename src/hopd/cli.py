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
) -> None:
    """Distil as the recipe says: check, then train. SIGTERM or Ctrl-C saves and stops."""
    from hopd.recipe import Recipe
    from hopd.training.distiller import Distiller
    from hopd.training.preflight import preflight

    run = Distiller(Recipe.load(recipe, overrides), resume=resume)
    for line in preflight(run):
        run.progress.note(line)
    result = run.train()
    run.progress.note(f"done: {result.steps} steps, {result.directory.path}/")


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
        from hopd.training.preflight import check_recipe

        lines = check_recipe(loaded)
    else:
        from hopd.training.distiller import Distiller
        from hopd.training.preflight import preflight

        lines = preflight(Distiller(loaded))
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
    from hopd.recipe import Recipe
    from hopd.training.plan import make_plan

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
    from hopd.evaluation.evaluator import evaluate_model
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
    from hopd.demo import run_demo

    run_demo(out, seed)


@app.command()
def make_quickstart(
    out: Annotated[Path, typer.Argument(help="A directory for the two models.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights and the training data.")] = 0,
) -> None:
    """Make the quickstart's teacher and student again, from a seed."""
    from hopd.quickstart.make import make

    make(out, seed, log=typer.echo)


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
    """Exit codes: 0 done, 1 a bug (with its traceback), 2 bad input (one sentence), 128 + n stopped by signal n."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they would tear the live line apart
    try:
        app()
    except HopdError as error:
        print(f"hopd: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as stop:
        print(f"hopd: {stop}: saved; go on with --resume", file=sys.stderr)
        sys.exit(stop.exit_code)
