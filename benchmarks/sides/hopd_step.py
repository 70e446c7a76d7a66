"""One training step of hopd: rollouts, the teacher's forward, the student's forward and backward, AdamW.

Also: `losses_of` gives the loss on rollouts of the other side, by which a pair shows that it does the same work.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.sides.work import device_bytes
from benchmarks.turns import Turns
from hopd.distiller import Distiller
from hopd.recipe import Recipe
from hopd.rollout import FinishReason, Prompt, Rollout

LEARNING_RATE = 1e-12  # the optimiser works, the weights stay: all turns have the same work


def distiller(case: dict[str, Any]) -> Distiller:
    models, prompts = Path(case["models"]), case["prompts"]
    recipe = {
        "name": "benchmark",
        "output": str(models / "runs"),
        "student": {"model": str(models / "student")},
        "teacher": {"model": str(models / "teacher")},
        "task": {"source": "file", "path": prompts},
        "rollout": {
            "prompts": Path(prompts).read_bytes().count(b"\n"),
            "samples": case.get("samples", 1),
            "full_tokens": case["tokens"],
            "rows": 128,
        },
        "horizon": {"controller": "truncated", "ratio": case.get("ratio", 1.0)},
        "training": {
            "steps": 1,
            "learning_rate": LEARNING_RATE,
            "precision": case["precision"],
            "tokens_per_batch": case.get("tokens_per_batch", 576),
            "gradient_checkpointing": case.get("checkpointing", False),
        },
    }
    return Distiller.of(Recipe.model_validate(recipe))


def run(case: dict[str, Any], turns: Turns) -> None:
    run = distiller(case)
    sampling, prompts = run.parts.recipe.rollout.sampling, run.parts.order.at(0)
    horizon = run.parts.controller.decide(0).tokens
    for turn, _ in enumerate(turns):
        statistics = run.parts.statistics()
        with run.parts.ledger.phase("rollout"):
            rollouts = run.parts.engine.sample(prompts, horizon, sampling, turn, run.parts.recipe.rollout.samples)
        run.parts.learner.accumulate(rollouts, turn, statistics)
        run.parts.learner.apply(step=0)
        turns.answer(
            device_bytes=device_bytes(),
            tokens=sum(rollout.length for rollout in rollouts),
            prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
            loss=statistics.mean("loss"),
            phases=run.parts.ledger.pending.seconds,
        )
        run.parts.ledger.pending.seconds = {}


def loss_of(case: dict[str, Any], rollouts: Iterable[tuple[list[int], list[int]]]) -> float:
    """Mean over tokens, of (prompt ids, response ids)."""
    run = distiller(case)
    statistics = run.parts.statistics()
    made = [
        Rollout(Prompt(i, torch.tensor(p)), 0, torch.tensor(r), torch.zeros(len(r)), FinishReason.HORIZON)
        for i, (p, r) in enumerate(rollouts)
    ]
    run.parts.learner.accumulate(made, 0, statistics)
    return statistics.mean("loss")


if __name__ == "__main__":
    import sys

    print(loss_of(json.loads(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
