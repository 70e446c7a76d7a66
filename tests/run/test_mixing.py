"""Runs with reference answers: resumed to the same bits, counted apart, planned, and of references alone."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hopd.assembly import build
from hopd.distiller import Distiller
from hopd.errors import RecipeError
from hopd.forecast.plan import make_plan
from hopd.forecast.preflight import preflight
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine
from hopd.run.progress import Progress
from hopd.tasks.addition import draw_pairs, prompt, scratchpad
from tests.run.test_continued import STEPS, outcome
from tests.run.test_resume import context
from tests.test_processes import launched, run

CONTINUED = {"controller": "truncated", "tokens": 10, "continue": True}
CUT = {"controller": "progressive", "start": 8, "increment": 4}


def recipe(output: Path, share: float = 0.25, horizon: Any = CUT, **changes: Any) -> Recipe:
    """Makes a run of 8 steps of 8 rollouts, with checkpoints after 3 and 6."""
    path = output / "p.jsonl"
    if not path.exists():
        pairs = draw_pairs(40, 0, False)
        rows = [{"prompt": prompt(*pair, 1), "solution": scratchpad(*pair, 1)} for pair in pairs]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "name": "run",
        "output": str(output),
        "seed": 3,
        "student": {"model": "package:hopd/quickstart/student"},
        "teacher": {"model": "package:hopd/quickstart/teacher"},
        "task": {"source": "file", "path": str(path)},
        "rollout": {
            "prompts": 4,
            "samples": 2,
            "full_tokens": 40,
            "off_policy": {"share": share, "column": "solution"},
        },
        "horizon": horizon,
        "training": {"steps": STEPS, "learning_rate": 1e-3, "schedule": "cosine"},
        "checkpoint": {"every": 3, "keep_last": 9},
    }
    return Recipe.parse(content | changes)


def distil(made: Recipe) -> None:
    Distiller.of(made, resume=True, progress=Progress(quiet=True)).train()


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("horizon", [CUT, CONTINUED], ids=["cut", "continued"])
def test_killed_it_resumes_to_the_same_bits(tmp_path: Path, horizon: Any) -> None:
    outputs = [tmp_path / name for name in ("whole", "killed")]
    for output in outputs:
        output.mkdir()
    distil(recipe(outputs[0], horizon=horizon))
    made, metrics = recipe(outputs[1], horizon=horizon), outputs[1] / "run" / "metrics.jsonl"
    process = context.Process(target=distil, args=(made,))
    process.start()
    while process.is_alive() and not (metrics.exists() and metrics.read_text().count("\n") >= 4):
        time.sleep(0.001)
    process.kill()
    process.join()
    distil(made)
    assert outcome(outputs[1]) == outcome(outputs[0])
    shares = [line["off_policy_share"] for line in lines(outputs[0]) if "off_policy_share" in line]
    assert len(shares) > STEPS / 2


class Asked(NativeEngine):
    """Notes what it is asked for."""

    def extend(self, stretches: Any, sampling: Any) -> Any:
        self.asked = [*getattr(self, "asked", ()), *stretches]
        return super().extend(stretches, sampling)


def test_the_ledger_counts_references_apart_and_they_go_to_no_engine(tmp_path: Path) -> None:
    made = recipe(tmp_path, horizon={"controller": "truncated", "tokens": 8})
    run = Distiller.of(made, engine=Asked, progress=Progress(quiet=True))
    run.train()
    account = run.parts.ledger.run
    assert isinstance(run.parts.engine, Asked)
    assert len(run.parts.engine.asked) == 6 * STEPS
    assert not any(stretch.rollout.is_reference for stretch in run.parts.engine.asked)
    assert (account.reference_tokens, account.generated_tokens) == (2 * 8 * STEPS, 6 * 8 * STEPS)
    assert account.trained_tokens == account.scored_tokens == 8 * 8 * STEPS
    assert account.full_rollouts_tokens == 6 * 40 * STEPS
    assert account.serial_tokens == 8 * STEPS
    assert {line["off_policy_share"] for line in lines(tmp_path)} == {0.25}
    assert sum(line["reference_tokens"] for line in lines(tmp_path)) == account.reference_tokens
    plan = make_plan(made.model_copy(update={"name": "plan"}), budget_seconds=1)
    assert (plan.tokens, plan.serial_tokens) == (account.generated_tokens, account.serial_tokens)
    assert plan.flops == pytest.approx(sum(account.flops.values()), rel=0.02)


@pytest.mark.parametrize("horizon", [{"controller": "full"}, CONTINUED], ids=["full", "continued"])
def test_of_references_alone_nothing_is_sampled_and_the_student_learns(tmp_path: Path, horizon: Any) -> None:
    made = recipe(tmp_path, share=1, horizon=horizon)
    run = Distiller.of(made, engine=Asked, progress=Progress(quiet=True))
    said = list(preflight(run.parts))
    assert any("100 % are reference answers" in line for line in said)
    run.parts.engine = Asked(run.parts.student)
    run.train()
    assert not hasattr(run.parts.engine, "asked")
    account = run.parts.ledger.run
    assert (account.generated_tokens, account.serial_tokens, account.flops.get("rollout", 0)) == (0, 0, 0)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses[-1] < losses[1] / 2
    plan = make_plan(made.model_copy(update={"name": "plan"}), budget_seconds=1)
    assert (plan.tokens, plan.width) == (0, None)
    assert plan.flops > 0
    assert list(plan.lines())


def test_a_resumed_run_notices_other_references_and_another_share(tmp_path: Path) -> None:
    distil(recipe(tmp_path, training={"steps": 3, "learning_rate": 1e-3}))
    with pytest.raises(RecipeError, match=r"rollout\.off_policy"):
        build(recipe(tmp_path, share=0.5, training={"steps": 4, "learning_rate": 1e-3}), resume=True)
    path = tmp_path / "p.jsonl"
    path.write_text(path.read_text().replace("=", "=0", 1))
    with pytest.raises(RecipeError, match="the prompts are others"):
        build(recipe(tmp_path, training={"steps": 4, "learning_rate": 1e-3}), resume=True)


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    for output in (one, two):
        output.mkdir()
    training = {"steps": 3, "learning_rate": 1e-3}
    distil(recipe(one, training=training))
    (two / "recipe.yaml").write_text(recipe(two, training=training).yaml())
    run(launched(2, ["-m", "hopd", "train", str(two / "recipe.yaml")], "torchrun"))
    for alone, both in zip(lines(one), lines(two), strict=True):
        assert both["loss"] == pytest.approx(alone["loss"], rel=1e-3, abs=1e-6)
        for key in ("off_policy_share", "reference_tokens", "generated_tokens", "trained_tokens"):
            assert both[key] == alone[key]
