"""Runs whose rollouts continue: an update sees whole rollouts, whatever the window, the credit or the teachers are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hopd.distiller import Distiller
from hopd.errors import EngineError, HorizonError
from hopd.horizon import Decision, Evidence, Truncated
from hopd.model import load
from hopd.recipe import Recipe
from hopd.rollout import Engine, FinishReason, NativeEngine, Rollout, Stretch, fold
from hopd.run import checkpoint
from hopd.run.progress import Progress

STUDENT, TEACHER = "package:hopd/quickstart/student", "package:hopd/quickstart/teacher"
T, H = 40, 10
CONTINUE = {"controller": "truncated", "tokens": H, "continue": True}
NO_LEARNING = {"steps": 6, "learning_rate": 1e-14}  # of AdamW, in fp32: no weight changes


def recipe(tiny: Path, **changes: Any) -> Recipe:
    content = yaml.safe_load(tiny.read_text()) | {"horizon": CONTINUE, "seed": 5}
    content |= {"rollout": {"prompts": 6, "full_tokens": T}, "task": {"source": "addition", "steps": 2, "size": 64}}
    return Recipe.parse(content | changes)


class Watched(Distiller):
    """Keeps the rollouts that each step trained on, what its controller was shown, and the weights after it."""

    def __init__(self, parts: Any):
        super().__init__(parts)
        self.trained: dict[int, list[Rollout]] = {}
        self.evidence: list[Evidence] = []
        self.weights: list[torch.Tensor] = []
        accumulate, observe = parts.learner.accumulate, parts.controller.observe

        def watched(rollouts: Any, seed: int, statistics: Any) -> None:
            self.trained[self.step] = list(rollouts)
            accumulate(rollouts, seed, statistics)

        def seen(evidence: Evidence) -> None:
            self.evidence.append(evidence)
            self.weights.append(torch.cat([w.detach().flatten() for w in parts.student.model.parameters()]))
            observe(evidence)

        parts.learner.accumulate = watched
        object.__setattr__(parts.controller, "observe", seen)  # schedules are frozen

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.parts.directory.read("metrics")


def run(tiny: Path, **changes: Any) -> Watched:
    made = Watched.of(recipe(tiny, **changes), progress=Progress(quiet=True))
    assert isinstance(made, Watched)
    made.train()
    return made


OBJECTIVES: list[dict[str, Any]] = [
    {"estimator": "full"},
    {"estimator": "sampled", "gamma": 0.9},
    {"estimator": "sampled", "gamma": 1.0, "importance_cap": 2.0},
    {"estimator": "top_k", "k": 4},
]
WINDOWS = [
    {"kind": "whole"},
    {"kind": "first", "tokens": 25},
    {"kind": "last", "tokens": 7},
    {"kind": "random", "tokens": 9},
]


@pytest.mark.parametrize(("objective", "window"), [*zip(OBJECTIVES, WINDOWS, strict=True), (OBJECTIVES[1], WINDOWS[2])])
def test_a_step_learns_from_whole_rollouts(tiny: Path, objective: dict[str, Any], window: dict[str, Any]) -> None:
    """With constant weights it is the step of the same rollouts, sampled at once."""
    made = run(tiny, objective=objective, window=window, training=NO_LEARNING)
    assert any(rollout.length == T for rollouts in made.trained.values() for rollout in rollouts)
    learner, engine, sampling = made.parts.learner, NativeEngine(made.parts.student), made.parts.sampling
    for step, rollouts in made.trained.items():
        starts = [Stretch(Rollout.start(one.prompt, one.sample, one.seed), one.length) for one in rollouts]
        at_once = engine.extend(starts, sampling)
        for one, other in zip(rollouts, at_once, strict=True):
            assert one.ids.tolist() == other.ids.tolist()
        statistics = made.parts.statistics()
        learner.optimizer.adamw.zero_grad()
        type(learner).accumulate(learner, at_once, fold(5, step), statistics)
        statistics.add_rollouts(at_once)
        line, expected = made.lines[step], statistics.metrics()
        assert line["trained_tokens"] == statistics.sums["tokens"]
        for name in ("loss", "reverse_kl", "covered", "mean_length", "stop_rate"):
            assert line[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_credit_flows_from_a_rollouts_last_token_to_its_first(tiny: Path) -> None:
    """The loss is −Σ_k γ^(k−t) r_k · log π(y_t), k up to the end of the rollout, though t was sampled steps before."""
    gamma = 0.95
    made = run(tiny, objective={"estimator": "sampled", "gamma": gamma}, training=NO_LEARNING)
    student, teacher = load(STUDENT), load(TEACHER)
    assert max(int(r.age_of_tokens[0]) for rollouts in made.trained.values() for r in rollouts) == T // H - 1
    for step, rollouts in made.trained.items():
        losses: list[float] = []
        for rollout in rollouts:
            ids = torch.cat([rollout.prompt.ids, rollout.ids])[None, :-1]
            with torch.no_grad():
                s, g = (
                    model.model(input_ids=ids)
                    .logits[0, -rollout.length :]
                    .log_softmax(-1)
                    .gather(-1, rollout.ids[:, None])[:, 0]
                    for model in (student, teacher)
                )
            credit = 0.0
            for r, log_prob in zip(reversed((g - s).tolist()), reversed(s.tolist()), strict=True):
                credit = r + gamma * credit
                losses.append(-credit * log_prob)
        assert made.lines[step]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3, abs=1e-5)


def test_several_teachers_score_rollouts_that_continue(tiny: Path, tmp_path: Path) -> None:
    """The student itself and the quickstart's teacher: in one file of prompts."""
    rows = [{"prompt": f"{200 + i}+{150 + i}*c:", "answer": "", "who": ("same", "other")[i % 2]} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"source": "file", "path": str(tmp_path / "rows.jsonl"), "teacher": "who", "check": "exact"}
    teachers = {"same": {"model": STUDENT}, "other": {"model": TEACHER}}
    made = run(tiny, teacher=None, teachers=teachers, task=task, training={"steps": 8, "learning_rate": 1e-4})
    seen = {rollout.prompt.teacher for rollouts in made.trained.values() for rollout in rollouts}
    assert seen == {"same", "other"}
    assert made.lines[-1]["mean_age"] > 0
    assert all(line["loss"] > 0 for line in made.lines if line["rollouts"])


def test_the_controller_sees_what_a_step_of_them_showed(tiny: Path) -> None:
    """Two rollouts have four strides, so that in every second step or so none ends: it trains nothing and says so."""
    made = run(tiny, horizon=CONTINUE | {"rollouts": 2}, training={"steps": 8, "learning_rate": 1e-3})
    for step, (line, evidence) in enumerate(zip(made.lines, made.evidence, strict=True)):
        rollouts = made.trained.get(step, [])
        assert line["rollouts"] == evidence.rollouts == len(rollouts)
        assert evidence.generated_tokens == line["generated_tokens"] > 0
        assert evidence.horizon == line["horizon"] == H
        assert evidence.blocks[-1].end == T
        if not rollouts:
            assert not {"loss", "reverse_kl", "mismatch", "stop_rate", "mean_length"} & set(line)
            assert line["trained_tokens"] == 0
            assert torch.equal(made.weights[step], made.weights[step - 1])
            continue
        ages = torch.cat([rollout.age_of_tokens for rollout in rollouts]).double()
        assert evidence.mean_age == line.get("mean_age", 0.0) == pytest.approx(float(ages.mean()))
        assert line["mismatch"] < 1e-2
        assert ("staleness" in line) == bool(ages.any())
        assert sum(block.tokens for block in evidence.blocks) == line["trained_tokens"] == len(ages)
        exact = sum(block.reverse_kl * block.tokens for block in evidence.blocks) / len(ages)
        assert exact == pytest.approx(line["loss"])  # of the estimator full
        assert exact != pytest.approx(line["reverse_kl"])
    assert {bool(evidence.rollouts) for evidence in made.evidence} == {True, False}


def test_one_full_rollout_and_short_ones_share_a_step(tiny: Path) -> None:
    made = run(
        tiny, horizon={"controller": "truncated", "tokens": H, "whole": 1}, training={"steps": 3, "learning_rate": 1e-4}
    )
    for rollouts in made.trained.values():
        assert len(rollouts) == 6
        longer = [rollout for rollout in rollouts if rollout.length > H]
        assert len(longer) <= 1
        assert all(r.length in (H, T) or r.finish is FinishReason.STOP for r in rollouts)
    assert sum(rollout.length > H for rollouts in made.trained.values() for rollout in rollouts) > 0


class Starts(Engine):
    """Has `sample` only."""

    def __init__(self, student: Any):
        self.native = NativeEngine(student)

    def sample(self, *asked: Any) -> list[Rollout]:
        return self.native.sample(*asked)


def test_an_engine_that_cannot_continue_ends_the_run_before_its_first_step(tiny: Path) -> None:
    made = Distiller.of(recipe(tiny), engine=Starts, progress=Progress(quiet=True))
    with pytest.raises(EngineError, match="Starts has no `extend`, so rollouts cannot continue; write continue: false"):
        made.train()
    assert [found.step for found in checkpoint.find(made.parts.directory.checkpoints)] == [0]
    cut = recipe(tiny, name="cut", horizon=CONTINUE | {"continue": False})
    assert Distiller.of(cut, engine=Starts, progress=Progress(quiet=True)).train().steps == 2


class Starting(Truncated):
    """Continues from the second step on, which a recipe with mini-batches does not allow."""

    def decide(self, step: int) -> Decision:
        return Decision(H, "of one's own", whole=None, continues=step > 0)


def test_a_controller_that_continues_with_mini_batches_is_an_error_that_saves_the_steps_before(tiny: Path) -> None:
    training = {"steps": 3, "learning_rate": 1e-4, "mini_batch": 3}
    cuts = recipe(tiny, horizon={"controller": "truncated", "tokens": H}, training=training)
    made = Distiller.of(cuts, controller=Starting(T, tokens=H), progress=Progress(quiet=True))
    with pytest.raises(HorizonError, match=r"rollouts continue in step 1 \(of one's own\)"):
        made.train()
    assert [found.step for found in checkpoint.find(made.parts.directory.checkpoints)] == [1]
