"""One training step of TRL's DistillationTrainer, timed from inside its own `train()`."""

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from benchmarks.sides.work import device_bytes, read_prompts
from benchmarks.turns import Turns


class Stop(Exception):
    """There are no more turns."""


class Distillation(DistillationTrainer):
    """Keeps the losses of a step's micro-batches, whose sum is the step's."""

    losses: list[float]

    def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*given, **named)
        self.losses.append(float(loss))
        return loss


class TakingTurns(TrainerCallback):
    trainer: Distillation

    def __init__(self, turns: Turns, file: str):
        self.turns, self.file = turns, file

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        try:
            next(self.turns)
        except StopIteration:
            raise Stop from None

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        buffered: Any = self.trainer._buffered_inputs  # None before the first step
        rollouts = [pair for batch in buffered for pair in _rollouts(batch)]
        loss, self.trainer.losses = sum(self.trainer.losses), []
        Path(self.file).write_text(json.dumps(rollouts))
        self.turns.answer(
            device_bytes=device_bytes(),
            tokens=sum(len(response) for _, response in rollouts),
            prompt_tokens=sum(len(prompt) for prompt, _ in rollouts),
            loss=loss,
        )


def _rollouts(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    kept = zip(
        batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], batch["completion_mask"], strict=True
    )
    return [(p[pm.bool()].tolist(), c[cm.bool()].tolist()) for p, pm, c, cm in kept]


def run(case: dict[str, Any], turns: Turns) -> None:
    models = Path(case["models"])
    dtype = torch.float32
    student, teacher = (AutoModelForCausalLM.from_pretrained(models / n, dtype=dtype) for n in ("student", "teacher"))
    prompts = read_prompts(case["prompts"])
    bf16 = case["precision"] == "bf16"
    config = DistillationConfig(
        output_dir=str(models / "trl"),
        per_device_train_batch_size=case["batch"],
        gradient_accumulation_steps=len(prompts) // case["batch"],
        max_steps=1000,
        learning_rate=1e-12,
        lr_scheduler_type="constant",
        max_completion_length=case["tokens"],
        temperature=1.0,
        beta=1.0,
        bf16=bf16,
        gradient_checkpointing=case.get("checkpointing", False),
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    callback = TakingTurns(turns, case["rollouts"])
    trainer = Distillation(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(models / "student"),
        callbacks=[callback],
    )
    callback.trainer, trainer.losses = trainer, []
    try:
        trainer.train()
    except Stop:
        return
