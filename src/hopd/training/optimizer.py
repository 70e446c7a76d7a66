"""AdamW on fp32 master weights, with a learning rate that is a function of the step.

In fp32 the model's parameters are the master weights; so are those of a sharded model, which makes its compute copies
itself. In bf16 any other model computes with copies: as the backward pass makes their gradients, each is added to its
master's, in fp32, and dropped. The copies are made anew once a step.
"""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hopd.model.sharding import gathered, local, shard_like
from hopd.processes import Processes
from hopd.recipe import TrainingSection

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
BLOCK = 2**19  # elements that are converted at once: they stay in a CPU's cache


class MasterOptimizer:
    """`model` holds fp32 weights when it comes, and its compute precision afterwards."""

    def __init__(self, model: nn.Module, settings: TrainingSection, total_steps: int):
        self.settings, self.total_steps = settings, total_steps
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        sharded = any(isinstance(parameter, DTensor) for parameter in self.parameters.values())
        if settings.precision == "bf16" and not sharded:
            self.masters = {name: nn.Parameter(p.detach().clone()) for name, p in self.parameters.items()}
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16()
            scratch = torch.empty(max(BLOCK, *(_rows(p)[0].numel() for p in self.masters.values())))
            for name, parameter in self.parameters.items():
                parameter.register_post_accumulate_grad_hook(partial(_hand_over, scratch, self.masters[name]))
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
        """Sums the gradients over the processes, clips, updates; returns the gradient's norm before clipping.

        Nothing is updated where the norm is not finite.
        """
        for master in self.masters.values():
            if not isinstance(master, DTensor):  # whose gradient is summed already
                master.grad = processes.sum(torch.zeros_like(master) if master.grad is None else master.grad)
        total = torch.nn.utils.clip_grad_norm_(self.masters.values(), self.settings.clip_norm)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if math.isfinite(norm):
            for group in self.adamw.param_groups:
                group["lr"] = self.learning_rate(step)
            self.adamw.step()
            self.refresh()
        # What a CPU frees it must ask for again, page by page; a GPU's memory is wanted for the rollouts.
        self.adamw.zero_grad(set_to_none=self.device.type != "cpu")
        return norm

    @torch.no_grad()
    def refresh(self) -> None:
        """The compute copies, from the masters."""
        if self.masters is not self.parameters:
            for name, parameter in self.parameters.items():
                parameter.copy_(self.masters[name])

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then the schedule down to zero at the last step."""
        settings = self.settings
        return settings.learning_rate * _factor(settings.schedule, step, settings.warmup_steps, self.total_steps)

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """Returns a copy of AdamW's moments in the CPU's memory, by parameter name; empty before the first step, and
        where `keep` is not set. All processes of a sharded model take part."""
        moments = {
            f"{moment}.{name}": self.adamw.state[master][moment]
            for name, master in self.masters.items()
            if self.adamw.state[master]
            for moment in MOMENTS
        }
        whole = gathered(moments, keep)  # of a sharded model copies already
        return {
            name: moment.to("cpu", copy=True) if _same_memory(moment, local(moments[name])) else moment
            for name, moment in whole.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, master in self.masters.items():
            moments = {moment: state[f"{moment}.{name}"] for moment in MOMENTS if f"{moment}.{name}" in state}
            if moments:
                self.adamw.state[master] = {
                    key: moment.to(master.device) if key == "step" else shard_like(moment, master)
                    for key, moment in moments.items()
                }

    def master_state(self, model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
        """The model's state dict, at the masters' precision; tied weights stay tied. `keep`: as in `state`."""
        master_of = {id(parameter): self.masters[name] for name, parameter in self.parameters.items()}
        weights = model.state_dict(keep_vars=True)
        return gathered({name: master_of.get(id(tensor), tensor) for name, tensor in weights.items()}, keep)

    def snapshot(self) -> dict[str, Tensor]:
        """What this process holds of the masters, in the CPU's memory."""
        return {name: local(master).detach().to("cpu", copy=True) for name, master in self.masters.items()}

    @torch.no_grad()
    def take_back(self, before: dict[str, Tensor]) -> float:
        """Brings masters and moments back to a snapshot at the beginning; gives the largest change of a weight."""
        moved = 0.0
        for name, master in self.masters.items():
            mine, old = local(master), before[name]
            if mine.numel():
                moved = max(moved, float((mine.cpu() - old).abs().max()))
            mine.copy_(old)
        self.refresh()
        self.adamw.state.clear()
        return moved


def _hand_over(scratch: Tensor, master: nn.Parameter, copy: Tensor) -> None:
    """The gradient of a compute copy, to its master's; `scratch` (fp32) is where a CPU converts it, part by part."""
    assert copy.grad is not None
    if master.grad is None:
        master.grad = copy.grad.float()
    elif master.is_cpu:
        size = max(1, len(scratch) // _rows(copy)[0].numel())
        for total, part in zip(_rows(master.grad).split(size), _rows(copy.grad).split(size), strict=True):
            total.add_(scratch[: part.numel()].view(part.shape).copy_(part))
    else:
        master.grad.add_(copy.grad)
    copy.grad = None


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _rows(tensor: Tensor) -> Tensor:
    """Of a number, one."""
    return torch.atleast_1d(tensor)


def _factor(schedule: Literal["constant", "linear", "cosine"], step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
