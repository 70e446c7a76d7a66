"""transformers' `generate()`: one batch, padded on the left."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.sides.work import read_prompts
from benchmarks.turns import Turns


def run(case: dict[str, Any], turns: Turns) -> None:
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=getattr(torch, case["dtype"])).eval()
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    ids = [tokenizer(prompt).input_ids for prompt in read_prompts(case["prompts"])]
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
    for _ in turns:
        with torch.no_grad():
            out = model.generate(padded, attention_mask=mask, max_new_tokens=case["tokens"], **settings)
        made = (out.shape[1] - width) * len(ids)
        turns.answer(tokens=made, prompt_tokens=sum(map(len, ids)))
