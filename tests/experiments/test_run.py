"""Checks that experiments run what is missing, once, and write a page."""

import json

import pytest
import torch

from experiments.catalogue import EXPERIMENTS
from experiments.experiment import Claim, Page, table
from experiments.navigation.course import STEPS
from experiments.navigation.signal_variance import _compared
from experiments.run import reproduce

CONTROL = ("simple-navigation", "signal-variance", "autoregressive-navigation")


class Squares:
    """Takes a moment, and logs each run."""

    name, seeds = "squares", 2

    def prepare(self, seed, work):
        (work / "shared.txt").write_text(str(seed + 1))

    def variants(self):
        return ["square", "cube"]

    def run(self, variant, seed, work):
        with (work / f"{variant}.log").open("a") as log:
            log.write("ran\n")
        return {"value": int((work / "shared.txt").read_text()) ** {"square": 2, "cube": 3}[variant]}

    def page(self, results, out):
        values = {variant: [run["value"] for run in runs] for variant, runs in results.items()}
        claim = Claim("squares are smaller than cubes", str(values), "holds")
        return Page("Squares", "Euclid", "Numbers.", [table(["a"], [["b"]])], {}, [claim])


def test_what_is_there_is_not_run_again(tmp_path):
    work, out, printed = tmp_path / "work", tmp_path / "out", list[str]()
    (page,) = reproduce([Squares()], work, out, log=printed.append)
    results = json.loads((out / "squares.json").read_text())["results"]
    assert "[Squares](squares.md) | squares are smaller than cubes" in (out / "README.md").read_text()
    assert {v: [run["value"] for run in runs] for v, runs in results.items()} == {"square": [1, 4], "cube": [1, 8]}
    assert "**holds**" in page.read_text()
    assert "`python -m experiments squares`" in page.read_text()
    (work / "squares" / "seed-1" / "cube.json").unlink()
    first = page.read_text()
    reproduce([Squares()], work, out, log=printed.append)
    runs = {p.stem + p.parent.name[-1]: p.read_text().count("ran") for p in (work / "squares").glob("*/*.log")}
    assert runs == {"square0": 1, "cube0": 1, "square1": 1, "cube1": 2}
    assert page.read_text().split("core-minutes")[0] == first.split("core-minutes")[0]
    assert "4 runs, 3 of them done before" in " ".join(printed)


class Failing(Squares):
    name = "failing"

    def run(self, variant, seed, work):
        if variant == "cube":
            raise RuntimeError("no cubes today")
        return super().run(variant, seed, work)


def test_one_that_fails_stops_no_other(tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    with pytest.raises(ExceptionGroup, match="failed: failing; what") as raised:
        reproduce([Failing(), Squares()], work, out, log=print)
    assert str(raised.value.exceptions[0]) == "no cubes today"
    assert {path.name for path in out.glob("*.md")} == {"README.md", "squares.md"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_has_variants_and_enough_seeds(name):
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert len(set(experiment.variants())) == len(experiment.variants()) > 1
    assert experiment.seeds >= (5 if name in CONTROL else 3)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_independent_noise_has_the_variance_of_the_proposition(gamma):
    sigma = torch.linspace(0.1, 2.0, STEPS)
    log_ratio = sigma * torch.randn(8192, STEPS, generator=torch.Generator().manual_seed(0))
    compared = _compared(log_ratio, gamma)
    expected = [sum(gamma ** (2 * (k - t)) * float(sigma[k]) ** 2 for k in range(t, STEPS)) for t in range(STEPS)]
    assert compared["measured"] == pytest.approx(expected, rel=0.1)
    assert compared["formula"] == pytest.approx(expected, rel=0.1)
    same = _compared(log_ratio[:, :1].expand(-1, STEPS).contiguous(), 1.0)  # all noise is one noise: T² instead of T
    assert same["measured"][0] / same["formula"][0] == pytest.approx(STEPS, rel=1e-3)
