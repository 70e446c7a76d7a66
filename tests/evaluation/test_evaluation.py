"""Evaluation, the horizon and the window in whole runs of a few steps."""

import json
from typing import Any

import pytest
import torch

from hopd.distiller import Distiller
from hopd.evaluation import Evaluation, evaluate, measure_divergence
from hopd.model import load
from hopd.recipe import Recipe
from hopd.rollout import FinishReason, NativeEngine, Sampling
from hopd.run.progress import Progress
from hopd.tasks import RepeatedAddition, encode

STUDENT, TEACHER = "package:hopd/quickstart/student", "package:hopd/quickstart/teacher"


def recipe(output, **sections):
    return Recipe.parse(
        {
            "name": "run",
            "output": str(output),
            "student": {"model": STUDENT},
            "teacher": {"model": TEACHER},
            "task": {"source": "addition", "steps": 3, "size": 32},
            "rollout": {"prompts": 8, "full_tokens": 130},
            "horizon": {"controller": "truncated", "tokens": 10},
            "training": {"steps": 4, "learning_rate": 1e-4},
            "evaluation": {"task": {"source": "addition", "steps": 4, "size": 6, "held_out": True}, "every": 2},
        }
        | sections
    )


def distil(output, **sections):
    run = Distiller.of(recipe(output, **sections), progress=Progress(quiet=True))
    return run, run.train()


def test_the_horizon_caps_training_and_never_evaluation(tmp_path):
    run, _ = distil(tmp_path)
    assert {line["mean_length"] for line in run.parts.directory.read("metrics")} == {10.0}
    assert {line["horizon"] for line in run.parts.directory.read("metrics")} == {10}
    for line in run.parts.directory.read("evaluations"):
        assert line["mean_length"] > 100  # four additions take 121 tokens
        assert line["stop_rate"] > 0
    assert [line["step"] for line in run.parts.directory.read("evaluations")] == [0, 2, 4]


def test_the_window_trains_on_less_than_the_horizon_generates(tmp_path):
    run, _ = distil(tmp_path, window={"kind": "first", "tokens": 4})
    assert {line["covered"] for line in run.parts.directory.read("metrics")} == {0.4}
    account = json.loads((run.parts.directory.path / "ledger.json").read_text())["run"]
    assert account["generated_tokens"] == 4 * 8 * 10
    assert account["trained_tokens"] == 4 * 8 * 4
    assert account["full_rollouts_tokens"] == 4 * 8 * 130


def test_a_line_reads_back_and_so_does_one_from_before_serial_tokens(tmp_path):
    run, result = distil(tmp_path)
    line = run.parts.directory.read("evaluations")[-1]
    assert line["serial_tokens"] == result.evaluation.serial_tokens == 4 * 10
    assert Evaluation.of_line(line).line() == line
    del line["serial_tokens"]
    assert Evaluation.of_line(line).line() == line | {"serial_tokens": 0}


def test_evaluation_by_compute_is_due_at_equal_flops(tmp_path):
    once = distil(tmp_path / "a")[0].parts.ledger.run.training_flops / 4
    section = {"task": {"source": "addition", "steps": 1, "size": 2, "held_out": True}, "every_flops": 1.9 * once}
    run, _ = distil(tmp_path / "b", evaluation=section)
    assert [line["step"] for line in run.parts.directory.read("evaluations")] == [0, 2, 4]


def test_accuracy_counts_what_a_plain_loop_counts():
    teacher = load(TEACHER)
    task = RepeatedAddition(2, 12, held_out=True)
    prompts = encode(task, teacher.tokenizer, chat=False, max_tokens=20)
    result, rollouts = evaluate(NativeEngine(teacher), prompts, 70, Sampling(), samples=3, seed=1)
    right = [
        task.score(task.problems[r.prompt.id], str(teacher.tokenizer.decode(r.ids, skip_special_tokens=True)))
        for r in rollouts
    ]
    assert result.accuracy == pytest.approx(sum(right) / 36)
    assert result.pass_at[1] == pytest.approx(result.accuracy)
    assert result.stop_rate == sum(r.finish is FinishReason.STOP for r in rollouts) / 36
    assert result.tokens == sum(r.length for r in rollouts)
    assert result.interval[0] <= result.accuracy <= result.interval[1]
    short, _ = evaluate(NativeEngine(teacher), prompts, 20, Sampling())
    assert short.accuracy == 0
    assert short.stop_rate == 0


def test_several_optimiser_steps_on_one_set_of_rollouts(tmp_path):
    objective = {"estimator": "sampled", "importance_cap": 2.0}
    training = {"steps": 2, "learning_rate": 1e-3, "mini_batch": 2}
    far = {"controller": "truncated", "tokens": 40}  # far enough for carries, where the policy moves
    run, _ = distil(tmp_path / "four", training=training, objective=objective, horizon=far)
    assert int(run.parts.learner.optimizer.state()["step.model.norm.weight"]) == 2 * 4
    # After the first of the four updates the policy is no longer the one that sampled.
    assert run.parts.directory.read("metrics")[-1]["mismatch"] > 1e-4
    training = {"steps": 2, "learning_rate": 1e-3}
    once, _ = distil(tmp_path / "one", training=training, objective=objective, horizon=far)
    assert once.parts.directory.read("metrics")[-1]["mismatch"] < 1e-4


def test_divergence_is_zero_from_itself_and_falls_with_training(tmp_path):
    student, teacher = load(STUDENT), load(TEACHER)
    prompts = encode(RepeatedAddition(2, 6), teacher.tokenizer, chat=False, max_tokens=20)
    answers = NativeEngine(teacher).sample(prompts.prompts, 70, Sampling(), 0)
    itself = measure_divergence(teacher, teacher, answers)
    assert abs(itself.reverse_kl) < 1e-6
    other = measure_divergence(student, teacher, answers, tokens_per_batch=100)
    assert other.reverse_kl > 0.01
    assert other.perplexity > itself.perplexity
    surprise = [
        float(
            torch.nn.functional.cross_entropy(
                student.model(input_ids=torch.cat([a.prompt.ids, a.ids])[None]).logits[0, len(a.prompt.ids) - 1 : -1],
                a.ids,
                reduction="sum",
            )
        )
        for a in answers
    ]
    assert other.perplexity == pytest.approx(torch.tensor(sum(surprise) / other.tokens).exp().item(), rel=1e-3)

    section = {"measure": "divergence", "task": {"source": "addition", "steps": 2, "size": 6, "held_out": True}}
    # The horizon must reach the carries: within ten tokens student and teacher hardly differ.
    reaching = {"controller": "truncated", "tokens": 40}
    training = {"steps": 8, "learning_rate": 3e-4}
    run, result = distil(tmp_path, evaluation=section, training=training, horizon=reaching)
    first, last = (run.parts.directory.read("evaluations")[i]["reverse_kl"] for i in (0, -1))
    assert last < first
    assert result.evaluation.measured["reverse_kl"] == last


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_in_either_precision_learns_and_its_checkpoint_loads(tmp_path, precision):
    from transformers import AutoModelForCausalLM

    training = {"steps": 6, "learning_rate": 3e-4, "precision": precision, "gradient_checkpointing": True}
    run, _ = distil(tmp_path, training=training)
    losses = [line["loss"] for line in run.parts.directory.read("metrics")]
    assert losses[-1] < losses[0]
    saved: Any = AutoModelForCausalLM.from_pretrained(run.parts.directory.checkpoints / "step-000006")
    assert saved.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3).shape[1] > 3
    for line in run.parts.directory.read("metrics"):
        assert line["mismatch"] < (1e-4 if precision == "fp32" else 0.1)


def test_a_custom_controller_decides_and_observes_every_step(tmp_path):
    from hopd.horizon import Decision

    class Doubling:
        full_tokens = 130

        def __init__(self):
            self.tokens, self.seen = 4, []

        def decide(self, step):
            return Decision(self.tokens, f"doubled to {self.tokens}")

        def observe(self, evidence):
            self.seen.append(evidence)
            self.tokens *= 2

        def state_dict(self):
            return {"tokens": self.tokens}

        def load_state_dict(self, state):
            self.tokens = state["tokens"]

    controller = Doubling()
    run = Distiller.of(recipe(tmp_path), controller=controller, progress=Progress(quiet=True))
    run.train()
    assert [line["tokens"] for line in run.parts.directory.read("horizon")] == [4, 8, 16, 32]
    assert [e.edges for e in controller.seen][:2] == [(0, 1, 2, 4), (0, 1, 2, 4, 8)]
    assert controller.seen[1].counts == (8, 8, 16, 32)
    assert controller.seen[0].rollouts == 8
    total = sum(kl * n for kl, n in zip(controller.seen[1].reverse_kl, controller.seen[1].counts, strict=True))
    assert total / 64 == pytest.approx(run.parts.directory.read("metrics")[1]["reverse_kl"], rel=1e-4)
    resumed = Distiller.of(
        recipe(tmp_path, training={"steps": 5, "learning_rate": 1e-4}),
        resume=True,
        controller=Doubling(),
        progress=Progress(quiet=True),
    )
    resumed.train()
    assert resumed.parts.directory.read("horizon")[-1]["tokens"] == 64
