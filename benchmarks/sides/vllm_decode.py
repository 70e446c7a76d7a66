"""vLLM, in an environment of its own: this file imports nothing of hopd."""

import os
from typing import Any

from benchmarks.sides.work import read_prompts
from benchmarks.turns import Turns


def run(case: dict[str, Any], turns: Turns) -> None:
    os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # of two cores it would leave one idle
    from vllm import LLM, SamplingParams

    prompts = read_prompts(case["prompts"])
    llm = LLM(
        case["model"],
        dtype=case["dtype"],
        max_num_seqs=len(prompts),
        max_model_len=2048,
        gpu_memory_utilization=0.4,  # of all memory, on a CPU too: the other side needs some
        enable_prefix_caching=False,
        seed=0,
    )
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, max_tokens=case["tokens"], ignore_eos=True)
    for _ in turns:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        turns.answer(
            tokens=sum(len(output.outputs[0].token_ids) for output in outputs),
            prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        )
