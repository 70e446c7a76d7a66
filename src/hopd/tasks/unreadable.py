"""Finds the answers that `check: math` cannot read, before a run scores every response to them 0."""

from collections.abc import Sequence
from typing import Any

from hopd.errors import shown
from hopd.tasks.answer import MATH_BYTES, MATH_SECONDS
from hopd.tasks.workers import Workers

MOST = 1000  # different answers that are read


def unreadable(answers: Sequence[Any]) -> str:
    """Returns a sentence that counts the answers that math-verify cannot read, with the first of them and what to
    write, or nothing. It looks at the first `MOST` that differ."""
    rows: dict[str, list[int]] = {}
    for row, answer in enumerate(answers, 1):
        if str(answer) in rows or len(rows) < MOST:
            rows.setdefault(str(answer), []).append(row)
    readers = Workers("hopd.tasks.mathematics:readable", MATH_SECONDS, MATH_BYTES, forks=True)
    read = readers.run([(text,) for text in rows])
    readers.close()
    without = [(text, outcome) for text, outcome in zip(rows, read, strict=True) if not outcome.score]
    if not without:
        return ""
    count, total = (sum(len(rows[text]) for text in texts) for texts in ([text for text, _ in without], rows))
    text, outcome = without[0]
    why = f"; {outcome.failure}" if outcome.failure else ""
    return (
        f"check: math cannot read {count} of {total} answers (row {rows[text][0]}: {shown(text)}{why}): "
        "responses to them score 0, unless the same text stands in \\boxed{}; write answers as numbers or LaTeX, or "
        "check: exact, or check: module:function"
    )
