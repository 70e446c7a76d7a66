"""The disk check counts the checkpoints that are there, and names the real reason why nothing can be written."""

import shutil
from collections import namedtuple

import pytest

from hopd import Distiller, Recipe
from hopd.assembly import build
from hopd.errors import RecipeError
from hopd.forecast.preflight import preflight
from hopd.run.progress import Progress

Usage = namedtuple("Usage", "total used free")
QUIET = Progress(quiet=True)


def disk(tiny, resume=None, steps=6):
    recipe = Recipe.load(tiny, [f"training.steps={steps}", "checkpoint.every=1"])
    lines = preflight(build(recipe, resume=resume, progress=QUIET))
    return next(line for line in lines if line.startswith("disk:"))


def test_a_resumed_run_needs_room_for_what_is_not_there(tiny, monkeypatch):
    Distiller.of(Recipe.load(tiny, ["training.steps=4", "checkpoint.every=1"]), progress=QUIET).train()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 10_000_000))  # of 7.7 MB a checkpoint
    assert "3 checkpoints of 0.0077 GB (0.0" in disk(tiny, resume=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 7_000_000))
    with pytest.raises(RecipeError, match="has no room for 3 checkpoints"):
        disk(tiny, resume=True)


def test_an_output_that_cannot_be_written_is_refused_with_the_reason(tiny):
    recipe = Recipe.load(tiny, ["output=/proc/self"])  # nobody can write there, not even root
    with pytest.raises(RecipeError, match=r"/proc/self cannot be written to \(.+\); write another output"):
        list(preflight(build(recipe, resume=None, progress=QUIET)))
