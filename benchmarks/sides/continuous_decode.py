"""transformers' continuous batching, `generate_batch()`: rows come and go, nothing is padded."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.sides.work import read_prompts
from benchmarks.turns import Turns


def run(case: dict[str, Any], turns: Turns) -> None:
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=getattr(torch, case["dtype"])).eval()
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    ids = [tokenizer(prompt).input_ids for prompt in read_prompts(case["prompts"])]
    settings = GenerationConfig(
        max_new_tokens=case["tokens"], do_sample=True, top_k=0, top_p=1.0, temperature=1.0, eos_token_id=-1
    )
    for _ in turns:
        outputs = model.generate_batch(inputs=ids, generation_config=settings, progress_bar=False)
        made = sum(len(output.generated_tokens) for output in outputs.values())
        turns.answer(tokens=made, prompt_tokens=sum(map(len, ids)))
