"""Runs AdamW on fp32 master weights, with a learning rate that is a function of the step.

In fp32, the model's parameters are the master weights; so are those of a sharded model, which makes its bf16 copies
itself. Any other bf16 model computes with copies of its master weights: as soon as the backward pass has made the
gradient of a copy, it is added to the master's gradient in fp32 and freed. Each step refreshes the copies.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hopd.model.sharding import gathered, local, shard_like
from hopd.processes import Processes
from hopd.recipe import TrainingSection

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
BLOCK = 2**19  # elements converted at once, so that they stay in a CPU's cache


class MasterOptimizer:
    """Optimises the trainable parameters of `model`, which must be fp32; afterwards they have the compute precision."""

    def __init__(self, model: nn.Module, settings: TrainingSection, total_steps: int):
        self.settings, self.total_steps = settings, total_steps
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        sharded = any(isinstance(parameter, DTensor) for parameter in self.parameters.values())
        if settings.precision == "bf16" and not sharded:
            self.masters = {name: nn.Parameter(p.detach().clone()) for name, p in self.parameters.items()}
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16()
            scratch = torch.empty(max(BLOCK, *(_at_least_1d(p)[0].numel() for p in self.masters.values())))
            for name, parameter in self.parameters.items():
                hook = partial(_move_gradient, scratch, self.masters[name])
                parameter.register_post_accumulate_grad_hook(hook)
        else:
            self.masters = self.parameters
        self.device = next(iter(self.masters.values())).device
        # Norms and biases are not decayed.
        groups = [
            {"params": [p for p in self.masters.values() if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in self.masters.values() if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)

    def step(self, step: int, processes: Processes) -> float:
        """Sums the gradients over the processes, clips them and updates the weights.

        Returns the gradient's norm before clipping; if it is not finite, nothing is updated.
        """
        for master in self.masters.values():
            if not isinstance(master, DTensor):  # FSDP has summed the gradient of a DTensor already
                master.grad = processes.sum(torch.zeros_like(master) if master.grad is None else master.grad)
        total = torch.nn.utils.clip_grad_norm_(self.masters.values(), self.settings.clip_norm)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if math.isfinite(norm):
            for group in self.adamw.param_groups:
                group["lr"] = self.learning_rate(step)
            self.adamw.step()
            self.refresh()
        # On a CPU, memory that is freed has to be mapped again page by page; on a GPU, the rollouts need it.
        self.adamw.zero_grad(set_to_none=self.device.type != "cpu")
        return norm

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the masters into the compute copies."""
        if self.masters is not self.parameters:
            for name, parameter in self.parameters.items():
                parameter.copy_(self.masters[name])

    def learning_rate(self, step: int) -> float:
        """Returns the rate of a step, from 0: linear warm-up, then the schedule.

        Unless it is constant, it would be zero at the step after the last: every step trains.
        """
        return self.settings.learning_rate * _factor(self.settings, step, self.total_steps)

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """Returns a copy of AdamW's moments in CPU memory, by parameter name.

        It is empty before the first step or if `keep` is false. All processes of a sharded model must call it together.
        """
        moments = {
            f"{moment}.{name}": self.adamw.state[master][moment]
            for name, master in self.masters.items()
            if self.adamw.state[master]
            for moment in MOMENTS
        }
        whole = gathered(moments, keep)  # for a sharded model these are copies already
        return {
            name: moment.to("cpu", copy=True) if _same_memory(moment, local(moments[name])) else moment
            for name, moment in whole.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restores AdamW's moments from what `state` returned."""
        for name, master in self.masters.items():
            moments = {moment: state[f"{moment}.{name}"] for moment in MOMENTS if f"{moment}.{name}" in state}
            if moments:
                self.adamw.state[master] = {
                    key: moment.to(master.device) if key == "step" else shard_like(moment, master)
                    for key, moment in moments.items()
                }

    def master_state(self, model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
        """Returns the model's state dict in the masters' precision; tied weights stay tied. `keep` is as in `state`."""
        return self.model_state(model, self.masters, keep)

    def model_state(self, model: nn.Module, values: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
        """Returns the model's state dict with `values` by name in place of the trained parameters; tied weights stay
        tied. `keep` is as in `state`."""
        value_of = {id(parameter): values[name] for name, parameter in self.parameters.items()}
        weights = model.state_dict(keep_vars=True)
        return gathered({name: value_of.get(id(tensor), tensor) for name, tensor in weights.items()}, keep)

    def snapshot(self) -> dict[str, Tensor]:
        """Returns a copy of this process's part of the masters, in CPU memory."""
        return {name: local(master).detach().to("cpu", copy=True) for name, master in self.masters.items()}

    @torch.no_grad()
    def roll_back(self, before: dict[str, Tensor]) -> float:
        """Restores the masters from a snapshot and clears the moments; returns the largest change of a weight.

        The snapshot must be from before the first step.
        """
        moved = 0.0
        for name, master in self.masters.items():
            weight, old = local(master), before[name]
            if weight.numel():
                moved = max(moved, float((weight.cpu() - old).abs().max()))
            weight.copy_(old)
        self.refresh()
        self.adamw.state.clear()
        return moved


def _move_gradient(scratch: Tensor, master: nn.Parameter, copy: Tensor) -> None:
    """Adds the gradient of a compute copy to its master's and frees it. A CPU converts it in blocks, in `scratch`."""
    assert copy.grad is not None
    if master.grad is None:
        master.grad = copy.grad.float()
    elif master.is_cpu:
        size = max(1, len(scratch) // _at_least_1d(copy)[0].numel())
        totals, parts = (torch.split(_at_least_1d(grad), size) for grad in (master.grad, copy.grad))
        for total, part in zip(totals, parts, strict=True):
            total.add_(scratch[: part.numel()].view(part.shape).copy_(part))
    else:
        master.grad.add_(copy.grad)
    copy.grad = None


def _same_memory(a: Tensor, b: Tensor) -> bool:
    """Tells whether two tensors share their storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _at_least_1d(tensor: Tensor) -> Tensor:
    """Returns the tensor, or a vector of one element if it is a number."""
    return tensor if tensor.dim() else tensor[None]


def _factor(settings: TrainingSection, step: int, total: int) -> float:
    """Returns the rate of a step as a fraction of the highest one."""
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    if settings.decay is not None:  # wsd; over all steps it is linear
        return min(1.0, (total - step) / min(settings.decay * total, total - warmup))
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1 - progress if settings.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
