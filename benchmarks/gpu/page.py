"""The page of a run: what was required, what was measured, on what."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.criteria import verdicts

Line = dict[str, Any]
LEFT_OUT = {"stage", "note", "output", "phases_ours", "decoder_note"}


def page(about: Line, lines: Sequence[Line]) -> str:
    """Returns Markdown."""
    return "\n".join([*_head(about), *_criteria(lines), *_measures(lines), *_faults(lines)]) + "\n"


def _head(about: Line) -> Iterator[str]:
    yield "# hopd on a GPU"
    yield ""
    where = f"{about['card']}, {about['date']}; {about['versions']}; commit {about['commit']}"
    yield f"{where}. Written by {about['command']}."
    if "remark" in about:
        yield ""
        yield about["remark"]


def _criteria(lines: Sequence[Line]) -> Iterator[str]:
    yield from ["", "## What is required", "", "| criterion | measured | |", "|---|---|---|"]
    for verdict in verdicts(lines):
        yield f"| {verdict.criterion} | {verdict.measured} | {'passed' if verdict.passed else '**failed**'} |"


def _measures(lines: Sequence[Line]) -> Iterator[str]:
    """A table for each stage, whose lines have the same names."""
    tables: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        names = tuple(name for name in line if name not in LEFT_OUT)
        if not {"failed", "skipped"} & set(line):
            tables.setdefault((line["stage"], *names), []).append(line)
    for (stage, *columns), rows in tables.items():
        yield from ["", f"## {stage.capitalize()}", "", f"| {' | '.join(columns).replace('_', ' ')} |"]
        yield f"|{'---|' * len(columns)}"
        for row in rows:
            yield f"| {' | '.join(_figure(row[name]) for name in columns)} |"


def _faults(lines: Sequence[Line]) -> Iterator[str]:
    faults = [line for line in lines if {"failed", "skipped", "output"} & set(line)]
    if faults:
        yield from ["", "## Failed or skipped", ""]
    for line in faults:
        said = line.get("failed") or line.get("skipped") or line.get("output")
        yield f"- {line.get('name', line['stage'])}: `{' '.join(str(said).split())}`"


def _figure(value: Any) -> str:
    if isinstance(value, float) and value < 0:
        return "noise"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
