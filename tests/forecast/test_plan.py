"""`hopd plan` against what a real run's ledger then shows. Seconds are measured in benchmarks, not here."""

import json
import re
from dataclasses import replace

import pytest

from hopd.assembly import build
from hopd.distiller import Distiller
from hopd.forecast.calibration import Calibration
from hopd.forecast.machine import Machine
from hopd.forecast.outlook import stages
from hopd.forecast.plan import make_plan
from hopd.recipe import Recipe


def ledger_of(recipe):
    result = Distiller.of(recipe).train()
    return json.loads((result.directory.path / "ledger.json").read_text())["run"]


@pytest.mark.parametrize(
    "setting",
    [
        "horizon={controller: truncated, tokens: 8}",
        "horizon={controller: progressive, start: 4, increment: 6, every: 1}",
        "window={kind: first, tokens: 4}",
        "training.tokens_per_batch=64",
        "rollout.samples=3",
        "rollout.rows=2",
    ],
)
def test_tokens_and_flops_are_those_of_the_run(tiny, setting):
    """Where no rollout stops early, which one-step sums do not within so few tokens."""
    recipe = Recipe.load(tiny, [setting])
    plan, run = make_plan(recipe), ledger_of(recipe)
    assert plan.tokens == run["generated_tokens"]
    assert plan.serial_tokens == run["serial_tokens"]
    assert plan.flops == pytest.approx(sum(run["flops"].values()), rel=0.02)  # prompts differ by a token or two


def test_a_stage_for_every_part_of_the_run_and_full_rollouts_beside_them(tiny):
    recipe = Recipe.load(
        tiny, ["training.steps=9", "horizon={controller: progressive, start: 4, increment: 5, every: 3}"]
    )
    plan = make_plan(recipe)
    expected = [(first, last) for first, last, _, _ in stages(recipe.controller(), 9)]
    assert [(s.first, s.last) for s in plan.stages] == expected
    assert sum(stage.steps for stage in plan.stages) == plan.full.steps == 9
    assert plan.full.high == recipe.rollout.full_tokens
    assert plan.tokens < plan.full.tokens
    assert plan.serial_tokens < plan.full.serial_tokens <= 9 * plan.full.high
    assert plan.flops < plan.full.flops
    assert plan.seconds > 0
    assert all(a.memory <= b.memory for a, b in zip(plan.stages, plan.stages[1:], strict=False))


def test_without_a_budget_the_rest_is_extrapolated_and_the_plan_says_so(tiny):
    recipe = Recipe.load(tiny, ["rollout.full_tokens=340", "horizon={controller: full}", "task.steps=12"])
    plan = make_plan(recipe, budget_seconds=0)
    assert plan.measured == [16]
    assert "extrapolated" in list(plan.lines())[-1]
    assert "extrapolated" not in list(make_plan(recipe).lines())[-1]


def test_rollouts_that_stop_are_not_planned_to_the_full_length(tiny):
    """A sum of one step has some twenty tokens; full length would be forty."""
    recipe = Recipe.load(tiny, ["horizon={controller: full}", "rollout.prompts=16"])
    plan = make_plan(recipe)
    assert plan.tokens < 0.9 * 2 * 16 * 40


def test_a_plan_says_what_machine_this_is(tiny):
    plan = make_plan(Recipe.load(tiny))
    (line,) = [line for line in plan.lines() if line.startswith("this machine:")]
    (written,) = re.findall(r"hopd compare --machine (\S+) …", line)
    assert Machine.parse(written) == Machine.parse(str(plan.machine))
    assert f"within {100 * plan.machine_error:.0f} % of the steps" in line


def test_one_rollout_alone_tells_what_a_token_and_what_a_flop_takes(tiny):
    """The wave has four: for as many tokens in a row, one has about a quarter of the FLOPs."""
    calibration = Calibration(build(Recipe.load(tiny)))
    calibration.measure(budget_seconds=20)
    (alone,) = calibration.alone
    (wave,) = (step for step in calibration.measured if step.horizon == alone.horizon)
    assert alone.flops < wave.flops / 2
    assert alone.serial_tokens <= wave.serial_tokens

    machine = Machine(0.003, 2e-11)  # takes the same steps, and its optimiser is slow
    for steps in (calibration.measured, calibration.alone):
        steps[:] = [
            replace(step, apply_seconds=9.0, seconds=9.0 + machine.seconds(step.serial_tokens, step.flops))
            for step in steps
        ]
    found, error = calibration.machine()
    assert (found.a, found.b) == pytest.approx((0.003, 2e-11), rel=1e-6, abs=0)
    assert error == pytest.approx(0, abs=1e-6)
    calibration.alone = [replace(alone, apply_seconds=0, seconds=2 * machine.seconds(alone.serial_tokens, alone.flops))]
    _, error = calibration.machine()
    assert 0.05 < error < 1


def test_the_command_writes_nothing(command, tiny, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    ended = command("plan", tiny)
    assert ended.code == 0, ended.err
    assert "full rollouts" in ended.out
    assert "1 to 2" in ended.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_there_already_can_be_planned(command, tiny):
    assert command("train", tiny).code == 0
    assert command("plan", tiny).code == 0
