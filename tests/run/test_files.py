"""Lines of JSON are cut at "\\n" alone, and hold no NaN."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import CheckpointError
from hopd.run.files import append_line, change_lines, json_text, read_lines

LINES = st.lists(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=["Cs"])) | st.integers()))


@given(LINES.map(lambda lines: [{k: v for k, v in line.items() if k.isprintable()} for line in lines]))
def test_lines_with_any_characters_come_back(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    for line in lines:
        append_line(path, line)
    assert read_lines(path) == lines


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_half_written_last_line_is_left_out_and_the_others_are_whole(tmp_path, character):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"step": 1, "text": f"a{character}b"})
    append_line(path, {"step": 2, "text": character})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "te')
    change_lines(path, lambda line: line if line["step"] == 1 else None)
    assert read_lines(path) == [{"step": 1, "text": f"a{character}b"}]


def test_numbers_that_are_not_finite_are_null():
    assert json.loads(json_text({"a": [float("nan"), 1.5], "b": {"c": (float("inf"),)}})) == {
        "a": [None, 1.5],
        "b": {"c": [None]},
    }


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "lines.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"lines\.jsonl cannot be written \(Is a directory\); write an output"):
        append_line(tmp_path / "lines.jsonl", {})
