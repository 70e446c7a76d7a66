"""Checks `python -m experiments` as a person meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.quickstart import make

ROOT = Path(__file__).parents[2]


def test_an_unknown_experiment_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["simple-navigatoin"])
    assert "did you mean 'simple-navigation'" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["0", "-1", "two"])
def test_seeds_are_a_number_from_1_on(seeds, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["signal-variance", f"--work={tmp_path}", f"--out={tmp_path}", "--seeds", seeds])
    assert f"a whole number from 1 on, such as 3; got '{seeds}'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["make-quickstart", "--help"]])
def test_help_runs_from_the_root_of_a_checkout(arguments):
    ended = subprocess.run([sys.executable, "-m", "experiments", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ("make-quickstart DIR" if len(arguments) == 1 else "--seed") in ended.stdout


def test_the_quickstarts_models_are_made_in_the_folder_and_from_the_seed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(make, "make", lambda out, seed, log: asked.append((out, seed)))
    main(["make-quickstart", str(tmp_path), "--seed", "7"])
    assert asked == [(tmp_path, 7)]
