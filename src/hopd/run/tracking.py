"""Opens a tracker's run, or goes on with it: tensorboard, wandb, trackio, each by its own functions."""

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml


class Tracking(Protocol):
    """Is one run of a tracker. `id` is what it is found by later, None where its place suffices."""

    @property
    def id(self) -> str | None: ...
    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def finish(self) -> None: ...


def open_tracker(tracker: str, name: str, directory: Path, recipe: str, id: str | None) -> Tracking:
    """Opens the run `name` of a tracker, the one with this `id` if it has been opened before, with the resolved
    `recipe`, in YAML, as its configuration."""
    if tracker == "tensorboard":
        return Tensorboard(directory / name, recipe)
    return Library(tracker, name, directory, recipe, id)


class Tensorboard:
    """Writes event files to `place`; TensorBoard shows those of one directory as one run."""

    id = None

    def __init__(self, place: Path, recipe: str):
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            module = importlib.import_module("tensorboardX")
        self.writer = module.SummaryWriter(str(place), filename_suffix=f".{secrets.token_hex(4)}")
        self.writer.add_text("recipe", f"```yaml\n{recipe}```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # what was handed over outlives a kill

    def finish(self) -> None:
        self.writer.close()


class Library:
    """Logs to wandb, or to trackio, which has the same functions."""

    def __init__(self, module: str, name: str, directory: Path, recipe: str, id: str | None):
        self.id = id or secrets.token_hex(4)
        where: dict[str, Any] = {"name": f"{name}-{self.id}"}  # trackio finds a run by its name
        if module == "wandb":
            where = {"name": name, "id": self.id, "dir": str(directory)}
        library = importlib.import_module(module)
        self.run = library.init(project=name, config=yaml.safe_load(recipe), resume="allow", **where)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self) -> None:
        self.run.finish()
