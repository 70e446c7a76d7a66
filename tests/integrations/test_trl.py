"""The horizon inside TRL, with the real DistillationTrainer on the quickstart's models, on a CPU."""

import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, Trainer
from trl import DistillationConfig, DistillationTrainer

import hopd
from hopd.errors import CheckpointError, RecipeError
from hopd.horizon import Decision, Full, Progressive
from hopd.integrations.trl import HorizonCallback
from hopd.tasks.addition import RepeatedAddition
from tests.rollout.vllm.vllm_server import VLLM_PYTHON, needs_vllm

MODELS = Path(hopd.__file__).parent / "quickstart"
T = 24  # a solution of three additions has 92 tokens, so no completion stops before T
GROWING: dict[str, Any] = {"start": 4, "increment": 3}
HORIZONS = [4, 7, 10, 13, 16, 19]


class Recorded(DistillationTrainer):
    """Records the completion lengths of each optimiser step and of each evaluation batch."""

    steps: list[list[int]]
    evaluations: list[list[int]]

    def _prepare_inputs(self, batch):
        prepared = super()._prepare_inputs(batch)
        assert self.model
        lengths = prepared["completion_mask"].sum(1).tolist()
        if not self.model.training:
            self.evaluations.append(lengths)
        elif self._step % self.args.gradient_accumulation_steps == 0:
            self.steps.append(lengths)
        else:
            self.steps[-1].extend(lengths)
        return prepared


class Stretching:
    """Adds one token for every step that it has observed, so it depends on `observe` and on its saved state."""

    full_tokens = T

    def __init__(self):
        self.seen = []

    def decide(self, step):
        return Decision(4 + len(self.seen), f"seen {len(self.seen)} steps")

    def observe(self, evidence):
        self.seen.append([evidence.step, evidence.horizon, evidence.rollouts, evidence.stopped, evidence.mean_length])

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def make(output, controller, max_steps=6, **settings):
    problems = RepeatedAddition(steps=3, size=64).problems
    options = {
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": max_steps,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "max_completion_length": T,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    trainer = Recorded(
        model=str(MODELS / "student"),
        teacher_model=str(MODELS / "teacher"),
        args=DistillationConfig(**options | settings),
        train_dataset=Dataset.from_list([{"prompt": problem.prompt} for problem in problems]),
        eval_dataset=Dataset.from_list([{"prompt": problem.prompt} for problem in problems[:2]]),
        processing_class=AutoTokenizer.from_pretrained(MODELS / "student"),
    )
    trainer.steps, trainer.evaluations = [], []
    callback = HorizonCallback(controller)
    callback.attach(trainer)
    return trainer


def logged(trainer, name):
    return [line[name] for line in trainer.state.log_history if name in line]


def lines(trainer):
    return [json.loads(line) for line in (Path(trainer.args.output_dir) / "horizon.jsonl").read_text().splitlines()]


def test_the_completions_of_a_step_obey_its_own_horizon_and_all_their_tokens_carry_loss(tmp_path):
    trainer = make(tmp_path, Progressive(T, **GROWING))
    trainer.train()
    assert trainer.steps == [[h] * 4 for h in HORIZONS]
    assert logged(trainer, "horizon") == HORIZONS
    assert lines(trainer)[1] == {"step": 2, "tokens": 7, "reason": "progressive: 4 + 3 · ⌊1 / 1⌋ = 7 tokens"}
    assert [line["tokens"] for line in lines(trainer)] == HORIZONS


def test_evaluation_runs_to_the_full_length(tmp_path):
    trainer = make(
        tmp_path, Progressive(T, **GROWING), max_steps=3, eval_strategy="steps", eval_steps=1, eval_on_start=True
    )
    trainer.train()
    trainer.evaluate()
    assert [length for batch in trainer.evaluations for length in batch] == [T] * (2 * 5)
    assert trainer.steps == [[h] * 4 for h in HORIZONS[:3]]


def test_evaluation_after_an_interrupted_step_runs_to_the_full_length(tmp_path):
    trainer = make(tmp_path, Progressive(T, **GROWING))
    step = trainer.training_step

    def interrupted(*given):
        step(*given)
        raise KeyboardInterrupt

    trainer.training_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.steps == [[4] * 2]
    trainer.evaluate()
    assert trainer.evaluations == [[T, T]]


def test_the_horizon_survives_a_resume(tmp_path):
    whole = make(tmp_path / "whole", Stretching())
    whole.train()
    begun = make(tmp_path / "cut", Stretching(), save_strategy="steps", save_steps=2)
    training_step, count = begun.training_step, itertools.count(1)

    def cut(*given):
        if next(count) == 8:  # in the middle of the fourth step
            raise KeyboardInterrupt
        return training_step(*given)

    begun.training_step = cut
    with pytest.raises(KeyboardInterrupt):
        begun.train()
    resumed = make(tmp_path / "cut", Stretching(), save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert [h for [h, *_] in whole.steps] == [4, 5, 6, 7, 8, 9]
    assert resumed.steps == whole.steps[2:]
    assert lines(resumed) == lines(whole)
    observed = resumed.callback_handler.callbacks[-1].controller.seen
    assert observed == whole.callback_handler.callbacks[-1].controller.seen
    assert observed[3] == [3, 7, 4, 0, 7.0]


def test_a_controller_observes_how_many_completions_stopped(tmp_path, monkeypatch):
    controller = Stretching()
    controller.full_tokens = 40
    monkeypatch.setattr(controller, "decide", lambda step: Decision(40, "the length of a solution"))
    trainer = make(tmp_path, controller, max_steps=1, max_completion_length=40)
    trainer.train_dataset = Dataset.from_list([{"prompt": p.prompt} for p in RepeatedAddition(1, 64).problems])
    trainer.train()
    [[step, horizon, rollouts, stopped, mean_length]] = controller.seen
    assert (step, horizon, rollouts) == (0, 40, 4)
    assert stopped == sum(length < 40 for length in trainer.steps[0]) > 0
    assert mean_length == sum(trainer.steps[0]) / 4


def test_settings_that_would_override_the_horizon_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"full length is 30 tokens, TRL's max_completion_length is 24"):
        make(tmp_path, Full(30))
    with pytest.raises(RecipeError, match=r"max_new_tokens, which overrides the horizon"):
        make(tmp_path, Full(T), generation_kwargs={"max_new_tokens": 8})
    with pytest.raises(RecipeError, match="leave it off"):
        make(tmp_path, Full(T), restore_callback_states_from_checkpoint=True)
    with pytest.raises(RecipeError, match="not Trainer"):
        HorizonCallback(Full(T)).attach(Trainer.__new__(Trainer))  # type: ignore[arg-type]
    trainer = make(tmp_path, Full(T))
    trainer.add_callback(HorizonCallback(Full(T)))
    with pytest.raises(RecipeError, match=r"write callback\.attach\(trainer\)"):
        trainer.train()


def test_a_checkpoint_that_was_saved_without_the_callback_is_refused(tmp_path):
    trainer = make(tmp_path, Full(T), max_steps=1, save_strategy="steps", save_steps=1)
    trainer.remove_callback(HorizonCallback)
    trainer.train()
    with pytest.raises(CheckpointError, match="saved without HorizonCallback"):
        make(tmp_path, Full(T), max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@needs_vllm
def test_vllm_inside_trl_obeys_the_horizon_and_evaluates_to_the_full_length():
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": f"{root}:{root / 'src'}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # TRL reaches into the engine
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if subprocess.run([VLLM_PYTHON, "-c", "import trl"], env=environment, capture_output=True).returncode:
        pytest.skip("the Python of HOPD_VLLM_PYTHON has vLLM, but no TRL")
    command = [VLLM_PYTHON, "-m", "tests.integrations.trl_vllm"]
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    [line] = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert result["steps"] == [[h] * 4 for h in HORIZONS[:3]]
    assert [length for batch in result["evaluations"] for length in batch] == [T] * (2 * 3)
    assert result["logged"] == HORIZONS[:3]
