"""The measurements of one run: lines of names and numbers, as JSON and as a page."""

import json
import shutil
import subprocess
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers

import hopd
from benchmarks.gpu.criteria import verdicts
from benchmarks.gpu.page import page
from benchmarks.gpu.place import Place

Line = dict[str, Any]


class Record:
    """Lines are printed as they come; `write` makes `gpu.json` and `gpu.md` of them."""

    def __init__(self, directory: Path, place: Place):
        self.directory, self.lines, self._lock = directory, list[Line](), Lock()
        self.about: Line = {
            "card": place.card,
            "date": date.today().isoformat(),
            "commit": _commit(),
            "versions": f"hopd {hopd.__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
            "command": "`make gpu`" if not place.tiny else "`python -m benchmarks.gpu --tiny`",
        }

    def add(self, stage: str, **measured: Any) -> None:
        line = {"stage": stage} | measured
        with self._lock:
            self.lines.append(line)
            print(json.dumps(line), flush=True)

    @property
    def passed(self) -> bool:
        """Whether nothing failed, neither a stage nor a criterion."""
        return not any("failed" in line for line in self.lines) and all(v.passed for v in verdicts(self.lines))

    def write(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        whole = {"about": self.about, "lines": self.lines}
        (self.directory / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n")
        (self.directory / "gpu.md").write_text(page(self.about, self.lines))


def _commit() -> str:
    root, git = Path(__file__).parents[2], shutil.which("git")
    if git is None:
        return "unknown"
    done = subprocess.run([git, "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
