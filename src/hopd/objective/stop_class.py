"""Scores the ids that end a response as one action: whether to stop counts, and not by which of them.

Where two models declare the same ends and prefer different ones, a student that is scored id by id loses at every stop
that it samples: it learns to go on before it learns the other id, which it rarely samples. Summed over the ends, the
probabilities compare what both models mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.objective.objective import Objective
from hopd.objective.signal import SampledSignal, Signal

NEVER = -1e30  # a logit of probability 0; its differences stay finite, unlike those of −∞


@dataclass(frozen=True)
class StopClass:
    """Merges the `ends`, ascending ids: the first has the probability of all of them, the others have none."""

    ends: tuple[int, ...]

    @classmethod
    def of(cls, objective: Objective, stop_ids: Iterable[int], vocabulary: int) -> "StopClass | None":
        """Returns the class that the objective asks for; None if it asks for none, or if there is a single end."""
        ends = tuple(sorted(id for id in stop_ids if id < vocabulary))
        return cls(ends) if objective.stop == "class" and len(ends) > 1 else None

    def merged(self, logits: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """Returns logits, or log-probs, over the same ids with the ends merged."""
        places = torch.tensor(self.ends, device=logits.device)
        ends = logits.index_select(-1, places)
        never = torch.full_like(ends[:, 1:], NEVER)
        return logits.index_copy(-1, places, torch.cat([ends.logsumexp(-1, keepdim=True), never], dim=-1))

    def tokens(self, ids: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Returns the ids with the first end in place of any other."""
        return torch.where(torch.isin(ids, torch.tensor(self.ends, device=ids.device)), self.ends[0], ids)

    def signal(self, signal: Signal) -> Signal:
        """Returns a teacher's signal with the ends merged. Raises `TypeError` for a teacher that gives no other token
        than the sampled one, unless it has merged them itself."""
        if not isinstance(signal, SampledSignal):
            return _MergedSignal(signal, self)
        if signal.ends != self.ends:
            raise TypeError(
                "this teacher returns log-probs of the sampled tokens only, not of all ends: no stop: class"
            )
        return signal


@dataclass(frozen=True)
class _MergedSignal:
    """Provides a teacher's log-probs with the ends merged."""

    whole: Signal
    stop: StopClass

    def log_prob(self, rows: slice, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        own, is_end = self.whole.log_prob(rows, tokens), tokens == self.stop.ends[0]
        if not bool(is_end.any()):
            return own
        of_ends = [self.whole.log_prob(rows, torch.full_like(tokens, id)) for id in self.stop.ends]
        return torch.where(is_end, torch.stack(of_ends, dim=-1).logsumexp(-1), own)

    def top_k(self, rows: slice, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        log_probs, ids = self.log_probs(rows).topk(k, dim=-1)
        return ids, log_probs

    def log_probs(self, rows: slice) -> Float[Tensor, "n V"]:
        return self.stop.merged(self.whole.log_probs(rows))
