"""What a teacher says about the loss tokens of a batch, in the form that it can give it.

An objective declares what it `needs`, a teacher what it `gives`; preflight refuses a pair that does not fit.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.objective.head import CHUNK_BYTES, Head, positions_in


class Signal(Protocol):
    def log_prob(self, rows: slice, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log π_g(y_t) at the positions `rows`."""
        ...

    def top_k(self, rows: slice, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        """The teacher's k most likely tokens and their log π_g. Only of a signal with the detail `TOP_K` or more."""
        ...

    def log_probs(self, rows: slice) -> Float[Tensor, "n V"]:
        """log π_g over the vocabulary at the positions `rows`. Only of a signal with the detail `VOCABULARY`."""
        ...


class HiddenSignal:
    """A local teacher's: its hidden states, from which a chunk's logits are projected when the first is wanted.

    Callers go through the positions in order, in steps that may be smaller than what matrix products want.
    """

    def __init__(
        self,
        head: Head,
        hidden: Float[Tensor, "N D"],
        temperature: float = 1.0,
        chunk_bytes: int = CHUNK_BYTES,
    ):
        self.head, self.hidden, self.temperature, self.chunk_bytes = head, hidden, temperature, chunk_bytes
        self._chunk, self._raw = slice(0, 0), hidden.new_empty(0, head.vocabulary)

    def log_prob(self, rows: slice, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return log_prob_of(self._logits(rows), tokens)

    def top_k(self, rows: slice, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        log_probs, ids = self.log_probs(rows).topk(k, dim=-1)
        return ids, log_probs

    def log_probs(self, rows: slice) -> Float[Tensor, "n V"]:
        return self._logits(rows).log_softmax(-1)

    @torch.no_grad()
    def _logits(self, rows: slice) -> Float[Tensor, "n V"]:
        if not self._chunk.start <= rows.start <= rows.stop <= self._chunk.stop:
            ahead = rows.start + positions_in(self.chunk_bytes, self.head.vocabulary)
            self._chunk = slice(rows.start, max(rows.stop, ahead))
            self._raw = self.head.project(self.hidden[self._chunk])
        here = self._raw[rows.start - self._chunk.start : rows.stop - self._chunk.start]
        return tempered(self.head.shape(here), self.temperature)


@dataclass(frozen=True)
class SampledSignal:
    """Log-probs of the sampled tokens alone: all that some servers give."""

    sampled: Float[Tensor, " N"]

    def log_prob(self, rows: slice, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.sampled[rows]

    def top_k(self, rows: slice, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        raise TypeError("this teacher gives the log-probs of the sampled tokens only; use the estimator 'sampled'")

    def log_probs(self, rows: slice) -> Float[Tensor, "n V"]:
        raise TypeError("this teacher gives the log-probs of the sampled tokens only; use the estimator 'sampled'")


@dataclass(frozen=True)
class TopKSignal(SampledSignal):
    """Log-probs of the sampled tokens and of the teacher's own K most likely ones: all that a server gives."""

    ids: Int[Tensor, "N K"]
    likely: Float[Tensor, "N K"]

    def top_k(self, rows: slice, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        if k > self.ids.shape[1]:
            raise TypeError(f"this teacher was asked for its {self.ids.shape[1]} most likely tokens, not for {k}")
        return self.ids[rows, :k], self.likely[rows, :k]


def tempered(logits: Float[Tensor, "n V"], temperature: float) -> Float[Tensor, "n V"]:
    return logits if temperature == 1.0 else logits / temperature


def log_prob_of(logits: Float[Tensor, "n V"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The log-softmax of one token a row, without the log-softmax of the others."""
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
