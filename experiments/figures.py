"""Saves figures, and writes means over seeds: what the pages share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")


def save(figure: Any, path: Path) -> None:
    """Writes a figure in the style of all pages, and closes it."""
    from matplotlib import pyplot

    for panel in figure.axes:
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def interval(shares: Sequence[float]) -> str:
    """Writes the mean over seeds in percent, with the lowest and the highest."""
    return f"{100 * mean(shares):.0f} % ({100 * min(shares):.0f}–{100 * max(shares):.0f})"
