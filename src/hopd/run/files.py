"""Reads and writes the files of a run: lines of JSON, and files that are replaced at once.

A line ends at `\\n` alone: text in JSON may hold U+2028, U+0085 and others at which `str.splitlines` cuts too. NaN and
infinity are not JSON: `null` stands for them.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hopd.errors import CheckpointError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns the value as JSON, with null for numbers that are not finite."""
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a file with one JSON object a line, without a half-written last one; there need not be a file."""
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line of JSON. Raises `CheckpointError` if that fails."""
    with written(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json_text(line) + "\n")


def change_lines(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Replaces every line by what `change` returns, and drops it for None. Raises `CheckpointError`."""
    if path.exists():
        changed = [new for line in read_lines(path) if (new := change(line)) is not None]
        write_atomically(path, "".join(json_text(line) + "\n" for line in changed))


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file at once: a reader, or a resumed run, finds the old content or the new, never a part. Raises
    `CheckpointError`."""
    temporary = path.with_name(path.name + ".tmp")
    with written(path):
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Raises `CheckpointError`, with the reason, where the block cannot write `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path} cannot be written ({reason}); {remedy(error)}") from error


def remedy(error: BaseException) -> str:
    """Returns what to do about a write that failed."""
    if isinstance(error, OSError) and error.errno not in FULL:
        return "write an output that can be written to, or mend this one, and continue with resume=True"
    return "make room and continue with resume=True"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
