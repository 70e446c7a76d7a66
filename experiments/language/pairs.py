"""Makes teachers and students of 0.65M parameters for tasks that the packaged ones do not know."""

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.language.setting import Setting
from experiments.quickstart.make import Examples, character_tokenizer, fine_tune, save
from hopd.quickstart import RECIPE
from hopd.tasks import ReasoningGym
from hopd.tasks.addition import SYMBOLS

PACKAGED = RECIPE.parent / "teacher"
SHARPER = 2  # the factor of a teacher's logits, after its training
SHARPENED = (
    "Its logits are then doubled, so that it answers at temperature 1, where students sample, as it would at ½: "
    "the doubt that a few hundred updates leave at each of hundreds of tokens adds up."
)


def make_pair(
    out: Path,
    of_teacher: Examples,
    of_student: Examples,
    updates: tuple[int, int],
    rates: tuple[float, float],
    symbols: str = "",
) -> None:
    """Writes `out/teacher`, the packaged teacher fine-tuned on the examples with its logits sharpened, and
    `out/student`, a copy of it fine-tuned on examples with broken habits.

    `updates` and `rates` are pairs, for teacher and student; `symbols` are characters for which the packaged models
    have no token.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(PACKAGED).float(),
        PreTrainedTokenizerFast.from_pretrained(PACKAGED),
    )
    if symbols:
        tokenizer = character_tokenizer([*SYMBOLS, *symbols])
        model.resize_token_embeddings(len(tokenizer))
    torch.nn.Module.to(model, device)
    fine_tune(model, tokenizer, of_teacher, updates[0], learning_rate=rates[0], log=print)
    with torch.no_grad():
        model.model.norm.weight.mul_(SHARPER)
    save(model, tokenizer, out / "teacher")
    fine_tune(model, tokenizer, of_student, updates[1], learning_rate=rates[1], log=print)
    save(model, tokenizer, out / "student")


def not_evaluated(name: str, options: Mapping[str, Any], setting: Setting) -> Iterator[dict[str, Any]]:
    """Yields problems of a dataset of reasoning-gym that the setting does not evaluate: those after 1,000,000."""
    held_out = ReasoningGym(name, size=setting.problems, options=dict(options), **setting.held_out)
    asked = {problem.prompt for problem in held_out.problems}
    dataset = ReasoningGym(name, size=1, seed=1_000_000, options=dict(options)).dataset
    return (one for number in count() if (one := dataset[number])["question"] not in asked)
