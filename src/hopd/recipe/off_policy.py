"""Describes the share of a step's rollouts that are reference answers of the task instead of the student's samples."""

from typing import Any

from pydantic import Field

from hopd.errors import RecipeError
from hopd.horizon import Adaptive, Plateau, Prune, Settled
from hopd.objective.objective import Sampled
from hopd.recipe.section import Section
from hopd.recipe.tasks import FileSource, TaskPlugin


class OffPolicySection(Section):
    """Takes `share` of the rollouts from the task's reference answers; a file has them in `column`, a name or path."""

    share: float = Field(gt=0, le=1)
    column: str | None = Field(None, min_length=1)

    def check(self, task: Any, objective: Any, horizon: Any) -> None:
        """Raises `RecipeError` for a task without references, and for what needs tokens that the student sampled."""
        if isinstance(task, FileSource) and self.column is None:
            raise RecipeError(
                "rollout.off_policy needs the column of the reference answers: write off_policy: {share: "
                f"{self.share:g}, column: COLUMN}}"
            )
        if not isinstance(task, FileSource) and self.column is not None:
            raise RecipeError(
                "rollout.off_policy.column is a column of task: {source: file}; a task of your own gives each Problem "
                "its reference, without column"
            )
        if not isinstance(task, FileSource | TaskPlugin):
            raise RecipeError(
                f"rollout.off_policy: task: {{source: {task.source}}} has no reference answers; write source: file, or "
                "a task of your own whose problems have a reference"
            )
        if isinstance(objective, Sampled):
            raise RecipeError(
                "objective: the estimator sampled is right in the mean over tokens that the student samples, and "
                "biased on reference answers (rollout.off_policy); write estimator: full or top_k, or for a served "
                "teacher {estimator: top_k, candidates: teacher}"
            )
        if getattr(objective, "importance_cap", None) is not None:
            raise RecipeError(
                "objective.importance_cap needs the log-probs that tokens were sampled with, and the reference answers "
                "of rollout.off_policy were not sampled; remove importance_cap, or off_policy"
            )
        if self.share == 1 and isinstance(horizon, Adaptive | Prune | Plateau | Settled):
            raise RecipeError(
                "this horizon learns from the student's samples, and rollout.off_policy.share = 1 leaves none; write "
                "controller: full, truncated, progressive, staged or random, or a smaller share"
            )
