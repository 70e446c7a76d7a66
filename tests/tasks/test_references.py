"""How reference answers become token ids, and what is said of them before a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from hopd.assembly import build
from hopd.errors import HopdError, TaskError
from hopd.forecast.outlook import check_recipe
from hopd.recipe import Recipe
from hopd.tasks import Problem
from tests.tasks.letters import TOKENS, TURNS, letters, save_model

EOS, END = 1, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("models")
    ended = letters(template=TURNS.replace("<eos>", "<end>"))
    return {
        "student": save_model(path / "student", 0, tokenizer=letters(template=TURNS)),
        "teacher": save_model(path / "teacher", 1, tokenizer=letters(template=TURNS)),
        "small": save_model(path / "small", 1, rows=42, tokenizer=letters(template=TURNS)),
        "chat": save_model(path / "chat", 0, tokenizer=ended),
    }


def recipe(path: Path, models: dict[str, str], *answers: Any, student: str = "student", **changes: Any) -> Recipe:
    rows = [{"prompt": f"{i}+1", "more": {"deep": answer}} for i, answer in enumerate(answers)]
    (path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed = {"share": changes.pop("share", 1), "column": "more.deep"}
    rollout = {"prompts": 1, "full_tokens": 8, "prompt_tokens": 40, "off_policy": mixed} | changes.pop("rollout", {})
    content = {
        "name": "run",
        "output": str(path),
        "student": {"model": models[student]},
        "teacher": {"model": models[changes.pop("teacher", "teacher")]},
        "task": {"source": "file", "path": str(path / "p.jsonl"), **changes.pop("task", {})},
        "rollout": rollout,
        "horizon": {"controller": "full"},
        "training": {"steps": 2, "learning_rate": 1e-3},
    }
    return Recipe.parse(content | changes)


class Own:
    """Is a task of one's own, whose problems have references."""

    problems = (Problem(0, "1+1", reference="2"), Problem(1, "1+2", reference="3"))

    def score(self, problem: Problem, response: str) -> float:
        return float(response == problem.reference)


def references(made: Recipe) -> list[list[int]]:
    found = [prompt.reference for prompt in build(made).prompts.prompts]
    return [each.tolist() for each in found if each is not None]


def ids(text: str) -> list[int]:
    return [TOKENS.index(letter) for letter in text]


def test_a_text_or_a_message_is_tokenised_as_it_is_and_ends(models: dict[str, str], tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "ab"}
    made = recipe(tmp_path, models, "12", message, [message], " x ", "7<eos>")
    assert references(made) == [[*ids(text), EOS] for text in ("12", "ab", "ab", " x ", "7")]


def test_a_chat_ends_with_its_end_of_a_turn_where_that_ends_rollouts(models: dict[str, str], tmp_path: Path) -> None:
    chat: dict[str, Any] = {"task": {"chat": True}, "student": "chat"}
    assert references(recipe(tmp_path, models, "12", **chat)) == [[*ids("12"), EOS]]
    assert references(recipe(tmp_path, models, "12", **chat, rollout={"stop": ["<end>"]})) == [[*ids("12"), END]]
    plain = recipe(tmp_path, models, "12", rollout={"stop": ["<end>"]})
    assert references(plain) == [[*ids("12"), EOS]]


def test_it_ends_where_a_rollout_would_have_ended(models: dict[str, str], tmp_path: Path) -> None:
    made = recipe(tmp_path, models, "1<eos>23", "4#;5", "6", rollout={"stop": ["#;"]})
    parts = build(made)
    assert [p.reference.tolist() for p in parts.prompts.prompts if p.reference is not None] == [
        [*ids("1"), EOS],
        ids("4#;"),
        [*ids("6"), EOS],
    ]
    (note,) = [note for note in parts.prompts.notes if "behind an end" in note]
    assert note.startswith("references: 2 of 3 answers go on behind an end")
    assert "row 1)" in note


def test_long_ones_are_counted_and_cut_and_lengths_are_said(models: dict[str, str], tmp_path: Path) -> None:
    parts = build(recipe(tmp_path, models, "1", "1234567", "12345678", "1" * 20))
    assert [len(p.reference) for p in parts.prompts.prompts if p.reference is not None] == [2, 8, 9, 9]
    said = [note for note in parts.prompts.notes if note.startswith("references: ")]
    assert said[0].startswith("references: 4 answers, 10 tokens in the mean and at most 21; one without an end")
    assert said[1].startswith("references: 2 of 4 answers are longer than full_tokens = 8 and cut (the first: ")
    assert said[1].endswith("row 3)")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (None, "the reference answer is empty"),
        ("", "the reference answer is empty"),
        (" \n", "the reference answer is empty"),
        ([], "the reference answer is empty"),
        ({"role": "assistant", "content": None}, "the reference answer is empty"),
        ({"role": "user", "content": "1"}, "got other messages"),
        ([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}], "got other messages"),
        (72, "got int"),
        ("a\ud83d", "half of a character"),
    ],
)
def test_unusable_ones_are_refused_with_a_row_and_a_count(
    models: dict[str, str], tmp_path: Path, answer: Any, sentence: str
) -> None:
    with pytest.raises(TaskError) as error:
        build(recipe(tmp_path, models, "1", answer, answer))
    assert sentence in str(error.value)
    assert "p.jsonl, row 2: " in str(error.value)
    assert "(2 such rows)" in str(error.value)
    assert len(str(error.value)) <= 400


def test_problems_of_a_task_of_ones_own_have_their_references(models: dict[str, str], tmp_path: Path) -> None:
    made = recipe(tmp_path, models, "x").model_dump()
    made["task"] = {"source": f"{__name__}:Own"}
    made["rollout"]["off_policy"] = {"share": 0.5}
    assert references(Recipe.parse(made)) == [[*ids("2"), EOS], [*ids("3"), EOS]]


def test_a_column_that_is_not_there_is_an_error_with_the_nearest_name(models: dict[str, str], tmp_path: Path) -> None:
    rollout = {"off_policy": {"share": 0.5, "column": "more.dep"}}
    with pytest.raises(TaskError, match=r"no column 'more\.dep' for the reference \(did you mean 'more\.deep'\?\)"):
        build(recipe(tmp_path, models, "1", rollout=rollout))


def test_an_id_that_the_models_do_not_share_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(HopdError, match=r"row 2: a reference answer has the id 44 .* ids 0 to 41 only"):
        build(recipe(tmp_path, models, "1", ":;#", teacher="small"))


def test_an_outlook_says_the_share_and_what_repeats(models: dict[str, str], tmp_path: Path) -> None:
    made = recipe(tmp_path, models, "1", share=0.25, rollout={"samples": 4, "prompts": 2})
    said = list(check_recipe(made))
    assert any("8 rollouts, of which 25 % are reference answers" in line and "in the mean" not in line for line in said)
    assert any("about 48 generated a step (75 % of full rollouts)" in line for line in said)
    rollout = {"samples": 2, "off_policy": {"share": 1, "column": "more.deep"}}
    said = list(check_recipe(recipe(tmp_path, models, "1", rollout=rollout)))
    assert any("a step has that of a prompt 2 times in the mean: write samples: 1" in line for line in said)
    assert any("at most 0 generated a step" in line for line in said)
