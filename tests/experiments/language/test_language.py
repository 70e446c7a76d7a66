"""Checks that the language experiments run, at a size of seconds, and return what their pages read."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from experiments.catalogue import EXPERIMENTS
from experiments.language import (
    block_gradients,
    count_bits,
    long_addition,
    pairs,
    prefix_continuation,
    reverse_distillation,
    segment_ablation,
    setting,
    two_phase,
)
from experiments.language.setting import OPD, quickstart, student_after, topd, train
from hopd.analysis.probe import answer
from hopd.objective import Full
from hopd.objective.loss import distillation_loss
from hopd.rollout import pack
from hopd.teacher import LocalTeacher
from hopd.training.block_sums import block_edges

SHORT = {"TOPD 0.1": (topd(0.1), 2, 1)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(setting, "HELD_OUT", 8)
    monkeypatch.setattr(reverse_distillation, "VARIANTS", {"OPD": (OPD, 8)})
    for module in (segment_ablation, prefix_continuation):
        monkeypatch.setattr(module, "STEPS", 1)


def test_a_run_goes_on_and_is_read_when_it_is_done(tmp_path):
    recipe = quickstart("x", 3, tmp_path, topd(0.1), 2, every=1)
    curve = train(recipe)
    assert [point["step"] for point in curve] == [0, 1, 2]
    assert train(recipe) == curve  # not trained again
    assert curve[-1]["problems"] == 8
    assert student_after(recipe).endswith("step-000002")


def test_horizons(tmp_path):
    experiment: Any = EXPERIMENTS["quickstart-horizons"]
    found = replace(experiment, plan=SHORT).run("TOPD 0.1", 0, tmp_path)
    assert len(found["curve"]) == 3
    assert found["curve"][-1]["generated_tokens"] == 2 * 32 * 36
    assert found["curve"][-1]["serial_tokens"] == 2 * 36


def test_a_segment_carries_the_loss_and_the_rollouts_are_full(tmp_path):
    found = EXPERIMENTS["segment-ablation"].run("0.2-0.3", 0, tmp_path)["curve"][-1]
    assert found["generated_tokens"] > 32 * 300
    assert found["trained_tokens"] == pytest.approx(0.1 * found["generated_tokens"], rel=0.05)


def test_reverse_distillation_begins_with_the_strong_model(tmp_path):
    found = EXPERIMENTS["reverse-distillation"].run("OPD", 0, tmp_path)
    assert found["curve"][0]["accuracy"] > 0.9
    assert found["teacher"] < 0.3


def test_prefix_continuation(tmp_path):
    experiment = EXPERIMENTS["prefix-continuation"]
    experiment.prepare(0, tmp_path)
    for variant in experiment.variants():
        found = experiment.run(variant, 0, tmp_path)
        assert len(found["accuracy"]) == 6
        assert len(found["sentences"]) == 2
        assert found["probe"]["rollouts"] == 8


def test_block_gradients(tmp_path, monkeypatch):
    """Of a sketch and whole gradients, on prompts of its own for each seed."""
    monkeypatch.setattr(block_gradients, "ROLLOUTS", 3)
    found = EXPERIMENTS["block-gradients"].run("quickstart-horizons", 1, tmp_path / "block-gradients" / "seed-1")
    assert [len(found[side]) for side in ("sketch", "whole")] == [10, 10]
    assert found["whole"][0]["alignment"] == pytest.approx(1)
    assert found["whole"][1]["alignment"] == pytest.approx(found["sketch"][1]["alignment"], abs=0.3)
    assert found["verdict"].startswith(("A short horizon", "Whether a short horizon"))


def test_whole_gradients_add_up_to_the_gradient_of_the_loss(tmp_path):
    answers = answer(quickstart("x", 0, tmp_path, OPD, 1, 1), prompts=2)
    parameters = list(answers.student.model.parameters())
    (batch,) = pack(answers.rollouts[:1], [(0, answers.rollouts[0].length)], 1)
    hidden = batch.states(answers.student.hidden(batch.ids))
    signal = LocalTeacher(answers.teacher).score(batch)
    total, _ = distillation_loss(Full(), answers.student.head, hidden, signal, batch.at)
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(total, parameters)])
    edges = block_edges(360).tolist()
    by_tenth = block_gradients._by_tenth(answers, answers.rollouts[0], parameters, edges)
    torch.testing.assert_close(by_tenth.sum(0), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert (by_tenth.norm(dim=1) > 0).all()


def test_finished_models_of_other_pages_are_used(tmp_path):
    comparison = block_gradients.SETTINGS["two-phase"]
    work = tmp_path / "block-gradients" / "seed-2"
    assert block_gradients._place(comparison, work) == tmp_path / "block-gradients" / "two-phase" / "seed-2"
    (tmp_path / "two-phase" / "models").mkdir(parents=True)
    assert block_gradients._place(comparison, work).parents[1] == tmp_path / "block-gradients"  # not finished
    (tmp_path / "two-phase" / "models" / "teacher.json").write_text("0.97")
    assert block_gradients._place(comparison, work) == tmp_path / "two-phase" / "seed-2"


MODULES = [("long-addition", long_addition), ("two-phase", two_phase), ("count-bits", count_bits)]


@pytest.mark.parametrize(("name", "module"), MODULES)
def test_models_are_made_once_for_all_seeds(name, module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "UPDATES", (1, 1))
    monkeypatch.setattr(module, "BATCH", 2)
    small_setting = replace(module.SETTING, problems=8)
    full_size: Any = EXPERIMENTS[name]
    experiment = replace(full_size, plan={"TOPD 0.1": (topd(0.1), 1, 1)}, setting=small_setting)
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        experiment.prepare(seed, tmp_path / f"seed-{seed}")
        monkeypatch.setattr(pairs, "fine_tune", None)  # whoever trains again, fails
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"teacher", "teacher.json", "student"}
    found = experiment.run("TOPD 0.1", 1, tmp_path / "seed-1")["curve"][-1]
    assert 0 < found["generated_tokens"] <= small_setting.prompts * (small_setting.full_tokens // 10 + 1)
    assert found["problems"] == 8
