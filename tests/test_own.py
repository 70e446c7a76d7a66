"""Custom controllers, windows, estimators and teachers, from a recipe to a trained step."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from hopd.distiller import Distiller
from hopd.errors import RecipeError
from hopd.horizon import Decision
from hopd.objective import Custom, Detail, Full, TopK
from hopd.recipe import Recipe
from hopd.run.progress import Progress

MINE = """
from dataclasses import dataclass
from hopd.horizon import Decision
from hopd.objective import Detail, HiddenSignal
from hopd.objective.divergence import reverse_kl
from hopd.teacher import LocalTeacher
from hopd.model import load

@dataclass
class Steady:
    tokens: int
    full_tokens: int = 0
    calls: int = 0
    def decide(self, step):
        self.calls += 1
        return Decision(self.tokens, f"steady {self.calls}")
    def observe(self, evidence): ...
    def state_dict(self): return {}
    def load_state_dict(self, state): ...

@dataclass(frozen=True)
class Middle:
    share: float = 0.5
    def span(self, length, uniform):
        return 0, max(1, int(self.share * length))

class Scaled:
    needs = Detail.VOCABULARY
    def __init__(self, factor: float): self.factor = factor
    def per_token(self, at):
        return self.factor * reverse_kl(at.student, at.teacher)

class Mean(Scaled):
    def per_token(self, at):
        return super().per_token(at).mean()

class Mine(LocalTeacher):
    def __init__(self, model: str, temperature: float, student):
        assert student.head.vocabulary == 45
        super().__init__(load(model), temperature)

class Nothing:
    pass
"""


PAGE = (Path(__file__).parents[1] / "docs" / "your-own.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mine", None)


def recipe(tiny: Path, **changes: object) -> Recipe:
    return Recipe.parse(yaml.safe_load(tiny.read_text()) | changes)


def loss_of(tiny, name, **changes):
    run = Distiller.of(recipe(tiny, name=name, **changes), progress=Progress(quiet=True)).train()
    return run.directory.read("metrics")[0]["loss"]


OWN = {
    "horizon": {"controller": "mine:Steady", "tokens": 8},
    "window": {"kind": "mine:Middle", "share": 0.25},
    "objective": {"estimator": "mine:Scaled", "factor": 2.0},
    "teacher": {"source": "mine:Mine", "model": "package:hopd/quickstart/teacher"},
}


def test_a_recipe_of_plug_ins_survives_a_round_trip_through_yaml(tiny):
    own = recipe(tiny, **OWN)
    assert Recipe.parse(yaml.safe_load(own.yaml())) == own
    assert own.with_changes(seed=1).with_changes(seed=0) == own
    assert yaml.safe_load(own.yaml())["horizon"] == OWN["horizon"]


def test_a_custom_controller_is_built_anew_for_each_use(tiny):
    own = recipe(tiny, **OWN)
    controllers = [own.controller() for _ in range(2)]
    assert [controller.decide(0) for controller in controllers] == [Decision(8, "steady 1")] * 2
    assert controllers[0].full_tokens == 40


def test_a_custom_window_selects_the_loss_tokens(tiny):
    assert recipe(tiny, **OWN).loss_window().span(8, 0.5) == (0, 2)


def test_a_custom_estimator_and_teacher_train_like_the_built_in_ones(tiny):
    plain = loss_of(tiny, "plain", objective={"estimator": "full"})
    own = loss_of(tiny, "own", objective=OWN["objective"], teacher=OWN["teacher"], horizon=OWN["horizon"])
    assert own == pytest.approx(2 * plain)
    assert loss_of(tiny, "part", **OWN) != pytest.approx(own)  # a quarter of the tokens


def test_a_custom_estimator_has_the_attributes_of_the_built_in_ones():
    own = Custom("mine:Scaled", {"factor": 1.0})
    assert (own.needs, own.gamma, own.k) == (Detail.VOCABULARY, Full().gamma, Full().k)
    assert TopK(k=4).k == 4


def test_an_estimator_that_averages_is_refused(tiny):
    with pytest.raises(RecipeError, match=r"'mine:Mean': per_token returned a loss of shape \(\); return one number"):
        loss_of(tiny, "mean", objective={"estimator": "mine:Mean", "factor": 1.0})


@pytest.mark.parametrize(
    ("section", "content", "sentence"),
    [
        ("horizon", {"controller": "mine:Steady"}, "horizon 'mine:Steady' needs tokens"),
        (
            "horizon",
            {"controller": "mine:Steady", "tokens": 8, "full_tokens": 9},
            "has no option 'full_tokens'.*it takes tokens, calls",
        ),
        ("horizon", {"controller": "mine:Nothing"}, "'mine:Nothing' has no full_tokens and no decide and no observe"),
        ("horizon", {"controller": "mine:Stedy"}, r"horizon\.controller 'mine:Stedy': .*did you mean 'Steady'"),
        ("window", {"kind": "mine:Middle", "shar": 1}, r"no option 'shar' \(did you mean 'share'\?\); it takes share"),
        ("window", {"kind": "mine:Nothing"}, "window 'mine:Nothing' has no span"),
        ("objective", {"estimator": "mine:Scaled"}, "objective 'mine:Scaled' needs factor"),
        ("objective", {"estimator": "mine:Nothing"}, "objective 'mine:Nothing' has no needs and no per_token"),
        ("teacher", {"source": "mine:Mine"}, "teacher 'mine:Mine' needs model"),
        ("teacher", {"source": "mine:Mine", "model": "m", "student": 1}, "no option 'student'.*it takes model"),
    ],
)
def test_a_plug_in_is_checked_when_the_recipe_is_read(tiny, section, content, sentence):
    with pytest.raises(RecipeError, match=sentence):
        recipe(tiny, **{section: content})


def test_the_python_in_the_documentation_runs_as_written():
    alpha, from_python, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "alpha"}
    exec(alpha, names)
    exec(from_python, names)
    assert names["recipe"].controller().decide(0).tokens == 36
    p, q = torch.randn(2, 5, 9, dtype=torch.float64).log_softmax(-1)
    divergence = names["Alpha"](1 - 1e-6).per_token
    torch.testing.assert_close(
        divergence(SimpleNamespace(student=p, teacher=q)), (q.exp() * (q - p)).sum(-1), rtol=1e-3, atol=1e-4
    )
    assert float(divergence(SimpleNamespace(student=p, teacher=p)).abs().max()) < 1e-6


def test_the_engine_in_the_documentation_trains_and_decodes_as_written(capsys):
    _, from_python, with_an_engine = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "own"}
    exec(from_python, names)
    exec(with_an_engine, names)
    run = names["run"]
    assert run.parts.learner.teacher is names["teacher"]
    lines = run.parts.directory.read("metrics")
    assert len(lines) == 20
    assert all(line["sample_seconds"] > 0 for line in lines)
    assert capsys.readouterr().out.splitlines()[-2].startswith("stop ")
