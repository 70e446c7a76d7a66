"""Runs whose teacher reads another prompt than the student: bits, costs, resumption, and errors in words."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hopd.assembly import build
from hopd.assembly.prompts import build_prompts
from hopd.distiller import Distiller
from hopd.errors import HopdError, RecipeError, TaskError
from hopd.forecast.preflight import preflight
from hopd.model import load
from hopd.recipe import Recipe
from hopd.run.progress import Progress
from tests.teacher.scripted import STUDENT, TEACHER, equal

ROWS = [
    {"q": f"{n}72+185*b:", "copy": f"{n}72+185*b:", "x": {"shown": f"a{n}72+185:#{n}72+185*b:"}, "who": "one"}
    for n in range(8)
]
CUT = {"controller": "truncated", "tokens": 8}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(out: Path, own: dict[str, Any] | None = None, rows: Any = ROWS, **changes: Any) -> Recipe:
    if rows is not None:
        write(out / "p.jsonl", rows)
    content = {
        "name": "run",
        "output": str(out),
        "student": {"model": STUDENT},
        "teacher": {"model": TEACHER} | (own or {}),
        "task": {"source": "file", "path": str(out / "p.jsonl"), "prompt": "q"},
        "rollout": {"prompts": 4, "full_tokens": 24},
        "horizon": CUT,
        "training": {"steps": 3, "learning_rate": 1e-4},
    }
    return Recipe.parse(content | changes)


def train(made: Recipe, resume: bool = False) -> Path:
    return Distiller.of(made, resume=resume, progress=Progress(quiet=True)).train().directory.path


def weights(run: Path) -> Any:
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors")


def costs(run: Path) -> dict[str, Any]:
    account: dict[str, Any] = json.loads((run / "ledger.json").read_text())["run"]
    return account


HORIZONS: list[dict[str, Any]] = [
    {"horizon": CUT, "window": {"kind": "random", "tokens": 5}},
    {"horizon": CUT | {"continue": True}, "objective": {"estimator": "sampled", "gamma": 0.9}},
]


@pytest.mark.parametrize("changes", HORIZONS, ids=["window", "continued"])
def test_a_run_with_the_students_prompts_as_the_teachers_has_the_same_bits(tmp_path, changes):
    runs = [train(recipe(tmp_path, own, name=str(bool(own)), **changes)) for own in ({}, {"prompt": "copy"})]
    assert equal(*map(weights, runs))
    without, given = map(costs, runs)
    prompts = 4 * 3 if changes["horizon"] == CUT else None
    if prompts:
        assert given["scored_tokens"] == without["scored_tokens"] + prompts * len(ROWS[0]["q"])
    assert given["flops"] == without["flops"]


def test_another_prompt_teaches_something_else_and_costs_more(tmp_path):
    runs = [train(recipe(tmp_path, own, name=str(bool(own)))) for own in ({}, {"prompt": "x.shown"})]
    assert not equal(*map(weights, runs))
    without, given = map(costs, runs)
    assert given["flops"]["teacher"] > without["flops"]["teacher"]
    assert given["flops"]["update"] == pytest.approx(without["flops"]["update"], rel=0.2)


def test_rollouts_that_continue_resume_to_the_same_bits(tmp_path):
    changes: dict[str, Any] = {"horizon": CUT | {"continue": True}, "checkpoint": {"every": 1}}
    own = {"prompt": "x.shown"}
    whole = train(recipe(tmp_path, own, name="whole", **changes))
    short = {"training": {"steps": 1, "learning_rate": 1e-4}}
    train(recipe(tmp_path, own, name="short", **changes, **short))
    assert equal(weights(whole), weights(train(recipe(tmp_path, own, name="short", **changes), resume=True)))


def test_what_the_teacher_reads_is_marked(tmp_path):
    made = recipe(tmp_path, {"prompt": "x.shown"}, training={"steps": 1, "learning_rate": 1e-4})
    train(made)
    write(tmp_path / "p.jsonl", [{**row, "x": {"shown": "7"}} for row in ROWS])
    with pytest.raises(RecipeError, match="the prompts of the teacher are others: their texts"):
        train(made.with_changes(training={"steps": 2, "learning_rate": 1e-4}), resume=True)


def test_the_packaged_task_offers_a_worked_solution_and_check_says_both_lengths(tmp_path):
    task = {"source": "addition", "steps": 1, "size": 16}
    made = recipe(tmp_path, {"model": STUDENT, "prompt": "solution"}, rows=None, task=task)
    parts = build(made, resume=None)
    prompt, problem = parts.prompts.prompts[0], parts.prompts.problems[0]
    assert prompt.teacher_ids is not None
    shown = str(parts.student.tokenizer.decode(prompt.teacher_ids))
    assert shown.endswith(str(problem.prompt))
    assert parts.prompts.task.score(problem, shown.removesuffix(str(problem.prompt))) == 1
    lines = list(preflight(parts))
    assert any("fits; with the prompts of the teacher, 67" in line for line in lines)  # 33 + 10 + 24
    parts.close()


ERRORS: list[tuple[dict[str, Any], Any, type[HopdError], str]] = [
    (
        {"prompt": "solutio"},
        [ROWS[0] | {"solution": "1"}],
        TaskError,
        "row 1: no column 'solutio' for the teacher's pr",
    ),
    (
        {"prompt": "copy"},
        [ROWS[0], ROWS[1] | {"copy": " "}],
        TaskError,
        r"row 2, the teacher's prompt \(copy\): the pro",
    ),
    ({"prompt": "copy"}, [ROWS[0] | {"copy": 7}], TaskError, "a prompt is a text or a list of chat messages, got int"),
    ({"prompt": "copy"}, [ROWS[0] | {"copy": []}], TaskError, "the prompt is empty"),
    (
        {"prompt": "copy"},
        [ROWS[0] | {"copy": "\ud800"}],
        TaskError,
        "row 1, the teacher's prompt: the prompt holds half",
    ),
    ({"prompt": "copy"}, [ROWS[0] | {"copy": [{"role": "user", "content": "1"}]}], TaskError, "write chat: true"),
    ({"system": "Think."}, ROWS, RecipeError, "teacher has template or system, which are for the chat template"),
    ({"template": {"tokenize": 1}}, ROWS, RecipeError, r"teacher\.template\.tokenize is set by hopd"),
    ({"prompt": ""}, ROWS, RecipeError, r"teacher\.prompt: string should have at least 1 character"),
]


@pytest.mark.parametrize(("own", "rows", "error", "words"), ERRORS, ids=[words[-24:] for *_, words in ERRORS])
def test_what_cannot_be_read_is_refused_in_words(tmp_path, own, rows, error, words):
    with pytest.raises(error, match=words) as raised:
        build(recipe(tmp_path, own, rows), resume=None)
    assert len(str(raised.value)) <= 400


def test_a_prompt_that_does_not_fit_the_teachers_context_is_refused(tmp_path):
    rows = [ROWS[0], ROWS[1] | {"copy": "1" * 1010}, ROWS[2] | {"copy": "1" * 1100}]
    few = {"prompts": 2, "full_tokens": 24}
    for read, words in (
        (rows[:2], r"row 2, .* write full_tokens: 14 or less, or shorten"),
        (rows, r"\(1024\); shorten"),
    ):
        with pytest.raises(RecipeError, match=words):
            list(preflight(build(recipe(tmp_path, {"prompt": "copy"}, read, rollout=few), resume=None)))


def test_only_the_rows_of_a_teacher_need_its_column(tmp_path):
    rows = [ROWS[0], {"q": "172+185*b:", "who": "two"}]
    teachers = {"one": {"model": TEACHER, "prompt": "copy"}, "two": {"model": TEACHER}}
    task = {"source": "file", "path": str(tmp_path / "p.jsonl"), "prompt": "q", "teacher": "who"}
    rollout = {"prompts": 2, "full_tokens": 24}
    made = recipe(tmp_path, rows=rows, task=task, rollout=rollout, teacher=None, teachers=teachers)
    own = [prompt.teacher_ids is not None for prompt in build(made, resume=None).prompts.prompts]
    assert own == [True, False]


def test_a_task_without_columns_and_a_student_with_a_prompt_are_refused(tmp_path):
    with pytest.raises(TaskError, match="prompt 0: no column 'answer' for the teacher's prompt; it has solution"):
        build(recipe(tmp_path, {"prompt": "answer"}, task={"source": "addition", "size": 4}), resume=None)
    with pytest.raises(RecipeError, match=r"unknown key student\.prompt"):
        recipe(tmp_path, student={"model": STUDENT, "prompt": "q"})


def test_a_divergence_is_from_the_teacher_with_its_own_prompts(tmp_path):
    task = {"source": "file", "path": str(tmp_path / "p.jsonl"), "prompt": "q"}
    found = {}
    for column in (None, "copy", "x.shown"):
        own = {"prompt": column} if column else {}
        parts = build(recipe(tmp_path, own, evaluation={"task": task, "measure": "divergence"}), resume=None)
        assert parts.evaluator
        found[column] = parts.evaluator.run().measure
        for answer in parts.evaluator.answers:
            assert answer.prompt.ids.tolist() == parts.student.tokenizer(ROWS[answer.prompt.id]["q"]).input_ids
    assert found[None] == found["copy"]
    assert found["x.shown"].score != found["copy"].score


def test_the_students_prompt_is_rendered_with_the_teachers_system_message_and_variables(tmp_path):
    student = load(STUDENT)
    student.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }};{% endfor %}{{ a }}{{ b }}"
    )
    write(
        tmp_path / "p.jsonl",
        [{"q": "1"}, {"q": [{"role": "system", "content": "5"}, {"role": "user", "content": "2"}]}],
    )
    task = {
        "source": "file",
        "path": str(tmp_path / "p.jsonl"),
        "prompt": "q",
        "chat": True,
        "template": {"a": 3, "b": 3},
    }
    own = {"system": "7", "template": {"b": 4, "c": 5}}
    made = recipe(tmp_path, own, rows=None, task=task | {"system": "6"})
    prompts = build_prompts(made.task, student, made.rollout, {}, made.own_prompts)
    read = [[student.tokenizer.decode(each.ids) for each in (prompt, prompt.of_teacher)] for prompt in prompts.prompts]
    assert read == [["s6;u1;33", "s7;u1;34"], ["s5;u2;33", "s5;u2;34"]]
    assert "teacher: teacher.template.c changes nothing: the chat template never reads 'c'" in prompts.notes
    assert any(note.startswith("teacher: 1 of 2 prompts have a system message of their own") for note in prompts.notes)
