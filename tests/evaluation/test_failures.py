"""Answers that a check cannot score, in whole runs: counted, never fatal, never NaN."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hopd.recipe import Recipe
from tests.conftest import Ended
from tests.test_processes import launched

CHECKS = """
def some(response, answer):
    return {"raises": lambda: {}["boxed"], "nan": lambda: float("nan"), "big": lambda: 7.5}.get(answer, lambda: 0.5)()

def none(response, answer):
    return None
"""
ANSWERS = ["right", "raises", "nan", "big"]
TOWER = "9^{9^{9^{9}}}"


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tiny recipe, evaluated by a check that lies beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "failing.py").write_text(CHECKS, encoding="utf-8")
    write(tmp_path / "rows.jsonl", ANSWERS)
    evaluation = {"task": {"source": "file", "path": str(tmp_path / "rows.jsonl"), "answer": "answer"}, "every": 1}
    evaluation["task"]["check"] = "failing:some"  # type: ignore[index]
    tiny.write_text(yaml.safe_dump(yaml.safe_load(tiny.read_text()) | {"evaluation": evaluation}))
    yield tiny
    sys.modules.pop("failing", None)


def write(path: Path, answers: list[str]) -> None:
    rows = [{"prompt": "000+000*a:", "answer": answer} for answer in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(recipe: Path, name: str) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    path = recipe.parent / "runs" / "tiny" / f"{name}.jsonl"
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().split("\n") if line]


def test_answers_that_cannot_be_scored_are_counted_and_the_run_goes_on(recipe: Path, command: Any) -> None:
    ended: Ended = command("train", recipe)
    assert ended.code == 0, ended.err
    lines = read(recipe, "evaluations")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [(line["accuracy"], line["failed"]) for line in lines] == [(0.125, 3)] * 3
    assert {line["first_failure"] for line in lines} == {"row 2: KeyError: 'boxed'"}
    assert "3 of 4 answers could not be checked and score 0 (the first: row 2: KeyError: 'boxed')" in ended.out
    failures = [line.get("failure") for line in read(recipe, "samples")[:4]]
    assert failures[0] is None
    assert failures[3] == "it returned 7.5, and a score is a number from 0 to 1"


def test_where_no_answer_can_be_scored_it_is_said_before_the_run_and_at_each_evaluation(
    recipe: Path, command: Any
) -> None:
    ended: Ended = command("train", recipe, "--set", "evaluation.task.check=failing:none")
    assert ended.code == 0, ended.err
    assert "evaluation: the check of an empty response to row 1 failed: it returned None" in ended.out
    assert ended.out.count("WARNING: none of 4 answers could be checked") == 3


def test_answers_that_math_cannot_read_are_counted_before_the_run(recipe: Path, command: Any) -> None:
    write(
        recipe.parent / "rows.jsonl",
        ["72", "north-east", r"\text{odd}", "9. It has 9", "x^2+1", TOWER, "Yes", "north-east"],
    )
    ended: Ended = command("check", recipe, "--set", "evaluation.task.check=math")
    assert ended.code == 0, ended.err
    assert "check: math cannot read 5 of 8 answers (row 2: 'north-east'): responses to them score 0" in ended.out
    write(recipe.parent / "rows.jsonl", [TOWER] * 3)
    ended = command("check", recipe, "--set", "evaluation.task.check=math")
    assert f"cannot read 3 of 3 answers (row 1: '{TOWER}'; it took longer than 2 s)" in ended.out


def test_two_processes_find_what_one_finds(recipe: Path, command: Any, process: Any) -> None:
    assert command("train", recipe).code == 0
    alone = read(recipe, "evaluations")
    program = ["-m", "hopd", "train", str(recipe), "--set", "name=two", "--set", "training.steps=1"]
    ended = subprocess.run(launched(2, program), capture_output=True, text=True, cwd=recipe.parent)
    assert ended.returncode == 0, ended.stderr
    (recipe.parent / "runs" / "tiny").rename(recipe.parent / "runs" / "one")
    (recipe.parent / "runs" / "two").rename(recipe.parent / "runs" / "tiny")
    together = read(recipe, "evaluations")
    keys = ("accuracy", "failed", "first_failure", "tokens")
    assert [[line[key] for key in keys] for line in together] == [[line[key] for key in keys] for line in alone[:2]]
    assert len(read(recipe, "scores")[0]["scores"]) == len(ANSWERS)


def test_a_check_beside_the_recipe_is_imported_when_the_recipe_is_read(
    recipe: Path, tmp_path_factory: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    loaded = Recipe.load(recipe)
    assert "failing" in sys.modules
    assert Recipe.parse(yaml.safe_load(loaded.yaml())) == loaded
