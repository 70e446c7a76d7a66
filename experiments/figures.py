"""What the figures of several experiments share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")


def save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    for panel in figure.axes:
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def interval(shares: Sequence[float]) -> str:
    """Mean of the seeds, and the lowest and highest, in percent."""
    return f"{100 * mean(shares):.0f} % ({100 * min(shares):.0f}–{100 * max(shares):.0f})"
