"""What needs no models says so without loading any: help and a recipe's check import neither torch nor transformers."""

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
PROGRAM = """
import sys
from hopd.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "accelerate", "datasets", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("train", "--help"), ("--version",)]
    + [("check", str(recipe), "--without-weights") for recipe in sorted(RECIPES.glob("*.yaml"))],
    ids=lambda arguments: " ".join(Path(a).name for a in arguments),
)
def test_it_loads_nothing_heavy(arguments, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
