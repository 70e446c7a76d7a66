"""Hands metrics to accelerate's trackers: trackio, wandb, tensorboard."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hopd.errors import RecipeError


class Trackers:
    """Opens the trackers of these names, whose packages `check_trackers` has found."""

    def __init__(self, names: Sequence[str], directory: Path):
        import torch  # what `check_trackers` needs is light
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            log_with=list(names),
            project_config=ProjectConfiguration(str(directory)),
        )

    def open(self, name: str) -> None:
        self.accelerator.init_trackers(name)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.accelerator.log(dict(values), step)

    def close(self) -> None:
        for tracker in self.accelerator.trackers:  # `end_training` would end the processes' connection too
            tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raises `RecipeError` for a tracker whose package is not installed: accelerate would continue without it."""
    for name in names:
        if find_spec(name) is None:
            raise RecipeError(f"trackers: {name} is not installed: pip install 'hopd[{name}]'")
