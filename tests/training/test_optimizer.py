"""AdamW on master weights: plain in fp32, exact sums in bf16, and what it saves."""

import copy

import pytest
import torch

from hopd.model import load
from hopd.processes import Processes
from hopd.recipe import TrainingSection
from hopd.training.optimizer import MasterOptimizer

STUDENT = "package:hopd/quickstart/student"
IDS = torch.arange(40).view(2, 20) % 40


def settings(**changes):
    return TrainingSection(steps=10, learning_rate=1e-3, **changes)


def gradient(optimizer, name):
    found = optimizer.masters[name].grad
    assert found is not None
    return found


def gradients(model, scale=1.0):
    (scale * model.hidden(IDS).float().pow(2).mean()).backward()


def test_in_fp32_the_optimizer_is_plain_adamw():
    ours, plain = load(STUDENT), load(STUDENT)
    optimizer = MasterOptimizer(ours.model, settings(weight_decay=0.1, clip_norm=1e9), 10)
    matrices = [p for p in plain.model.parameters() if p.dim() > 1]
    vectors = [p for p in plain.model.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3
    )
    for step in range(3):
        gradients(ours)
        gradients(plain)
        optimizer.step(step, Processes())
        adamw.step()
        adamw.zero_grad()
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_bf16_keeps_updates_that_bf16_alone_would_lose():
    model = load(STUDENT)
    weight = model.model.model.layers[0].self_attn.q_proj.weight
    optimizer = MasterOptimizer(model.model, settings(precision="bf16").model_copy(update={"learning_rate": 1e-7}), 10)
    before, copy_before = optimizer.masters["model.layers.0.self_attn.q_proj.weight"].clone(), weight.clone()
    assert weight.dtype == torch.bfloat16
    assert optimizer.masters["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32
    for step in range(5):
        gradients(model)
        optimizer.step(step, Processes())
    moved = (optimizer.masters["model.layers.0.self_attn.q_proj.weight"] - before).abs()
    assert 4e-7 < float(moved.max()) < 6e-7
    assert float((weight - copy_before).abs().max()) <= float(copy_before.abs().max()) * 2**-8
    torch.testing.assert_close(weight, optimizer.masters["model.layers.0.self_attn.q_proj.weight"].bfloat16())


def test_bf16_micro_batches_add_up_in_fp32():
    model = load(STUDENT)
    optimizer = MasterOptimizer(model.model, settings(precision="bf16"), 10)
    name = "model.layers.1.mlp.up_proj.weight"
    gradients(model, 1024.0)
    large = gradient(optimizer, name).clone()
    for _ in range(64):
        gradients(model, 1.0)
    expected = large * (1 + 64 / 1024)
    torch.testing.assert_close(gradient(optimizer, name), expected, rtol=0.02, atol=1e-3 * float(large.abs().max()))


def test_nothing_moves_where_the_gradient_is_not_finite():
    model = load(STUDENT)
    optimizer = MasterOptimizer(model.model, settings(), 10)
    before = copy.deepcopy(model.model.state_dict())
    gradients(model, float("inf"))
    assert not torch.isfinite(torch.tensor(optimizer.step(0, Processes())))
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_norm_is_clipped():
    a, b = load(STUDENT), load(STUDENT)
    small, large = MasterOptimizer(a.model, settings(clip_norm=1e-3), 10), MasterOptimizer(b.model, settings(), 10)
    gradients(a)
    gradients(b)
    assert small.step(0, Processes()) == pytest.approx(large.step(0, Processes()))
    first = next(iter(small.masters))
    assert float(small.state()[f"exp_avg.{first}"].norm()) < float(large.state()[f"exp_avg.{first}"].norm())


def test_a_copy_of_the_state_is_on_the_cpu_and_stays_as_it_was():
    model = load(STUDENT)
    optimizer = MasterOptimizer(model.model, settings(), 10)
    gradients(model)
    optimizer.step(0, Processes())
    state = optimizer.state()
    before = copy.deepcopy(state)
    gradients(model, 2.0)
    optimizer.step(1, Processes())
    assert all(tensor.device.type == "cpu" for tensor in state.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    assert not torch.equal(optimizer.state()["exp_avg.model.norm.weight"], before["exp_avg.model.norm.weight"])


def test_state_that_was_gathered_to_the_cpu_is_not_copied_again(monkeypatch):
    """Stands in for a sharded model, whose whole tensors are made one by one from the processes' parts."""
    model = load(STUDENT)
    optimizer = MasterOptimizer(model.model, settings(), 10)
    gradients(model)
    optimizer.step(0, Processes())
    made: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(
        "hopd.training.optimizer.gathered",
        lambda moments, keep: made | {n: made.setdefault(n, t.clone()) for n, t in moments.items()},
    )
    assert all(tensor is made[name] for name, tensor in optimizer.state().items())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.25, 0.5, 0.75, 1, 0.9045, 0.6545, 0.3455, 0.0955]),
        ("wsd", [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.625]),  # decays in the last 1.6 of 8 steps
    ],
)
def test_learning_rates(schedule, expected):
    optimizer = MasterOptimizer(load(STUDENT).model, settings(schedule=schedule, warmup_steps=3), 8)
    assert [optimizer.learning_rate(step) / 1e-3 for step in range(8)] == pytest.approx(expected, abs=1e-4)


def test_gradient_checkpointing_gives_the_same_gradient_and_decodes_as_before():
    from hopd.rollout import NativeEngine, Prompt, Sampling

    plain, recomputing = load(STUDENT), load(STUDENT)
    recomputing.checkpoint_activations()
    gradients(plain)
    gradients(recomputing)
    for a, b in zip(plain.model.parameters(), recomputing.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    prompts = [Prompt(0, IDS[0, 5:12])]
    first, second = (NativeEngine(m).sample(prompts, 20, Sampling(), 0)[0] for m in (plain, recomputing))
    assert first.ids.tolist() == second.ids.tolist()
