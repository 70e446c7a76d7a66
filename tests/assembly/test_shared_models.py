"""Tests that weights which several parts of a recipe name are read once, and trained in one of them only."""

import json
import shutil
from typing import Any

import pytest
import torch

from hopd.assembly import models
from hopd.assembly.models import load_models
from hopd.distiller import Distiller
from hopd.model import load
from hopd.model.loading import resolve
from hopd.recipe import Recipe
from hopd.run.progress import Progress

STUDENT, TEACHER = "package:hopd/quickstart/student", "package:hopd/quickstart/teacher"


def recipe(output, name="run", precision="fp32", **changes):
    content: dict[str, Any] = {
        "name": name,
        "output": str(output),
        "student": {"model": STUDENT},
        "teacher": {"model": STUDENT},
        "task": {"source": "addition", "steps": 3, "size": 40},
        "rollout": {"prompts": 4, "full_tokens": 20},
        "horizon": {"controller": "full"},
        "training": {"steps": 2, "learning_rate": 1e-3, "precision": precision},
    }
    return Recipe.parse(content | changes)


@pytest.fixture
def read(monkeypatch):
    """Returns the list of what is read from here on."""
    sources = list[str]()

    def counted(source, **options):
        sources.append(source)
        return load(source, **options)

    monkeypatch.setattr(models, "load", counted)
    return sources


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_a_teacher_with_the_students_weights_has_a_copy(tmp_path, read, precision, lora):
    made = load_models(recipe(tmp_path, precision=precision, lora=lora), "cpu")
    assert read == [STUDENT]
    teacher = made.teachers[None].model
    memory = {parameter.data_ptr() for parameter in made.student.model.parameters()}
    assert not memory & {parameter.data_ptr() for parameter in teacher.parameters()}
    assert not any("lora" in name for name, _ in teacher.named_parameters())
    alone = load_models(recipe(tmp_path, precision=precision, student={"model": TEACHER}), "cpu").teachers[None].model
    assert {parameter.dtype for parameter in teacher.parameters()} == {
        torch.float32 if precision == "fp32" else torch.bfloat16
    }
    for name, tensor in alone.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor)


def test_teachers_with_the_same_weights_are_one_model(tmp_path, read):
    teachers = {"algebra": {"model": TEACHER}, "logic": {"model": TEACHER}, "fewer": {"model": TEACHER, "layers": [0]}}
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1 + 1", "to": "logic"}\n')
    task = {"source": "file", "path": str(tmp_path / "prompts.jsonl"), "prompt": "prompt", "teacher": "to"}
    made = load_models(recipe(tmp_path, teacher=None, teachers=teachers, task=task), "cpu")
    assert read == [STUDENT, TEACHER, TEACHER]
    assert made.teachers["algebra"] is made.teachers["logic"]
    assert made.teachers["algebra"] is not made.teachers["fewer"]
    assert len(made.notes) == len(set(made.notes))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_the_same_whether_the_weights_are_in_one_directory_or_two(tmp_path, precision):
    shutil.copytree(resolve(STUDENT), tmp_path / "elsewhere")
    losses = []
    for name, teacher in (("one", STUDENT), ("two", str(tmp_path / "elsewhere"))):
        run = Distiller.of(recipe(tmp_path, name, precision, teacher={"model": teacher}), progress=Progress(quiet=True))
        run.train()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([(json.loads(line)["loss"], json.loads(line)["gradient_norm"]) for line in lines])
    assert losses[0] == losses[1]
    assert losses[0][1][0] > 0
