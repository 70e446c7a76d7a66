"""FSDP2 with one rank, under torchrun: no parallelism, but every call of `hopd.model.sharding` on the device.

`torchrun --nproc-per-node 1 -m benchmarks.gpu.sharded cuda`
"""

import sys

import torch
import torch.distributed
from torch.distributed.tensor import DTensor

from benchmarks.gpu.shapes import QUICKSTART
from hopd.model import load
from hopd.model.fsdp import shard
from hopd.objective import Full, distillation_loss
from hopd.processes import Processes
from hopd.recipe import TrainingSection
from hopd.rollout import NativeEngine, Prompt, Sampling, pack
from hopd.teacher import LocalTeacher
from hopd.training.optimizer import MasterOptimizer


def main(kind: str) -> None:
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    student, teacher = load(QUICKSTART, device=device), load(QUICKSTART, device=device)
    processes = Processes(device=device)
    shard(student, processes, bf16=True)
    optimizer = MasterOptimizer(student.model, TrainingSection(steps=2, learning_rate=1e-6, precision="bf16"), 2)
    student.checkpoint_activations()
    prompts = [Prompt(i, torch.arange(4, 8 + i)) for i in range(4)]
    for step in range(2):
        rollouts = NativeEngine(student).sample(prompts, 16, Sampling(), step)
        for batch in pack(rollouts, [(0, rollout.length) for rollout in rollouts], 64, device):
            hidden = batch.states(student.hidden(batch.ids))
            signal = LocalTeacher(teacher).score(batch)
            loss, _ = distillation_loss(Full(), student.head, hidden, signal, batch.at, 1.0)
            loss.backward()
        norm = optimizer.step(step, processes)
        student.sharding.reshard()
        print(f"step {step}: gradient norm {norm:.3g}")
    weights, moments = optimizer.master_state(student.model), optimizer.state()
    assert all(isinstance(master, DTensor) for master in optimizer.masters.values())
    assert all(tensor.device.type == "cpu" for tensor in (*weights.values(), *moments.values()))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
