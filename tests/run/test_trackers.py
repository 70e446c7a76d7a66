"""A tracker has the recipe and each step once, across resumes; one that fails is told of once."""

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from hopd.run.trackers import Trackers

STEPS = [(step, {"loss": step / 2, "name": "no number"}) for step in range(1, 5)]


class Told(list[str]):
    def __call__(self, text):
        self.append(text)


@pytest.fixture
def library(monkeypatch):
    """A stand-in for wandb, which needs a server, that keeps what it is given."""
    module: Any = ModuleType("wandb")
    module.runs = []

    class Run:
        def __init__(self, **given):
            self.given, self.logged = given, []

        def log(self, values, step):
            module.hook(step)
            self.logged.append((step, values))

        def finish(self):
            self.given["finished"] = True

    def init(**given):
        module.runs.append(Run(**given))
        return module.runs[-1]

    module.init, module.hook = init, lambda step: None
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def track(tmp_path, steps, told, patience=30.0, names=("wandb",)):
    trackers = Trackers(names, tmp_path, told, patience)
    trackers.open("run", "seed: 3\n", steps, [(2, {"evaluation/score": 0.5})] if len(steps) > 1 else [])
    trackers.close()


def test_a_resumed_run_goes_on_with_each_step_once(tmp_path, library):
    told = Told()
    track(tmp_path, STEPS[:3], told)
    track(tmp_path, STEPS, told)
    first, second = library.runs
    assert first.given["config"] == {"seed": 3}
    assert (first.given["id"], first.given["resume"]) == (second.given["id"], "allow")
    assert [step for step, _ in first.logged] == [1, 2, 2, 3]
    assert second.logged == [(4, {"loss": 2.0})]
    assert second.given["finished"]
    assert not told


def test_one_that_raises_is_told_of_once(tmp_path, library):
    def hook(step):
        raise ConnectionError("no route to host")

    library.hook, told = hook, Told()
    track(tmp_path, STEPS, told)
    assert len(told) == 1
    assert told[0].startswith("the tracker wandb failed (ConnectionError: no route to host): the run goes on without")


def test_one_that_hangs_does_not_hold_up_the_run(tmp_path, library):
    released, told = threading.Event(), Told()
    library.hook = lambda step: released.wait(60)
    track(tmp_path, STEPS, told, patience=0.1)
    assert told == ["the tracker wandb does not answer: it may lack steps, metrics.jsonl has them"]
    released.set()


@pytest.mark.skipif(not importlib.util.find_spec("tensorboardX"), reason="there is no tensorboardX")
def test_tensorboard_has_the_recipe_and_each_step_once(tmp_path):
    written = importlib.import_module("tensorboardX.proto.event_pb2").Event

    told = Told()
    track(tmp_path, STEPS[:2], told, names=("tensorboard",))
    track(tmp_path, STEPS, told, names=("tensorboard",))
    assert not told
    losses, texts = [], []
    for path in sorted((tmp_path / "run").iterdir()):
        content = path.read_bytes()
        while content:  # a length, its checksum, the event, its checksum
            size = int.from_bytes(content[:8], "little")
            event = written.FromString(content[12 : 12 + size])
            losses += [event.step for value in event.summary.value if value.tag == "loss"]
            texts += [value.tensor.string_val for value in event.summary.value if value.tag.startswith("recipe")]
            content = content[16 + size :]
    assert sorted(losses) == [1, 2, 3, 4]
    assert b"seed: 3" in texts[0][0]
