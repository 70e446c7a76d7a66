"""How messages become the text that a student reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from hopd.errors import TaskError
from hopd.tasks import PromptFile, PromptSet, encode
from tests.tasks.letters import TURNS, letters

ASKED = [{"role": "user", "content": "1+1"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "it is "}]


def encoded(path: Path, *prompts: Any, **settings: Any) -> PromptSet:
    (path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    task = PromptFile(str(path / "p.jsonl"))
    return encode(task, letters(template=TURNS), chat=True, max_tokens=64, **settings)


def texts(prompts: PromptSet) -> list[str]:
    return [str(prompts.tokenizer.decode(prompt.ids)) for prompt in prompts.prompts]


def test_a_last_turn_of_the_assistant_is_continued_and_counted(tmp_path: Path) -> None:
    prompts = encoded(tmp_path, ASKED, BEGUN, [*ASKED, {"role": "assistant", "content": ""}])
    assert texts(prompts) == ["u 1+1<eos>a ", "u 1+1<eos>a it is ", "u 1+1<eos>a "]
    (note,) = prompts.notes
    assert note.startswith("2 of 3 prompts end with a turn of the assistant, which the student continues")
    assert "row 2)" in note


@pytest.mark.parametrize(("role", "noted"), [("system", False), ("tool", False), ("human", True)])
def test_a_last_turn_of_an_unknown_role_is_noted(tmp_path: Path, role: str, noted: bool) -> None:
    notes = encoded(tmp_path, ASKED, [{"role": role, "content": "1"}]).notes
    assert [f"1 of 2 prompts end with a turn of {role!r}" in note for note in notes] == [True] * noted


def test_options_reach_the_template_and_one_that_it_never_reads_is_noted(tmp_path: Path) -> None:
    prompts = encoded(tmp_path, "1+1", options={"enable_thinking": False, "thinking": True})
    assert texts(prompts) == ["u 1+1<eos>a ##"]
    assert prompts.notes == ("task.template.thinking changes nothing: the chat template never reads 'thinking'",)


def test_a_system_message_goes_before_prompts_that_have_none(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "2"}, *ASKED]
    prompts = encoded(tmp_path, "3", own, system="1")
    assert texts(prompts) == ["s 1<eos>u 3<eos>a ", "s 2<eos>u 1+1<eos>a "]
    (note,) = prompts.notes
    assert note.startswith("1 of 2 prompts have a system message of their own")


@pytest.mark.parametrize("messages", [[{"content": "1"}], [{"role": "assistant", "tool_calls": []}], [1], [[1]]])
def test_messages_without_role_or_content_are_refused_with_their_row(tmp_path: Path, messages: list[Any]) -> None:
    with pytest.raises(TaskError, match=r"p\.jsonl, row 2: the chat template refuses its messages"):
        encoded(tmp_path, "1", messages)


def test_half_a_character_is_refused_with_its_row_and_the_number_of_such_rows(tmp_path: Path) -> None:
    broken = [{"role": "user", "content": "ab\ud83d"}]
    with pytest.raises(TaskError, match=r"row 2: the prompt .*'\\ud83d', after 'u ab' \(2 such rows\)"):
        encoded(tmp_path, "1", broken, broken)
    (tmp_path / "p.jsonl").write_text('{"prompt": "ab\\ud83d"}\n')
    with pytest.raises(TaskError, match=r"row 1: the prompt holds half of a character"):
        encode(PromptFile(str(tmp_path / "p.jsonl")), letters(), chat=False, max_tokens=64)


def test_equal_prompts_are_tokenised_once_and_share_their_ids(tmp_path: Path) -> None:
    first, second, third = encoded(tmp_path, BEGUN, "2", BEGUN).prompts
    assert first.ids is third.ids
    assert first.ids is not second.ids
