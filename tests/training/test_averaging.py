"""The average of the weights against plain sums, and the student that takes its place and gives it back."""

import pytest
import torch

from hopd.model import load
from hopd.processes import Processes
from hopd.recipe import TrainingSection
from hopd.training.averaging import WeightAverage
from hopd.training.optimizer import MasterOptimizer

STUDENT = "package:hopd/quickstart/student"
IDS = torch.arange(40).view(2, 20) % 40


def averaging(decay, precision="fp32", steps=0):
    """A student, its optimizer and its average after `steps` updates, and the masters after each in float64."""
    student = load(STUDENT)
    section = TrainingSection(steps=50, learning_rate=1e-2, precision=precision)
    optimizer = MasterOptimizer(student.model, section, 50)
    average = WeightAverage(student, optimizer, decay)
    history = []
    for step in range(steps):
        student.hidden((IDS + step) % 40).float().pow(2).mean().backward()
        optimizer.step(step, Processes())
        average.update()
        history.append({name: master.detach().double() for name, master in optimizer.masters.items()})
    return student, optimizer, average, history


def bits(student, optimizer):
    tensors = {**student.model.state_dict(), **{f"master.{name}": m for name, m in optimizer.masters.items()}}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(mine, theirs):
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_the_weighted_mean_of_the_weights_after_each_update(decay, precision):
    for steps in (1, 2, 12):
        _, _, average, history = averaging(decay, precision, steps)
        weights = [decay ** (steps - 1 - i) for i in range(steps)]
        for name, tensor in average.tensors.items():
            expected = sum(w * past[name] for w, past in zip(weights, history, strict=True)) / sum(weights)
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)


def test_before_the_first_update_it_is_the_student():
    student, optimizer, average, _ = averaging(0.9)
    before = bits(student, optimizer)
    with average.as_student():
        assert same(bits(student, optimizer), before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_student_computes_with_the_average_and_then_has_its_own_weights_to_the_bit(precision):
    student, optimizer, average, _ = averaging(0.9, precision, steps=3)
    before, tensors = bits(student, optimizer), {name: t.clone() for name, t in average.tensors.items()}
    with average.as_student():
        for name, parameter in student.model.named_parameters():
            assert torch.equal(parameter, tensors[name].to(parameter.dtype))
        assert not same(bits(student, optimizer), before)
    assert same(bits(student, optimizer), before)
    assert same(average.tensors, tensors)


def test_gathered_copies_are_freed_before_the_weights_change(monkeypatch):
    """Stands in for a sharded model, in which a pass has left weights gathered."""
    student, optimizer, average, _ = averaging(0.9, steps=2)
    before, seen = bits(student, optimizer), []
    monkeypatch.setattr(student.sharding, "reshard", lambda: seen.append(same(bits(student, optimizer), before)))
    with average.as_student():
        pass
    assert seen == [True, False]


def test_without_a_decay_there_is_no_average():
    student, optimizer, average, _ = averaging(None, steps=2)
    before = bits(student, optimizer)
    with average.as_student():
        assert same(bits(student, optimizer), before)
    assert average.tensors == average.model_state(keep=True) == {}
