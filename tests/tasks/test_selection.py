"""Which rows of a file are used: `filter`, `unique` and `limit`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from hopd.errors import RecipeError, TaskError
from hopd.tasks import PromptFile
from tests.tasks.test_files import ROWS, lines


def test_unique_keeps_the_first_of_equal_prompts_for_each_teacher(tmp_path: Path) -> None:
    chat = {"prompt": [{"role": "user", "content": "b"}], "judge": "small"}
    rows = [
        {"prompt": "a", "judge": "small"},
        chat,
        {"prompt": "a", "judge": "large"},
        chat,
        {"prompt": "a", "judge": "small"},
    ]
    path = lines(tmp_path / "rows.jsonl", *rows)
    task = PromptFile(path, teacher="judge", unique=True)
    assert [problem.id for problem in task.problems] == [0, 1, 2]
    assert task.notes == [f"2 rows of {path} are left out: their prompts came before (unique)"]
    assert [problem.id for problem in PromptFile(path, unique=True, limit=1).problems] == [0]
    assert len(PromptFile(path, teacher="judge").problems) == 5


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "keeping.py").write_text(
        "def large(row): return row['judge'] == 'large'\n"
        "def nothing(row): pass\n"
        "def none(row): return False\n"
        "def fails(row): return row['answer'] / 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("keeping", None)


@pytest.mark.usefixtures("keeping")
def test_a_filter_sees_whole_rows_and_a_row_keeps_its_number(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for path in (lines(tmp_path / "rows.jsonl", *ROWS), str(tmp_path / "rows.parquet")):
        task = PromptFile(path, filter="keeping:large", limit=1)
        assert [(problem.id, problem.prompt) for problem in task.problems] == [(1, "2 + 2?")]
        assert task.notes == [f"1 rows of {path} are left out: keeping:large does not keep them"]


@pytest.mark.usefixtures("keeping")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fails", r"row 1: the filter keeping:fails failed with TypeError: unsupported"),
        ("nothing", r"row 1: the filter keeping:nothing returned nothing; it must return True"),
        ("none", r"rows\.jsonl has no rows that keeping:none keeps"),
    ],
)
def test_a_filter_that_cannot_work_is_an_error_that_names_it(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        _ = PromptFile(lines(tmp_path / "rows.jsonl", *ROWS), filter=f"keeping:{name}").problems


def test_a_filter_that_is_not_there_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="filter 'nowhere:keep': there is no module nowhere"):
        PromptFile(str(tmp_path / "rows.jsonl"), filter="nowhere:keep")
