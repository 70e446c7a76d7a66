"""How rows are read: nested columns, configs, and what cannot be read."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from hopd.errors import TaskError
from hopd.tasks import PromptFile
from hopd.tasks.rows import find, names, read

NESTED = [{"text": "1+1=", "reward": {"truth": "2", "more": {"deep": [1]}}}] * 2


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(params=["jsonl", "parquet", "directory"])
def nested(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "jsonl":
        return lines(tmp_path / "rows.jsonl", *NESTED)
    if request.param == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(NESTED), tmp_path / "rows.parquet")
        return str(tmp_path / "rows.parquet")
    datasets.Dataset.from_list(NESTED).save_to_disk(tmp_path / "rows")
    return str(tmp_path / "rows")


def test_a_column_may_be_a_path_into_another(nested: str) -> None:
    assert PromptFile(nested, prompt="text", answer="reward.truth").problems[1].answer == "2"
    assert PromptFile(nested, prompt="text", answer="reward.more.deep").problems[1].answer == [1]


def test_a_path_that_leads_nowhere_is_an_error_with_the_nearest_one(nested: str) -> None:
    with pytest.raises(TaskError, match=r"no column 'reward\.trut' for the answer \(did you mean 'reward\.truth'\?\)"):
        _ = PromptFile(nested, prompt="text", answer="reward.trut").problems


def test_a_column_whose_own_name_has_a_dot_wins() -> None:
    row = {"a.b": 1, "a": {"b": 2, "c": 3}, "d.e": {"f": 4}, "g": None}
    assert [find(row, column) for column in ("a.b", "a.c", "d.e.f", "g.h")] == [1, 3, 4, None]
    assert list(names(row)) == ["a.b", "a", "a.b", "a.c", "d.e", "d.e.f", "g"]
    with pytest.raises(KeyError):
        find(row, "a.b.c")


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path) -> None:
    rows = [{"a": 1, "b.c": 2, "b": {"d": 3}, "e": 4}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    assert list(read(path, "train", None, ["a"])) == [{"a": 1}]
    assert list(read(path, "train", None, ["b.c"])) == [{"b.c": 2, "b": {"d": 3}}]
    assert list(read(path, "train", None, ["a", "missing"])) == rows  # the error tells which columns there are


def test_config_picks_one_part_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for part in ("main", "socratic"):
        (tmp_path / "set" / part).mkdir(parents=True)
        pyarrow.parquet.write_table(pa.Table.from_pylist([{"prompt": part}]), tmp_path / "set" / part / "train.parquet")
    parts = "".join(f"- config_name: {part}\n  data_files: {part}/*\n" for part in ("main", "socratic"))
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    source = str(tmp_path / "set")
    assert PromptFile(source, config="socratic").problems[0].prompt == "socratic"
    with pytest.raises(
        TaskError, match=r"is made of main, socratic, of which task\.config names one; write config: main"
    ):
        _ = PromptFile(source).problems
    with pytest.raises(TaskError, match=r"write config: main, not 'mian'"):
        _ = PromptFile(source, config="mian").problems


def test_a_link_to_nothing_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to("moved.jsonl")
    with pytest.raises(TaskError, match=r"rows\.jsonl is a link to moved\.jsonl, which does not exist"):
        _ = PromptFile(str(tmp_path / "rows.jsonl")).problems


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000])
def test_json_that_python_refuses_is_an_error_that_names_the_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": ' + value + "}\n")
    with pytest.raises(TaskError, match=r"rows\.jsonl, line 2: ") as error:
        _ = PromptFile(str(tmp_path / "rows.jsonl")).problems
    assert len(str(error.value)) < 400


def test_a_parquet_text_that_is_not_utf8_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"ab\xff"))
    pyarrow.parquet.write_table(pa.table({"prompt": texts}), tmp_path / "rows.parquet")
    with pytest.raises(TaskError, match=r"rows\.parquet, row 3: not UTF-8"):
        _ = PromptFile(str(tmp_path / "rows.parquet")).problems
