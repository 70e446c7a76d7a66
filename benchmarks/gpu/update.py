"""One update at the paper's size: seconds by part, model FLOP/s, and memory, of the optimiser's state too."""

from functools import partial

import torch

from benchmarks.gpu.place import GB, Place
from benchmarks.gpu.record import Record
from benchmarks.gpu.shapes import random_model, random_prompts
from hopd.model import LanguageModel
from hopd.model.flops import PassCost
from hopd.objective import Full, Objective, TopK, distillation_loss
from hopd.processes import Processes
from hopd.recipe import TrainingSection
from hopd.rollout import FinishReason, Rollout, pack
from hopd.rollout.batch import Batch
from hopd.teacher import LocalTeacher
from hopd.training.optimizer import MasterOptimizer

PROMPT = 128
CASES = [(1, 15360), (4, 3968), (16, 960)]  # rollouts, tokens of a response: 16k tokens with their prompts
MIB = 2**20


def run(place: Place, record: Record) -> None:
    student = random_model(place, "1.5b", torch.float32)
    teacher = random_model(place, "1.5b", torch.bfloat16, seed=1)
    optimizer = MasterOptimizer(student.model, TrainingSection(steps=10, learning_rate=1e-6, precision="bf16"), 10)
    student.checkpoint_activations()
    place.empty()
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    record.add("weights", parameters=parameters, allocated_gb=place.allocated_gb, teacher_gb=2 * parameters / GB)
    cost, scorer = PassCost.of(student), LocalTeacher(teacher)
    objectives: dict[str, Objective] = {"top_k 16": TopK(k=16), "full": Full()}
    for rows, response in [(2, 60)] if place.tiny else CASES:
        batch = _batch(student, rows, response)
        for name, objective in objectives.items():
            _parts(place, student, scorer, objective, batch)
            place.empty()
            seconds = _parts(place, student, scorer, objective, batch)
            flops = 2 * cost.forward(batch.lengths, 0) + cost.backward(batch.lengths, 0)  # layers are computed twice
            record.add(
                "update",
                rows=rows,
                response=response,
                objective=name,
                **seconds,
                backbone_tflops=flops / (seconds["forward_s"] + seconds["backward_s"]) / 1e12,
                peak_gb=place.peak_gb,
            )
    _chunks(place, record, student, scorer, objectives["top_k 16"], _batch(student, *(CASES[0], (2, 60))[place.tiny]))
    _optimizer(place, record, optimizer)


def _batch(student: LanguageModel, rows: int, response: int) -> Batch:
    generator = torch.Generator().manual_seed(2)
    rollouts = [
        Rollout(
            prompt,
            0,
            torch.randint(10, student.head.vocabulary, (response,), generator=generator),
            torch.zeros(response),
            FinishReason.HORIZON,
        )
        for prompt in random_prompts(rows, PROMPT, student.head.vocabulary)
    ]
    (batch,) = pack(rollouts, [(0, response)] * rows, 10**9, student.device)
    return batch


def _parts(
    place: Place, student: LanguageModel, scorer: LocalTeacher, objective: Objective, batch: Batch
) -> dict[str, float]:
    teacher, signal = place.seconds(lambda: scorer.score(batch))
    forward, hidden = place.seconds(lambda: batch.states(student.hidden(batch.ids)))
    head, (total, _) = place.seconds(lambda: distillation_loss(objective, student.head, hidden, signal, batch.at))
    backward, _ = place.seconds((total / len(batch.at.tokens)).backward)
    return {"teacher_s": teacher, "forward_s": forward, "head_s": head, "backward_s": backward}


def _chunks(
    place: Place, record: Record, student: LanguageModel, scorer: LocalTeacher, objective: Objective, batch: Batch
) -> None:
    """The head by the size of its chunks: student's and teacher's float32 logits of one."""
    hidden = batch.states(student.hidden(batch.ids)).detach().requires_grad_()
    for mib in (128, 512, 1024, 2048):
        signal = scorer.score(batch)
        signal.chunk_bytes = mib * MIB
        place.empty()
        before = place.allocated_gb
        work = partial(distillation_loss, objective, student.head, hidden, signal, batch.at, 1.0, mib * MIB)
        seconds, _ = place.seconds(work)
        record.add("head chunk", mib=mib, seconds=seconds, extra_gb=place.peak_gb - before)


def _optimizer(place: Place, record: Record, optimizer: MasterOptimizer) -> None:
    """One step of AdamW, what PyTorch keeps cached after it, and what a copy of the moments takes on the device."""
    seconds, norm = place.seconds(lambda: optimizer.step(0, Processes()))
    reserved = place.reserved_gb
    place.empty()
    record.add("optimizer", seconds=seconds, norm=norm, allocated_gb=place.allocated_gb)
    record.add("cached", reserved_gb=reserved, after_empty_cache_gb=place.reserved_gb)
    before = place.allocated_gb
    seconds, state = place.seconds(optimizer.state)
    record.add(
        "optimizer state",
        seconds=seconds,
        extra_gb=place.peak_gb - before,
        copied_gb=sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / GB,
    )
