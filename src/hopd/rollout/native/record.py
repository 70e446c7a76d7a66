"""Collects the tokens of a wave while it decodes, and makes rollouts of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopd.rollout.rollout import FinishReason, Rollout, Stretch


class Record:
    """Collects sampled tokens, one tensor a step, in segments that end where the batch was compacted. `caches` are the
    keys and values that are kept, by row."""

    def __init__(self, rows: int, device: torch.device):
        self.caches: dict[int, Tensor] = {}
        self._ids: list[Int[Tensor, " R"]] = []
        self._log_probs: list[Float[Tensor, " R"]] = []
        self._pieces: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]
        self._length = torch.zeros(rows, dtype=torch.long, device=device)
        self._stopped = torch.zeros(rows, dtype=torch.bool, device=device)

    def append(self, ids: Int[Tensor, " R"], log_probs: Float[Tensor, " R"]) -> None:
        """Adds a token of each running row."""
        self._ids.append(ids)
        self._log_probs.append(log_probs)

    def close_segment(self, live: Int[Tensor, " R"], length: Int[Tensor, " R"], stopped: Bool[Tensor, " R"]) -> None:
        """Ends a segment, whose rows were `live`, and notes how many tokens each has by now."""
        self._length[live], self._stopped[live] = length, stopped
        if not self._ids:
            return
        ids, log_probs = torch.stack(self._ids, dim=1).cpu(), torch.stack(self._log_probs, dim=1).cpu()
        for row, piece in zip(live.tolist(), zip(ids, log_probs, strict=True), strict=True):
            self._pieces[row].append(piece)
        self._ids, self._log_probs = [], []

    def rollouts(self, stretches: Sequence[Stretch], context: int | None) -> list[Rollout]:
        """Returns the rollouts of the wave's rows, as they are now."""
        made = []
        ended = zip(self._length.tolist(), self._stopped.tolist(), strict=True)
        for row, (stretch, (length, stopped)) in enumerate(zip(stretches, ended, strict=True)):
            ids, log_probs = (torch.cat(parts)[:length].clone() for parts in zip(*self._pieces[row], strict=True))
            finish = FinishReason.STOP if stopped else stretch.cut(length, context)
            cache = self.caches.get(row) if finish is FinishReason.HORIZON else None
            made.append(stretch.rollout.extended(ids, log_probs.float(), finish, cache))
        return made
