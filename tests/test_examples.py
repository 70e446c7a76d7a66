"""The examples run as they are, and are short enough to be read."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from hopd.distiller import Distiller
from hopd.recipe import Recipe
from hopd.run.progress import Progress

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Trains the recipe of an example in its directory, and gives the run's directory."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(name, *changes):
        recipe = Recipe.load(f"{name}.yaml", [f"output={tmp_path}", *changes])
        return Distiller.of(recipe, resume=True, progress=Progress(quiet=True)).train().directory

    yield run
    for name in ("stops", "own_task"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_has_at_most_60_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_a_controller_of_ones_own_grows_the_horizon_and_is_resumed(train):
    whole = train("stops", "name=whole", "training.steps=12").read("horizon")
    grown = next(line["step"] for line in whole if line["tokens"] > 24)
    train("stops", f"training.steps={grown}")
    assert train("stops", "training.steps=12").read("horizon") == whole


def test_a_task_and_a_check_of_ones_own_train_and_evaluate(train):
    directory = train("own_task", "training.steps=2")
    assert len(directory.read("metrics")) == 2
    scores = directory.read("scores")[-1]["scores"]
    assert any(0 < score < 1 for score in scores)  # shares of digits
    assert {json.loads(line)["step"] for line in (directory.path / "samples.jsonl").read_text().splitlines()} == {0, 2}


def test_a_loop_of_ones_own_lowers_the_divergence(capsys):
    spec = importlib.util.spec_from_file_location("own_loop", EXAMPLES / "own_loop.py")
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    curve = example.main()
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])
    assert "progressive: grown to the full 40 tokens" in capsys.readouterr().out
