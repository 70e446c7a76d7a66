"""What models cannot read is refused, and what a person may not have meant is noted, with a count and a row."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import TaskError
from hopd.rollout import Prompt
from hopd.tasks import PromptFile, PromptSet, encode
from hopd.tasks.findings import check_embedded, findings, read_otherwise
from tests.tasks.letters import TOKENS, TURNS, letters

STOPS = {1}


def encoded(path: Path, *prompts: Any, **settings: Any) -> PromptSet:
    """The prompts of a file; `post` and `template` are the tokenizer's."""
    tokenizer = letters(settings.pop("post", None), settings.pop("template", None))
    (path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return encode(PromptFile(str(path / "p.jsonl")), tokenizer, max_tokens=64, **{"chat": False, **settings})


def test_an_id_beyond_the_embedding_is_refused_with_row_id_and_model(tmp_path: Path) -> None:
    prompts = encoded(tmp_path, "12", "1+;", "2;")
    check_embedded(prompts, prompts.prompts, "small", len(TOKENS))
    with pytest.raises(TaskError, match=r"p\.jsonl, row 2: .* id 43 \(';'\).* of small has 43 rows \(2 such rows\)"):
        check_embedded(prompts, prompts.prompts, "small", TOKENS.index(";"))
    check_embedded(prompts, prompts.prompts[:1], "small", TOKENS.index(";"))  # another teacher's prompts


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=20), st.integers(1, 10))
def test_exactly_the_prompts_with_an_id_beyond_are_counted(ids: list[list[int]], rows: int) -> None:
    prompts = [Prompt(number, torch.tensor(each)) for number, each in enumerate(ids)]
    beyond = [number for number, each in enumerate(ids) if max(each) >= rows]
    made = PromptSet(PromptFile("p.jsonl"), letters(), prompts, {})
    if not beyond:
        check_embedded(made, prompts, "small", rows)
        return
    with pytest.raises(TaskError) as error:
        check_embedded(made, prompts, "small", rows)
    assert f"row {beyond[0] + 1}:" in str(error.value)
    assert (f"({len(beyond)} such rows)" in str(error.value)) == (len(beyond) > 1)


def test_a_doubled_bos_is_noted(tmp_path: Path) -> None:
    (note,) = findings(encoded(tmp_path, "12", "<bos>1", "<bos>2", post="<bos> $A"), STOPS)
    assert note.startswith("2 of 3 prompts begin with '<bos>' twice")
    assert note.endswith("p.jsonl, row 2)")
    assert not list(findings(encoded(tmp_path, "12", "1", "<bos>2"), STOPS))


def test_a_tokenizer_that_ends_every_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"row 1: the tokenizer itself ends .*'<eos>'.*\(2 such rows\).*add_eos_token"):
        list(findings(encoded(tmp_path, "12", "34", post="<bos> $A <eos>"), {2}))  # also where models stop elsewhere


def test_an_end_that_was_typed_is_noted_and_not_refused(tmp_path: Path) -> None:
    ended, inside = findings(encoded(tmp_path, "12", "1<end>2", "12<end>", post="<bos> $A"), {2})
    assert ended.startswith("1 of 3 prompts end with '<end>'")
    assert "row 3)" in ended
    assert inside.startswith("1 of 3 prompts have an end of sequence inside")
    assert "row 2)" in inside


def test_an_end_is_noted_in_the_text_of_a_message_and_not_where_the_template_puts_it(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1<eos>2"}]
    (note,) = findings(encoded(tmp_path, "12", messages, chat=True, template=TURNS), STOPS)
    assert note.startswith("1 of 2 prompts have '<eos>' in the text of a message")
    assert "row 2)" in note


def test_a_template_that_ends_with_an_end_is_noted(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}"
    (note,) = findings(encoded(tmp_path, "12", chat=True, template=template), STOPS)
    assert note.startswith("1 of 1 prompts end with '<eos>'")


def test_repeated_prompts_are_noted_with_what_to_write(tmp_path: Path) -> None:
    (note,) = findings(encoded(tmp_path, "1", "2", "1", "1"), STOPS)
    assert note.startswith("2 of 4 prompts repeat an earlier one (the first: row 3 is row 1 again)")
    assert "task: {unique: true}" in note


def test_a_teacher_with_another_template_is_noted_with_what_differs(tmp_path: Path) -> None:
    prompts = encoded(tmp_path, "12", "34", chat=True, template=TURNS)
    assert not list(read_otherwise(prompts, prompts.prompts, letters(template=TURNS), "big"))
    assert not list(read_otherwise(prompts, prompts.prompts, letters(), "big"))  # it has no template to compare
    other = letters(template=TURNS.replace("a {% endif %}", "b {% endif %}"))
    (note,) = read_otherwise(prompts, prompts.prompts, other, "big")
    assert "2 of the first 2" in note
    assert "row 1: 'a ' would be 'b '" in note
    (note,) = read_otherwise(prompts, prompts.prompts, letters(template="{{ raise_exception('never') }}"), "big")
    assert "refuses" in note
