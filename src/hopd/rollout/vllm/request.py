"""Builds vLLM's request for one rollout, and reads the answer strictly: a complete rollout, or a `Fault`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hopd.model import LanguageModel
from hopd.recipe.sampling import Sampling
from hopd.remote import Fault, FaultKind
from hopd.rollout.random import fold
from hopd.rollout.rollout import FinishReason, Prompt, Rollout


@dataclass(frozen=True)
class Request:
    """Asks for one sample of a prompt. `limit` is `max_tokens`, cut to the room in the context."""

    prompt: Prompt
    sample: int
    max_tokens: int
    limit: int
    stop_ids: frozenset[int]
    vocabulary: int

    def sampling_params(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """Returns vLLM's sampling parameters. Everything that changes the distribution is set, because a server takes
        the rest from its model's generation config."""
        return {
            "max_tokens": self.limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": fold(seed, self.prompt.id, self.sample) >> 1,  # vLLM's seed is a signed 64-bit number
            "ignore_eos": True,  # only `stop_token_ids` end a response
            "stop_token_ids": sorted(self.stop_ids),
            "logprobs": 0,  # of the sampled token only
            "detokenize": False,
        }

    def rollout(self, ids: Sequence[int], log_probs: Sequence[float], versions: Sequence[str], version: str) -> Rollout:
        """Returns the rollout. Raises `Fault` if it is incomplete, or if any token was sampled with other weights than
        `version`."""
        if other := set(versions) - {version}:
            raise Fault(FaultKind.OTHER_WEIGHTS, f"it sampled with the weights {min(other)!r}, not {version!r}")
        if len(ids) != len(log_probs) or not 0 < len(ids) <= self.limit:
            raise Fault(FaultKind.WRONG_LENGTH, f"it gave {len(ids)} tokens and {len(log_probs)} log-probs")
        stopped = ids[-1] in self.stop_ids
        if not stopped and len(ids) < self.limit:
            raise Fault(FaultKind.WRONG_LENGTH, f"it ended after {len(ids)} of {self.limit} tokens without a reason")
        if not 0 <= min(ids) <= max(ids) < self.vocabulary or not self.stop_ids.isdisjoint(ids[:-1]):
            raise Fault(FaultKind.MALFORMED, "it gave tokens that the student cannot have sampled")
        if not all(math.isfinite(log_prob) for log_prob in log_probs):
            raise Fault(FaultKind.NOT_FINITE, "it gave a log-prob that is not finite")
        if max(log_probs) > 1e-3:
            raise Fault(FaultKind.MALFORMED, f"it gave {max(log_probs)} as a log-prob")
        cut = FinishReason.HORIZON if self.limit == self.max_tokens else FinishReason.CONTEXT
        return Rollout(
            self.prompt,
            self.sample,
            torch.tensor(ids, dtype=torch.long),
            torch.tensor(log_probs, dtype=torch.float32),
            FinishReason.STOP if stopped else cut,
        )


def requests(model: LanguageModel, prompts: Sequence[Prompt], max_tokens: int, samples: int) -> list[Request]:
    """Returns requests in the order of `Engine.sample`. Raises `TaskError` for a prompt without room in the context."""
    context = model.context
    made = []
    for prompt in prompts:
        prompt.check_room(context)
        limit = max_tokens if context is None else min(max_tokens, context - len(prompt.ids))
        made += [
            Request(prompt, sample, max_tokens, limit, model.stop_ids, model.head.vocabulary)
            for sample in range(samples)
        ]
    return made


def scoring_params() -> dict[str, Any]:
    """Returns parameters that score a prompt. vLLM must sample one token too, which is ignored."""
    return {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
