"""The native engine: `rows` different prompts, prefill included, `tokens` new tokens of each."""

from typing import Any

import torch

from benchmarks.sides.work import read_prompts
from benchmarks.turns import Turns
from hopd.model import load
from hopd.rollout import NativeEngine, Prompt, Sampling


def run(case: dict[str, Any], turns: Turns) -> None:
    model = load(case["model"], dtype=getattr(torch, case["dtype"]))
    ids = [model.tokenizer(prompt).input_ids for prompt in read_prompts(case["prompts"])]
    prompts = [Prompt(i, torch.tensor(row)) for i, row in enumerate(ids)]
    engine = NativeEngine(model, rows=len(prompts))
    for turn, _ in enumerate(turns):
        rollouts = engine.sample(prompts, case["tokens"], Sampling(), seed=turn)
        turns.answer(tokens=sum(rollout.length for rollout in rollouts), prompt_tokens=sum(map(len, ids)))
