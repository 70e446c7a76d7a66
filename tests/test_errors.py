"""Errors are in the words of who reads them: arguments in Python, options at the command line."""

from pathlib import Path
from typing import Any

import pytest

import hopd
from hopd.distiller import Distiller
from hopd.errors import RecipeError
from hopd.recipe import Recipe
from hopd.tasks import RepeatedAddition, encode


def test_an_existing_run_is_continued_by_an_argument_or_an_option(tiny: Path, command: Any) -> None:
    recipe = Recipe.load(tiny)
    (recipe.directory / "checkpoints").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"continue it with resume=True, give this one another name \(name=\.\.\.\)"):
        Distiller.of(recipe)
    ended = command("train", tiny)
    assert ended.code == 2
    assert "continue it with --resume, give this one another name (--set name=...)" in ended.err


@pytest.mark.parametrize("arguments", [{"full_tokens": 0}, {"full_tokens": 8, "samples": 0}])
def test_evaluate_names_its_own_arguments(arguments: dict[str, int]) -> None:
    model = hopd.load("package:hopd/quickstart/student")
    prompts = encode(RepeatedAddition(1, 2), model.tokenizer, chat=False, max_tokens=40)
    with pytest.raises(RecipeError, match=f"{list(arguments)[-1]} must be at least 1, got 0"):
        hopd.evaluate(hopd.NativeEngine(model), prompts, sampling=hopd.Sampling(), **arguments)
