"""What preflight says of the prompts of training and of evaluation, with the models that read them."""

import json
from pathlib import Path
from typing import Any

import pytest

from hopd.assembly import build
from hopd.errors import HopdError, RecipeError, TaskError
from hopd.forecast.preflight import preflight
from hopd.recipe import Recipe
from tests.tasks.letters import TURNS, letters, save_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("models")
    other = letters(template=TURNS.replace("a {% endif %}", "b {% endif %}"))
    return {
        "student": save_model(path / "student", 0, tokenizer=letters(template=TURNS)),
        "teacher": save_model(path / "teacher", 1, tokenizer=letters(template=TURNS)),
        "small": save_model(path / "small", 1, rows=43, tokenizer=letters(template=TURNS)),
        "other": save_model(path / "other", 1, tokenizer=other),
        "ending": save_model(path / "ending", 0, tokenizer=letters("$A <eos>")),
    }


def recipe(path: Path, *pair: str, prompts: tuple[Any, ...], **sections: Any) -> Recipe:
    return Recipe.parse(
        {
            "name": "run",
            "output": str(path),
            "student": {"model": pair[0]},
            "teacher": {"model": pair[1]},
            "task": task(path / "p.jsonl", *prompts) | sections.pop("task", {}),
            "rollout": {"prompts": 2, "full_tokens": sections.pop("full", 16), "prompt_tokens": 64},
            "horizon": {"controller": "full"},
            "training": {"steps": 2, "learning_rate": 1e-3},
            **sections,
        }
    )


def task(path: Path, *prompts: Any, **keys: Any) -> dict[str, Any]:
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "2"}) + "\n" for prompt in prompts))
    return {"source": "file", "path": str(path), **keys}


@pytest.mark.parametrize("pair", [("student", "small"), ("small", "teacher")])
def test_an_id_beyond_either_models_embedding_is_refused(
    models: dict[str, str], tmp_path: Path, pair: tuple[str, str]
) -> None:
    made = recipe(tmp_path, models[pair[0]], models[pair[1]], prompts=("1+1", "2=;", "3"))
    with pytest.raises(TaskError, match=r"p\.jsonl, row 2: .*id 43 \(';'\).*small has 43 rows;"):
        build(made)


def test_an_id_beyond_the_students_embedding_is_refused_in_evaluation_prompts_too(
    models: dict[str, str], tmp_path: Path
) -> None:
    evaluation = {"task": task(tmp_path / "e.jsonl", "2=;", answer="answer", check="exact")}
    with pytest.raises(TaskError, match=r"e\.jsonl, row 1: .*small has 43 rows"):
        build(recipe(tmp_path, models["small"], models["small"], prompts=("1", "2"), evaluation=evaluation))


def test_a_tokenizer_that_ends_prompts_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="the tokenizer itself ends the prompt with '<eos>'"):
        build(recipe(tmp_path, models["ending"], models["teacher"], prompts=("1", "2")))


def test_notes_on_both_tasks_and_on_the_teachers_template_are_said(models: dict[str, str], tmp_path: Path) -> None:
    chat = {"chat": True, "template": {"enable_thinkin": False}}
    evaluation = {"task": task(tmp_path / "e.jsonl", "1", "1", "1" * 70, answer="answer", check="exact")}
    made = recipe(
        tmp_path, models["student"], models["other"], prompts=("1", "2"), task=chat, full=8, evaluation=evaluation
    )
    notes = list(preflight(build(made)))
    assert any("task.template.enable_thinkin changes nothing" in note for note in notes)
    assert any("other reads the student's prompts; by its own tokenizer" in note for note in notes)
    assert "evaluation: prompts: 2, and 1 longer than 64 tokens dropped" in notes
    assert any(note.startswith("evaluation: 1 of 2 prompts repeat an earlier one") for note in notes)


def test_evaluation_prompts_without_room_are_refused_and_those_with_little_are_noted(
    models: dict[str, str], tmp_path: Path
) -> None:
    def evaluating(*prompts: str) -> Recipe:
        evaluation = {"task": task(tmp_path / "e.jsonl", *prompts, answer="answer", check="exact"), "at_start": False}
        pair = models["student"], models["teacher"]
        return recipe(tmp_path, *pair, prompts=("1", "2"), full=50, evaluation=evaluation)

    said = list(preflight(build(evaluating("1" * 30, "2" * 14, "3" * 15))))
    (cut,) = [note for note in said if "answers are cut" in note]
    assert cut.startswith("evaluation: 2 of 3 prompts leave less than full_tokens = 50 in the context of")
    assert "e.jsonl, row 1)" in cut
    with pytest.raises(
        RecipeError, match=r"evaluation: 1 of 2 prompts fill the context .*64 tokens.*e\.jsonl, row 2\)"
    ):
        list(preflight(build(evaluating("1", "2" * 64))))


@pytest.mark.parametrize("prompt", ["ab\ud83d", [{"role": "user", "content": "a\ud83d"}], [], [{"role": "user"}]])
def test_sentences_on_prompts_are_short(models: dict[str, str], tmp_path: Path, prompt: Any) -> None:
    with pytest.raises(HopdError) as error:
        build(recipe(tmp_path, models["student"], models["teacher"], prompts=("1", prompt), task={"chat": True}))
    assert len(str(error.value)) <= 400
