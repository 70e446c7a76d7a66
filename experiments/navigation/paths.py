"""Draws rollouts as paths in the plane."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.navigation.course import REACHED, Course

COLOURS = {"teacher": "tab:green", "before": "0.6", "after": "tab:blue"}


def draw_paths(panel: Any, paths: Mapping[str, Sequence[Sequence[Sequence[float]]]], course: Course) -> None:
    """Draws rollouts of the teacher and of the student before and after, with target and obstacle."""
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
