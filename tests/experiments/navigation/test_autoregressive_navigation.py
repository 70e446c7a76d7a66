"""Checks that the variants of autoregressive navigation differ in their horizon, and in nothing else."""

import pytest
import torch

from experiments.catalogue import EXPERIMENTS
from experiments.navigation import autoregressive_navigation
from experiments.navigation.course import STEPS
from experiments.navigation.policy import TransformerPolicy

EXPERIMENT = EXPERIMENTS["autoregressive-navigation"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Gives a folder with untrained policies, and shortens distillation to 20 steps."""
    monkeypatch.setattr(autoregressive_navigation, "STEPS_OF_DISTILLATION", 20)
    monkeypatch.setattr(autoregressive_navigation, "EVALUATIONS", 2)
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        torch.save(TransformerPolicy().state_dict(), tmp_path / f"{name}.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("variant", "horizons", "actions"),
    [
        ("OPD", [STEPS, STEPS], 20 * STEPS),
        ("POPD", [5, 10], 2 * sum(range(1, 11))),
        ("TOPD 0.25", [12, 12], 20 * 12),
        ("TOPD 0.20", [10, 10], 20 * 10),
        ("TOPD 0.10", [5, 5], 20 * 5),
    ],
)
def test_each_variant_has_its_horizon(work, variant, horizons, actions):
    found = EXPERIMENT.run(variant, 0, work)
    assert [point["horizon"] for point in found["curve"][1:]] == horizons
    assert found["curve"][-1]["generated_tokens"] == 64 * actions
    assert all(len(path) == STEPS for paths in found["paths"].values() for path in paths)  # whatever the horizon
    assert found["curve"][-1]["seconds"] > 0


def test_the_student_follows_the_teacher(work):
    """After distillation, whole paths end closer to the teacher's than before."""
    autoregressive_navigation.STEPS_OF_DISTILLATION = 60  # put back by the fixture
    paths = EXPERIMENT.run("OPD", 0, work)["paths"]
    ends = {name: torch.tensor(taken)[:, -1].mean(0) for name, taken in paths.items()}
    assert (ends["after"] - ends["teacher"]).norm() < 0.5 * (ends["before"] - ends["teacher"]).norm()


def curve(*points):
    return {"curve": [{"success": success, "seconds": seconds} for success, seconds in points]}


def test_costs_are_those_of_the_first_evaluation_that_arrives():
    late, soon = curve((0.5, 1.0), (0.96, 8.0), (1.0, 9.0)), curve((0.95, 2.0), (0.2, 3.0), (1.0, 4.0))
    never = curve((0.9, 1.0), (0.94, 2.0))
    results = {"OPD": [late, late, never], "POPD": [soon, never, soon]}
    assert autoregressive_navigation._shares(results, "seconds") == [0.25, None, None]
    assert autoregressive_navigation._cost(results["OPD"], "seconds", "{:.0f} s") == "8 s (2 of 3)"
    assert autoregressive_navigation._cost([never], "seconds", "{:.0f} s") == "never"
