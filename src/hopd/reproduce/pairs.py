"""Teachers and students of 0.65M parameters for the tasks that the packaged ones do not know."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hopd.quickstart import RECIPE
from hopd.quickstart.make import Examples, character_tokenizer, fine_tune, save
from hopd.tasks.addition import SYMBOLS

PACKAGED = RECIPE.parent / "teacher"


def make_pair(
    out: Path,
    of_teacher: Examples,
    of_student: Examples,
    updates: tuple[int, int],
    rates: tuple[float, float],
    symbols: str = "",
) -> None:
    """Writes `out/teacher`, the packaged teacher fine-tuned on the examples, and `out/student`, a copy of it
    fine-tuned on examples with broken habits. `symbols` are characters that the packaged models have no token for."""
    torch.manual_seed(0)
    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(PACKAGED).float(),
        PreTrainedTokenizerFast.from_pretrained(PACKAGED),
    )
    if symbols:
        tokenizer = character_tokenizer([*SYMBOLS, *symbols])
        model.resize_token_embeddings(len(tokenizer))
    for role, examples, count, rate in zip(
        ("teacher", "student"), (of_teacher, of_student), updates, rates, strict=True
    ):
        fine_tune(model, tokenizer, examples, count, learning_rate=rate, log=print)
        save(model, tokenizer, out / role)
