"""Describes how, when and with what a run was made: `environment.json`."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hopd.run.files import json_text, write_atomically

PACKAGES = ("hopd", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy")
NAME = "environment.json"
LENGTH = {"training.steps", "training.epochs"}


class Environment:
    """Holds what `environment.json` of a run's directory says: of this start of the run, and of `earlier` ones."""

    def __init__(self, directory: Path):
        self.path = directory / NAME
        self.content: dict[str, Any] = {}

    def start(self, step: int, overrides: Sequence[str], hashes: Mapping[str, Any]) -> None:
        """Writes that the run starts, or goes on, after `step` complete steps. Raises `CheckpointError`."""
        before = read(self.path.parent)
        earlier = [*before.pop("earlier", []), before] if before else []
        self.content = {
            **_machine(),
            "git": _git(),
            "hashes": hashes,
            "overrides": list(overrides),
            "started": utc_now(),
            "ended": None,
            "first_step": step,
            "last_step": None,
            "finished": False,
            "evaluations": [],
            "earlier": earlier,
        }
        self._write()

    def evaluated(self, step: int, started: str) -> None:
        """Writes when an evaluation began and, now, ended."""
        self.content["evaluations"].append({"step": step, "started": started, "ended": utc_now()})
        self._write()

    def end(self, step: int, finished: bool) -> None:
        """Writes that the run ends now, after `step` complete steps; one that is killed has no end."""
        if self.content:
            self.content |= {"ended": utc_now(), "last_step": step, "finished": finished}
            self._write()

    def _write(self) -> None:
        write_atomically(self.path, json_text(self.content, indent=1))


def read(directory: Path) -> dict[str, Any]:
    """Reads the `environment.json` of a run; there need not be one, and it may be anybody's."""
    try:
        content = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def earlier_settings(directory: Path, overrides: Sequence[str]) -> list[str]:
    """Returns the command line's settings that a run there has had so far, but those of keys that `overrides` set. Of a
    run that has finished, the length is the recipe's again."""
    content = read(directory)
    keys = {text.partition("=")[0].strip() for text in overrides} | (LENGTH if content.get("finished") else set())
    return [text for text in map(str, content.get("overrides", [])) if text.partition("=")[0].strip() not in keys]


def utc_now() -> str:
    """Returns the time in UTC, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _machine() -> dict[str, Any]:
    import torch  # the rest of the file is light

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
    }


def _git() -> dict[str, Any] | None:
    """Returns the commit of the working directory and whether it has changes, None outside of git."""
    try:
        commit, status = (
            subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(status)}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
