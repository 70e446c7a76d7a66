import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from hopd.errors import RecipeError, TaskError
from hopd.tasks import PromptFile

ROWS = [
    {"prompt": "1 + 1?", "answer": "2", "judge": "small"},
    {"prompt": "2 + 2?", "answer": "4", "judge": "large"},
    {"prompt": "3 + 3?", "answer": "6", "judge": "small"},
]


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_problem_is_a_line_of_a_jsonl_file(tmp_path: Path) -> None:
    task = PromptFile(lines(tmp_path / "rows.jsonl", *ROWS), answer="answer")
    assert [(p.id, p.prompt, p.answer) for p in task.problems] == [
        (0, "1 + 1?", "2"),
        (1, "2 + 2?", "4"),
        (2, "3 + 3?", "6"),
    ]


def test_a_problem_is_a_row_of_a_parquet_file(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=2)
    jsonl = PromptFile(lines(tmp_path / "rows.jsonl", *ROWS), answer="answer", teacher="judge")
    parquet = PromptFile(str(tmp_path / "rows.parquet"), answer="answer", teacher="judge")
    assert parquet.problems == jsonl.problems


def test_a_problem_is_a_row_of_a_datasets_directory(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    task = PromptFile(str(tmp_path / "rows"), answer="answer")
    assert [(p.prompt, p.answer) for p in task.problems] == [(row["prompt"], row["answer"]) for row in ROWS]


def test_split_picks_one_part_of_a_datasets_directory(tmp_path: Path) -> None:
    parts = {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS[1:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "rows")
    assert [p.prompt for p in PromptFile(str(tmp_path / "rows"), split="test").problems] == ["2 + 2?", "3 + 3?"]
    with pytest.raises(TaskError, match="no dataset with a split 'tset'"):
        _ = PromptFile(str(tmp_path / "rows"), split="tset").problems


def test_chat_messages_stay_chat_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    rows = [{"prompt": messages}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert PromptFile(lines(tmp_path / "rows.jsonl", *rows)).problems[0].prompt == messages
    assert PromptFile(str(tmp_path / "rows.parquet")).problems[0].prompt == messages


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", {"question": "1 + 1?", "solution": 2})
    (problem,) = PromptFile(path, prompt="question", answer="solution").problems
    assert (problem.prompt, problem.answer) == ("1 + 1?", 2)


def test_the_teacher_column_says_who_scores_a_row(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", *ROWS)
    assert [p.teacher for p in PromptFile(path, teacher="judge").problems] == ["small", "large", "small"]
    assert [p.teacher for p in PromptFile(path).problems] == [None, None, None]


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"prompt": "a"}\n\n  \n{"prompt": "b"}\n', encoding="utf-8")
    assert [(p.id, p.prompt) for p in PromptFile(str(path)).problems] == [(0, "a"), (1, "b")]


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_limit_takes_the_first_rows(tmp_path: Path, limit: int, expected: int) -> None:
    task = PromptFile(lines(tmp_path / "rows.jsonl", *ROWS), limit=limit)
    assert [p.prompt for p in task.problems] == [row["prompt"] for row in ROWS[:expected]]


def test_rows_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\nno JSON\n', encoding="utf-8")
    assert len(PromptFile(str(path), limit=1).problems) == 1


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet"])
def test_a_missing_file_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(TaskError, match=rf"{name} does not exist \(looked in {Path.cwd()}\)"):
        _ = PromptFile(str(tmp_path / name)).problems


def test_a_missing_column_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", *ROWS)
    with pytest.raises(TaskError, match=r"row 1: no column 'promt' for the prompt \(did you mean 'prompt'\?\); it has"):
        _ = PromptFile(path, prompt="promt").problems
    with pytest.raises(TaskError, match=r"no column 'answers' for the answer \(did you mean 'answer'\?\)"):
        _ = PromptFile(path, answer="answers").problems
    with pytest.raises(TaskError, match=r"no column 'jugde' for the teacher \(did you mean 'judge'\?\)"):
        _ = PromptFile(path, teacher="jugde").problems


def test_a_column_missing_from_one_row_names_that_row(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"row 2: no column 'answer' for the answer; it has prompt"):
        _ = PromptFile(lines(tmp_path / "rows.jsonl", ROWS[0], {"prompt": "a"}), answer="answer").problems


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "  \n",
        None,
        [],
        [{"role": "user", "content": " "}],
        [{"role": "user", "content": []}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "text", "text": ""}]}],
    ],
)
def test_an_empty_prompt_is_an_error_that_names_the_row(tmp_path: Path, prompt: Any) -> None:
    with pytest.raises(TaskError, match=r"rows\.jsonl, row 2: the prompt is empty"):
        _ = PromptFile(lines(tmp_path / "rows.jsonl", ROWS[0], {"prompt": prompt})).problems


@pytest.mark.parametrize("answer", [math.nan, math.inf, None, "", " ", [], {}, "a\udc00"])
def test_answers_that_compare_with_nothing_are_counted_with_the_first_row(tmp_path: Path, answer: Any) -> None:
    path = lines(tmp_path / "rows.jsonl", ROWS[0], *[{"prompt": "a", "answer": answer}] * 3)
    with pytest.raises(TaskError, match=r"rows\.jsonl, row 2: the answer .* scored wrong \(3 such rows\)"):
        _ = PromptFile(path, answer="answer").problems
    assert len(PromptFile(path).problems) == 4  # nobody asks for the answers


@pytest.mark.parametrize("judge", [None, 3, ["small"]])
def test_a_teacher_that_is_no_name_is_an_error_that_names_the_row(tmp_path: Path, judge: Any) -> None:
    with pytest.raises(TaskError, match="row 2: the teacher must be a name"):
        _ = PromptFile(
            lines(tmp_path / "rows.jsonl", ROWS[0], {"prompt": "a", "judge": judge}), teacher="judge"
        ).problems


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


def test_a_prompt_that_is_neither_text_nor_messages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="row 1: a prompt is a text or a list of chat messages, got int"):
        _ = PromptFile(lines(tmp_path / "rows.jsonl", {"prompt": 12})).problems


def test_a_line_that_is_not_json_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(TaskError, match=r"rows\.jsonl, line 3: not JSON"):
        _ = PromptFile(str(path)).problems


def test_a_line_that_is_no_object_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="line 2: expected a JSON object, got list"):
        _ = PromptFile(lines(tmp_path / "rows.jsonl", ROWS[0], ["a"])).problems


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"rows\.jsonl has no rows"):
        _ = PromptFile(lines(tmp_path / "rows.jsonl")).problems


def test_a_json_file_is_told_to_become_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    with pytest.raises(TaskError, match=r"write one JSON object a line and name the file \.jsonl"):
        _ = PromptFile(str(path)).problems


def test_a_file_that_is_not_utf8_is_an_error_for_a_person(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"prompt": "é"}\n'.encode("latin-1"))
    with pytest.raises(TaskError, match=r"rows\.jsonl"):
        _ = PromptFile(str(path)).problems


def test_a_file_that_is_only_called_parquet_is_an_error_for_a_person(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(TaskError, match=r"rows\.parquet"):
        _ = PromptFile(str(path)).problems


def scores(path: str, check: str, *responses: str) -> list[float]:
    task = PromptFile(path, answer="answer", check=check)
    return [task.score(task.problems[0], response) for response in responses]


def test_the_math_check_compares_values_and_not_texts(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", {"prompt": "Half?", "answer": "0.5"})
    assert scores(path, "math", r"\boxed{1/2}", r"so it is $\frac{1}{2}$.", "0.5") == [1, 1, 1]
    assert scores(path, "math", r"\boxed{1/3}", "no idea", "") == [0, 0, 0]


@pytest.mark.parametrize("answer", [r"\frac{1}{2}", r"$\frac{1}{2}$", r"\boxed{1/2}", 0.5])
def test_the_math_check_takes_answers_with_or_without_dollars(tmp_path: Path, answer: str | float) -> None:
    path = lines(tmp_path / "rows.jsonl", {"prompt": "Half?", "answer": answer})
    assert scores(path, "math", r"\boxed{0.5}", r"\boxed{2}") == [1, 0]


@pytest.mark.parametrize("answer", ["", None])
def test_a_row_without_an_answer_to_compare_with_is_an_error_and_no_silent_zero(
    tmp_path: Path, answer: str | None
) -> None:
    path = lines(tmp_path / "rows.jsonl", {"prompt": "Half?", "answer": answer})
    with pytest.raises(TaskError, match="the answer is empty"):
        scores(path, "math", r"\boxed{0.5}")


def test_the_exact_check_compares_texts_apart_from_white_space_around_them(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", {"prompt": "Half?", "answer": " 0.5"})
    assert scores(path, "exact", "0.5", "\n0.5 ") == [1, 1]
    assert scores(path, "exact", r"\boxed{0.5}", "0. 5", "") == [0, 0, 0]


def test_the_exact_check_compares_numbers_as_values(tmp_path: Path) -> None:
    assert scores(lines(tmp_path / "rows.jsonl", {"prompt": "?", "answer": 7}), "exact", "7", "7.0", "7.1") == [1, 1, 0]


def test_a_check_of_your_own_is_named_by_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def overlap(response, answer):\n    return len(set(response) & set(answer)) / len(set(answer))\n"
    (tmp_path / "own_check.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = lines(tmp_path / "rows.jsonl", {"prompt": "?", "answer": "abcd"})
    assert scores(path, "own_check:overlap", "abcd", "ab", "x") == [1, 0.5, 0]


@pytest.mark.parametrize("check", ["maths", "math_"])
def test_an_unknown_check_is_an_error_that_lists_the_known_ones(check: str) -> None:
    with pytest.raises(TaskError, match=f"check must be one of math, exact, or module:function; got '{check}'"):
        PromptFile("rows.jsonl", check=check)


@pytest.mark.parametrize("check", ["no_such_module:f", "json:no_such_function", ":f", "own_check:"])
def test_a_check_that_cannot_be_imported_is_an_error_that_names_it(check: str) -> None:
    with pytest.raises(RecipeError, match=f"check '{check.partition(':')[0]}"):
        PromptFile("rows.jsonl", check=check)


def test_scoring_without_an_answer_column_is_an_error_that_says_what_to_write(tmp_path: Path) -> None:
    task = PromptFile(lines(tmp_path / "rows.jsonl", *ROWS))
    with pytest.raises(TaskError, match="name the answer column: answer: COLUMN"):
        task.score(task.problems[0], "2")
