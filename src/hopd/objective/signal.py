"""Defines a teacher's signal: its log-probs at the loss tokens of a batch, in as much detail as it can provide.

An objective declares what it `needs`, a teacher what it `gives`; preflight rejects a pair that does not fit.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.objective.head import Head, chunk_bytes_on, positions_in


class Signal(Protocol):
    """Provides log π_g at the N loss tokens of a batch; `rows` selects n of them. Values have no gradient."""

    def log_prob(self, rows: slice, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Returns log π_g(y_t) at `rows`."""
        ...

    def top_k(self, rows: slice, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        """Returns the teacher's k most likely tokens and their log π_g, most likely first.

        Raises `TypeError` for a signal with less detail than `TOP_K`.
        """
        ...

    def log_probs(self, rows: slice) -> Float[Tensor, "n V"]:
        """Returns log π_g over the vocabulary. Raises `TypeError` for a signal with less detail than `VOCABULARY`."""
        ...


class HiddenSignal:
    """Provides a local teacher's signal from its hidden states; logits are projected chunk by chunk, on demand.

    Callers read the positions in order, in steps that may be smaller than the chunks that make products fast.
    """

    def __init__(
        self,
        head: Head,
        hidden: Float[Tensor, "N D"],
        temperature: float = 1.0,
        chunk_bytes: int | None = None,
    ):
        self.head, self.hidden, self.temperature = head, hidden, temperature
        self.chunk_bytes = chunk_bytes or chunk_bytes_on(hidden.device)
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
        return tempered(self.head.scale_and_cap(here), self.temperature)


@dataclass(frozen=True)
class SampledSignal:
    """Provides log-probs of the sampled tokens only: all that some servers return. A sampled one of `ends` has the
    log-prob of all of them together."""

    sampled: Float[Tensor, " N"]
    ends: tuple[int, ...] = field(default=(), kw_only=True)

    def log_prob(self, rows: slice, tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.sampled[rows]

    def top_k(self, rows: slice, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        raise TypeError("this teacher returns log-probs of the sampled tokens only; use the estimator 'sampled'")

    def log_probs(self, rows: slice) -> Float[Tensor, "n V"]:
        raise TypeError("this teacher returns log-probs of the sampled tokens only; use the estimator 'sampled'")


@dataclass(frozen=True)
class TopKSignal(SampledSignal):
    """Provides log-probs of the sampled tokens and of the teacher's K most likely ones: the most a server returns."""

    ids: Int[Tensor, "N K"]
    likely: Float[Tensor, "N K"]

    def top_k(self, rows: slice, k: int) -> tuple[Int[Tensor, "n K"], Float[Tensor, "n K"]]:
        if k > self.ids.shape[1]:
            raise TypeError(f"this teacher was asked for its {self.ids.shape[1]} most likely tokens, not for {k}")
        return self.ids[rows, :k], self.likely[rows, :k]


def tempered(logits: Float[Tensor, "n V"], temperature: float) -> Float[Tensor, "n V"]:
    """Returns the logits at a temperature above 0."""
    return logits if temperature == 1.0 else logits / temperature


def log_prob_of(logits: Float[Tensor, "n V"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Returns the log-softmax of one token per position, without computing that of the others."""
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
