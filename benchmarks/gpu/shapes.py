"""Models of known shapes with random weights, made on the device, and prompts of random ids."""

from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu.place import Place
from hopd.model import LanguageModel, load
from hopd.rollout import Prompt

QUICKSTART = "package:hopd/quickstart/student"
# Width, MLP's width, layers, heads, key heads, vocabulary, tied head.
SHAPES = {
    "1.5b": (1536, 8960, 28, 12, 2, 151936, False),  # DeepSeek-R1-Distill-Qwen-1.5B
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),  # Qwen2.5-0.5B
    "tiny": (64, 128, 2, 4, 2, 512, False),
}


def random_model(place: Place, shape: str, dtype: torch.dtype, seed: int = 0) -> LanguageModel:
    """Returns Qwen2 in a known shape. Its matrices are twice as large as usual, so that its logits have some shape: it
    is a hard case for rounding."""
    width, mlp, layers, heads, groups, vocabulary, tied = SHAPES["tiny" if place.tiny else shape]
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=32768,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    torch.manual_seed(seed)
    with torch.device(place.device):
        model: Any = Qwen2ForCausalLM(config).to(dtype)  # type: ignore[arg-type]  # of a decorator without types
    for matrix in (parameter for parameter in model.parameters() if parameter.dim() == 2):
        matrix.data.mul_(2.0)
    tokenizer = load(QUICKSTART).tokenizer
    tokenizer.eos_token = None
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # rollouts never end early
    return LanguageModel(model, tokenizer, shape)


def random_prompts(count: int, length: int, vocabulary: int) -> list[Prompt]:
    """Returns prompts of `length` tokens or up to seven less."""
    generator = torch.Generator().manual_seed(1)
    return [Prompt(i, torch.randint(10, vocabulary, (length - i % 8,), generator=generator)) for i in range(count)]
