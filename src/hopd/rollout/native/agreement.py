"""Checks that the native engine decodes a model as the learner computes it, on prompts of several lengths."""

from collections.abc import Sequence

import torch

from hopd.errors import ModelError, described
from hopd.model import LanguageModel
from hopd.recipe.sampling import Sampling
from hopd.rollout.engine import Engine
from hopd.rollout.rollout import Prompt, Rollout

INSTEAD = "write rollout: {engine: {kind: vllm}}"
LENGTHS, TOKENS = (1, 2, 5, 9), 12
# Nats a token, in the mean: rounding stays far below, also where it sends tokens of a mixture to other experts; a cache
# or a padding that a model ignores is far above.
WITHIN = {torch.float32: 0.02, torch.bfloat16: 0.3}


def check_agreement(engine: Engine, model: LanguageModel) -> None:
    """Raises `ModelError` unless the log-probs of rollouts are those of a pass over the whole sequence."""
    vocabulary = model.head.vocabulary
    prompts = [Prompt(i, torch.arange(1 + i, 1 + i + length) % vocabulary) for i, length in enumerate(LENGTHS)]
    tokens = TOKENS if model.context is None else min(TOKENS, model.context - max(LENGTHS))
    if tokens < 1:
        return
    how = f"{model.name} cannot be decoded by the native engine"
    try:
        apart = _apart(model, engine.sample(prompts, tokens, Sampling(), seed=0))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{how} ({described(error)}); {INSTEAD}") from error
    if not apart <= WITHIN.get(model.model.dtype, 0.3):
        raise ModelError(
            f"{how}: with cached keys or states its log-probs are {apart:.2g} nats a token from those of a whole pass "
            f"({type(model.model).__name__}); {INSTEAD}"
        )


@torch.no_grad()
def _apart(model: LanguageModel, rollouts: Sequence[Rollout]) -> float:
    """Returns the mean difference of a token's log-prob from that of a whole pass."""
    differences = []
    with model.sharding.unsharded():
        for rollout in rollouts:
            ids = torch.cat([rollout.prompt.ids, rollout.ids]).to(model.device)
            logits = model.head.logits(model.hidden(ids[None]))[0, len(rollout.prompt.ids) - 1 : -1]
            plain = logits.float().log_softmax(-1).gather(-1, ids[len(rollout.prompt.ids) :, None])[:, 0]
            differences.append((plain.cpu() - rollout.log_probs).abs())
    return float(torch.cat(differences).mean())
