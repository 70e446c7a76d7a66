"""What the figures of several experiments share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from hopd.control.course import REACHED, Course

COLOURS = {"teacher": "tab:green", "before": "0.6", "after": "tab:blue"}


def draw_paths(panel: Any, paths: Mapping[str, Sequence[Sequence[Sequence[float]]]], course: Course) -> None:
    """Rollouts of teacher, student before and student after, with target and obstacle."""
    from matplotlib.patches import Circle

    for name, rollouts in paths.items():
        for i, rollout in enumerate(rollouts):
            across, up = zip((0.0, 0.0), *rollout, strict=True)
            panel.plot(across, up, color=COLOURS[name], linewidth=0.8, alpha=0.7, label=name if i == 0 else None)
    x, y = course.target.tolist()
    panel.add_patch(Circle((x, y), REACHED, fill=False, color="tab:red"))
    if course.obstacle:
        panel.add_patch(Circle((x / 2, y / 2), course.obstacle, color="0.85"))
    panel.set_aspect("equal", adjustable="datalim")
    panel.legend(frameon=False, fontsize=8)


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
