"""What several tests share: a tiny recipe, and the command line, in this process and as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import tests.shapes  # the hook looks it up by name

install_import_hook("hopd", f"{tests.shapes.checked.__module__}.checked")  # before anything of hopd is imported

# How long an example takes says how busy the machine is, and nothing about hopd.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

TINY = """
name: tiny
output: {output}
student: {{model: "package:hopd/quickstart/student"}}
teacher: {{model: "package:hopd/quickstart/teacher"}}
task: {{source: addition, steps: 1, size: 64}}
rollout: {{prompts: 4, full_tokens: 40}}
horizon: {{controller: truncated, tokens: 8}}
training: {{steps: 2, learning_rate: 1e-4}}
"""


class Ended(NamedTuple):
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe of two steps of a tenth of a second; its runs go to `tmp_path / "runs"`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(output=tmp_path / "runs"))
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ended]:
    """`hopd ARGUMENTS` in this process, with `tmp_path` as the working directory."""
    from hopd.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["hopd", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def process() -> Callable[..., Ended]:
    """`python -m hopd ARGUMENTS` as a process of its own; keywords are those of `subprocess.run`."""

    def run(*arguments: str | Path, **settings: Any) -> Ended:
        ended = subprocess.run(
            [sys.executable, "-m", "hopd", *map(str, arguments)], capture_output=True, text=True, **settings
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run
