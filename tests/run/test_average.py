"""A run that averages its weights: who sees the average, and that training and resuming do not notice."""

import json
import os
import shutil
import signal
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hopd.assembly import build
from hopd.assembly.evaluator import evaluate_model
from hopd.distiller import Distiller
from hopd.errors import Interrupted
from hopd.forecast.preflight import preflight
from hopd.model import load
from hopd.processes import Processes
from hopd.recipe import Recipe
from hopd.remote import RequestStats
from hopd.rollout import NativeEngine
from hopd.rollout.weight_sync import WeightSync
from hopd.run.progress import Progress

STUDENT, TEACHER = "package:hopd/quickstart/student", "package:hopd/quickstart/teacher"
STEPS = 4
QUIET = Progress(quiet=True)
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"training.precision": "bf16"},
    "lora": {"lora": {"rank": 4, "alpha": 8}},
}


def same(mine, theirs):
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def recipe(output, name, kind="fp32", **changes: Any):
    content: dict[str, Any] = {
        "name": name,
        "output": str(output),
        "student": {"model": STUDENT},
        "teacher": {"model": TEACHER},
        "task": {"source": "addition", "steps": 1, "size": 32},
        "rollout": {"prompts": 4, "full_tokens": 40},
        "horizon": {"controller": "full"},
        "training": {"steps": STEPS, "learning_rate": 3e-3, "mini_batch": 2, "schedule": "wsd", "ema": 0.7},
        "evaluation": {
            "measure": "divergence",
            "task": {"source": "addition", "steps": 1, "size": 4, "held_out": True},
            "every": 1,
        },
        "checkpoint": {"every": 2, "keep_last": 9},
    }
    for place, value in (KINDS[kind] | changes).items():
        section, _, key = place.rpartition(".")
        (content[section] if section else content)[key] = value
    return Recipe.parse(content)


def distil(output, name, kind="fp32", resume=False, **changes: Any):
    run = Distiller.of(recipe(output, name, kind, **changes), resume=resume, progress=QUIET)
    run.train()
    return run


def saved(run, step=STEPS):
    """The tensors of a checkpoint by file: of the weights, of their average if there is one, of the optimizer."""
    place = run.parts.directory.checkpoints / f"step-{step:06d}"
    return {str(path.relative_to(place)): load_file(path) for path in sorted(place.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns an uninterrupted run of a kind, which is made once."""

    @cache
    def made(kind):
        return distil(tmp_path_factory.mktemp("runs"), "run", kind)

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_training_has_the_same_bits_with_and_without_an_average(tmp_path, whole, kind):
    plain, averaged = distil(tmp_path, "run", kind, **{"training.ema": None}), whole(kind)
    mine, theirs = saved(averaged), saved(plain)
    assert mine.keys() - theirs.keys() == {f"average/{next(iter(theirs.keys() - {'optimizer.safetensors'}))}"}
    assert all(same(mine[file], theirs[file]) for file in theirs)
    losses = [[line["loss"] for line in run.parts.directory.read("metrics")] for run in (plain, averaged)]
    assert losses[0] == losses[1]
    scores = [[line["score"] for line in run.parts.directory.read("evaluations")] for run in (plain, averaged)]
    assert scores[0][0] == scores[1][0]  # before the first update
    assert scores[0][-1] != scores[1][-1]
    assert averaged.parts.average.updates == 2 * STEPS


@pytest.mark.parametrize("kind", ["fp32", "lora"])
def test_an_evaluation_measures_the_average_that_the_checkpoint_holds(whole, kind):
    run = whole(kind)
    measured = {line["step"]: line for line in run.parts.directory.read("evaluations")}
    for step in (2, STEPS):
        place = run.parts.directory.checkpoints / f"step-{step:06d}"
        average = evaluate_model(str(place / "average"), run.parts.recipe).as_dict()
        raw = evaluate_model(str(place), run.parts.recipe).as_dict()
        assert {key: measured[step][key] for key in average} == json.loads(json.dumps(average))
        assert raw["reverse_kl"] != average["reverse_kl"]
        assert json.loads((place / "state.json").read_text())["score"] == measured[step]["score"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transformers_loads_the_average(whole, precision):
    run = whole(precision)
    place = run.parts.directory.checkpoints / f"step-{STEPS:06d}" / "average"
    assert (place / "tokenizer.json").exists()
    loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    assert same(dict(loaded.named_parameters()), run.parts.average.tensors)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(place / "model.safetensors").values())


@pytest.fixture
def cut(whole, tmp_path):
    """Copies a run of a kind, as if it had been killed before its last checkpoint, and returns the place."""

    def copied(kind):
        shutil.copytree(whole(kind).parts.directory.path, tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:06d}")
        return tmp_path

    return copied


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_continues_the_average_to_the_same_bits(whole, cut, kind):
    again = distil(cut(kind), "run", kind, resume=True)
    assert again.parts.resumed is not None
    mine, theirs = saved(again), saved(whole(kind))
    assert mine.keys() == theirs.keys()
    assert len(mine) == 3
    assert all(same(mine[file], theirs[file]) for file in mine)
    assert again.evaluation is not None
    assert again.evaluation.measured == whole(kind).evaluation.measured


def test_preflight_leaves_the_average_as_it_was(cut):
    parts = build(recipe(cut("fp32"), "run"), resume=True, progress=QUIET)
    before = {name: tensor.clone() for name, tensor in parts.average.tensors.items()}
    assert any("with the averaged weights" in line for line in list(preflight(parts)))
    assert same(parts.average.tensors, before)
    assert parts.resumed is not None
    assert parts.average.updates == 2 * parts.resumed.step


def test_a_signal_in_an_evaluation_saves_the_weights_and_not_the_average_in_their_place(tmp_path):
    class Told(NativeEngine):
        """Is told to stop in the evaluation after the third step: the student is its average then."""

        calls = 0

        def sample(self, *args, **named):
            self.calls += 1
            if self.calls == 1 + 3:  # the first is before the first step
                os.kill(os.getpid(), signal.SIGTERM)
            return super().sample(*args, **named)

    changes: dict[str, Any] = {"evaluation.measure": "accuracy", "checkpoint.every": 3}
    whole = distil(tmp_path, "whole", **changes)
    run = Distiller.of(recipe(tmp_path, "run", **changes), engine=Told, progress=QUIET)
    with pytest.raises(Interrupted):
        run.train()
    mine, theirs = saved(run, 3), saved(whole, 3)
    assert all(same(mine[file], theirs[file]) for file in theirs)


class Copy:
    """Decodes with a model of its own, and keeps what it received."""

    shared = False

    def __init__(self):
        self.model, self.stats, self.received = load(STUDENT), RequestStats(), []

    def extend(self, stretches, sampling):
        return NativeEngine(self.model).extend(stretches, sampling)

    def check(self, longest):
        return ()

    def receive(self, weights):
        self.received.append({name: weight.clone() for name, weight in weights.items()})
        self.model.model.load_state_dict(weights)

    def adopt(self, received):
        pass

    @torch.no_grad()
    def score(self, ids):
        log_probs = self.model.head.logits(self.model.hidden(torch.tensor([ids]))[0, :-1]).log_softmax(-1)
        return {"copy": log_probs.gather(-1, torch.tensor(ids)[1:, None])[:, 0]}

    def sleep(self):
        pass


def test_an_engine_with_a_copy_gets_the_average_to_evaluate_and_the_weights_to_train(tmp_path):
    copy = Copy()
    changes: dict[str, Any] = {"evaluation.measure": "accuracy", "checkpoint.every": 1}
    run = Distiller.of(
        recipe(tmp_path, "run", **changes),
        engine=lambda student: WeightSync(copy, student, Processes(), torch.float32),
        progress=QUIET,
    )
    run.train()
    for step in range(1, STEPS + 1):
        files = saved(run, step)
        evaluated, sampled = copy.received[2 * step], copy.received[2 * step + 1 :][:1]
        for received, file in zip(
            [evaluated, *sampled], ("average/model.safetensors", "model.safetensors"), strict=False
        ):
            assert all(torch.equal(received[name], tensor) for name, tensor in files[file].items())
        assert not same(*(files[file] for file in ("average/model.safetensors", "model.safetensors")))
    assert len(copy.received) == 2 * STEPS + 1
