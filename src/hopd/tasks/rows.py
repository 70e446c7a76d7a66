"""Reads rows: of a JSONL or Parquet file, of a directory of `datasets`, or of a data set on the hub."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hopd.errors import TaskError, missing_target

Row = dict[str, Any]

BATCH = 1024  # rows that are read at once


def read(source: str, split: str, config: str | None, columns: Collection[str] | None) -> Iterator[Row]:
    """Yields the rows. Of a Parquet file or a data set, only the `columns` that are named are read; None means all.

    Raises `TaskError` for what does not exist or cannot be read.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet") and not path.is_file():
        raise TaskError(missing_target(path) or f"{source} does not exist (looked in {Path.cwd()})")
    if path.suffix == ".jsonl":
        yield from _json_lines(path)
    elif path.suffix == ".parquet":
        yield from _parquet(path, columns)
    elif path.suffix == ".json":
        raise TaskError(f"{source}: write one JSON object a line and name the file .jsonl")
    else:
        yield from _dataset(source, split, config, columns)


def find(row: Mapping[str, Any], column: str) -> Any:
    """Returns the value of a column, whose name may be a path such as `reward_model.ground_truth`; a column whose own
    name has the dot wins. Below a value that is null all is null. Raises `KeyError` for a column that is not there."""
    if column in row:
        return row[column]
    for end in reversed([place for place, letter in enumerate(column) if letter == "."]):
        head, tail = column[:end], column[end + 1 :]
        if head in row and row[head] is None:
            return None
        if isinstance(row.get(head), Mapping):
            return find(row[head], tail)
    raise KeyError(column)


def names(row: Mapping[str, Any]) -> Iterator[str]:
    """Yields the names that `find` knows in a row."""
    for name, value in row.items():
        yield name
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in names(value))


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                raise TaskError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
            except UnicodeDecodeError as error:
                raise TaskError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list thousands deep
                raise TaskError(f"{path}, line {number}: cannot be read ({str(error)[:100]})") from error
            if not isinstance(row, dict):
                raise TaskError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
            yield row


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path)
        for batch in table.iter_batches(BATCH, columns=_top_level(columns, table.schema_arrow.names)):
            try:
                rows: list[Row] = batch.to_pylist()
            except UnicodeDecodeError:
                number += next(row for row in range(batch.num_rows) if not _is_text(batch.slice(row, 1)))
                raise
            yield from rows
            number += len(rows)
    except pyarrow.ArrowException as error:
        raise TaskError(f"{path} is no Parquet file that can be read: {_first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}, row {number + 1}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _is_text(batch: Any) -> bool:
    try:
        batch.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


def _dataset(source: str, split: str, config: str | None, columns: Collection[str] | None) -> Iterator[Row]:
    import datasets

    directory = Path(source)
    try:
        if config is None and any(
            (directory / name).exists() for name in ("state.json", "dataset_dict.json")
        ):  # of `save_to_disk`
            loaded = datasets.load_from_disk(source)
            data = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            data = datasets.load_dataset(source, config, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        if (configs := _configs(source)) and config not in configs:
            raise TaskError(
                f"{source} is made of {', '.join(configs)[:200]}, of which task.config names one; write config: "
                f"{configs[0]}" + (f", not {config!r}" if config else "")
            ) from error
        raise TaskError(
            f"{source!r} is no .jsonl or .parquet file, no datasets directory, and no dataset with a split {split!r} "
            f"that can be reached: {_first_line(error)}"
        ) from error
    if (wanted := _top_level(columns, data.column_names)) is not None:
        data = data.select_columns(wanted)
    for batch in data.iter(BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _configs(source: str) -> list[str]:
    """Returns the configs of a data set that has several."""
    import datasets

    try:
        configs = datasets.get_dataset_config_names(source)
    except (OSError, ValueError, datasets.exceptions.DatasetsError):
        return []
    return configs if len(configs) > 1 else []


def _top_level(columns: Collection[str] | None, there: Collection[str]) -> list[str] | None:
    """Returns the columns to read, or None for all: where a name is not known, the error tells which ones are."""
    if columns is None:
        return None
    needed = [{name for name in there if name == column or column.startswith(f"{name}.")} for column in columns]
    return [name for name in there if any(name in names for names in needed)] if all(needed) else None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]
