"""Teachers and students of 0.65M parameters for the tasks that the packaged ones do not know."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hopd.quickstart import RECIPE
from hopd.quickstart.make import Examples, fine_tune, save

PACKAGED = RECIPE.parent / "teacher"


def make_pair(
    out: Path, of_teacher: Examples, of_student: Examples, updates: tuple[int, int], rates: tuple[float, float]
) -> None:
    """Writes `out/teacher`, the packaged teacher fine-tuned on the examples, and `out/student`, a copy of it
    fine-tuned on examples with broken habits."""
    torch.manual_seed(0)
    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(PACKAGED).float(),
        PreTrainedTokenizerFast.from_pretrained(PACKAGED),
    )
    for role, examples, count, rate in zip(
        ("teacher", "student"), (of_teacher, of_student), updates, rates, strict=True
    ):
        fine_tune(model, tokenizer, examples, count, learning_rate=rate, log=print)
        save(model, tokenizer, out / role)
