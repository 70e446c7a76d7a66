"""Builds vLLM's request for more of one rollout, and reads the answer strictly: the longer rollout, or a `Fault`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from hopd.errors import EngineError
from hopd.model import LanguageModel
from hopd.model.stop import NO_STOP, Stop
from hopd.recipe.sampling import Sampling
from hopd.remote import Fault, FaultKind
from hopd.rollout.random import fold
from hopd.rollout.rollout import FinishReason, Rollout, Stretch


@dataclass(frozen=True)
class Request:
    """Asks for the tokens of one stretch. `max_tokens` is what its limit and the context leave, and `cut` is the finish
    reason of a rollout that has all of them and did not stop."""

    stretch: Stretch
    max_tokens: int
    cut: FinishReason
    stop_ids: frozenset[int]
    vocabulary: int
    stop: Stop = NO_STOP

    @property
    def token_ids(self) -> list[int]:
        """Returns what vLLM reads: the prompt, and the response so far."""
        return cast(list[int], self.stretch.read.tolist())

    def sampling_params(self, sampling: Sampling) -> dict[str, Any]:
        """Returns vLLM's sampling parameters. Everything that changes the distribution is set, because a server takes
        the rest from its model's generation config."""
        # vLLM sees no further back than its request, so `rollout` looks for texts too; here they save tokens.
        texts = {"stop": list(self.stop.texts), "include_stop_str_in_output": True, "skip_special_tokens": False}
        return {
            "max_tokens": self.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": self._seed >> 1,  # vLLM's seed is a signed 64-bit number
            "ignore_eos": True,  # only `stop_token_ids` end a response
            "stop_token_ids": sorted(self.stop_ids),
            "logprobs": 0,  # of the sampled token only
            "detokenize": bool(self.stop.texts),
            **(texts if self.stop.texts else {}),
        }

    def rollout(
        self,
        ids: Sequence[int],
        log_probs: Sequence[float],
        versions: Sequence[str],
        version: str,
        finish: str | None = None,
    ) -> Rollout:
        """Returns the rollout with these tokens, up to the one that completes a stop text. `finish` is vLLM's reason.

        Raises `Fault` if they are incomplete, or if any of them was sampled with other weights than `version`."""
        if other := set(versions) - {version}:
            raise Fault(FaultKind.OTHER_WEIGHTS, f"it sampled with the weights {min(other)!r}, not {version!r}")
        if len(ids) != len(log_probs) or not 0 < len(ids) <= self.max_tokens:
            raise Fault(FaultKind.WRONG_LENGTH, f"it gave {len(ids)} tokens and {len(log_probs)} log-probs")
        so_far = self.stretch.rollout.ids.tolist()
        end = self.stop.end([*so_far, *ids], start=len(so_far))
        if end is not None:
            ids, log_probs = ids[: end - len(so_far)], log_probs[: end - len(so_far)]
        by_text = end is not None or (bool(self.stop.texts) and finish == "stop")
        stopped = by_text or ids[-1] in self.stop_ids
        if not stopped and len(ids) < self.max_tokens:
            reason = f"it ended after {len(ids)} of {self.max_tokens} tokens without a reason"
            raise Fault(FaultKind.WRONG_LENGTH, reason)
        if not 0 <= min(ids) <= max(ids) < self.vocabulary or not self.stop_ids.isdisjoint(ids[:-1]):
            raise Fault(FaultKind.MALFORMED, "it gave tokens that the student cannot have sampled")
        if not all(math.isfinite(log_prob) for log_prob in log_probs):
            raise Fault(FaultKind.NOT_FINITE, "it gave a log-prob that is not finite")
        if max(log_probs) > 1e-3:
            raise Fault(FaultKind.MALFORMED, f"it gave {max(log_probs)} as a log-prob")
        return self.stretch.rollout.extended(
            torch.tensor(ids, dtype=torch.long),
            torch.tensor(log_probs, dtype=torch.float32),
            FinishReason.STOP if stopped else self.cut,
        )

    @property
    def _seed(self) -> int:
        """A request begins with a new generator: a rollout that continues must not draw its first numbers again."""
        rollout = self.stretch.rollout
        so_far = [rollout.length] if rollout.length else []
        return fold(rollout.seed, rollout.prompt.id, rollout.sample, *so_far)


def requests(model: LanguageModel, stretches: Sequence[Stretch]) -> list[Request]:
    """Returns a request for each stretch, in order. Raises `TaskError` for a prompt without room in the context, and
    `EngineError` for a rollout that has ended."""
    made = []
    for stretch in stretches:
        rollout = stretch.rollout
        rollout.prompt.check_room(model.context)
        room = stretch.limit - rollout.length
        if model.context is not None:
            room = min(room, model.context - len(stretch.read))
        ended = bool(rollout.length) and rollout.finish is FinishReason.STOP
        if room < 1 or ended or not model.stop_ids.isdisjoint(rollout.ids[-1:].tolist()):
            raise EngineError(
                f"{rollout} cannot be continued to {stretch.limit} tokens: it has {rollout.length}, with finish reason "
                f"{rollout.finish}; only rollouts that were cut below the limit and the context can be continued"
            )
        cut = stretch.cut(room, model.context)
        made.append(Request(stretch, room, cut, model.stop_ids, model.head.vocabulary, model.stop))
    return made


def scoring_params() -> dict[str, Any]:
    """Returns parameters that score a prompt. vLLM must sample one token too, which is ignored."""
    return {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
