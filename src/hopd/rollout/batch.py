"""Packs rollouts into micro-batches by tokens: sequences of similar length together, padded to the longest of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.horizon.window import Span
from hopd.objective.positions import LossTokens
from hopd.rollout.rollout import Rollout


@dataclass(frozen=True, eq=False)
class Batch:
    """Holds one micro-batch of B sequences of at most L tokens, with N loss tokens; all sequences have the same
    teacher, and all or none of them are reference answers.

    `ids` are prompts and responses, padded on the right, which needs no mask in a causal model. The hidden state at
    `ids[at.row[n], column[n]]` predicts loss token n.
    """

    rollouts: tuple[Rollout, ...]
    teacher: str | None
    ids: Int[Tensor, "B L"]
    column: Int[Tensor, " N"]
    at: LossTokens

    def states(self, hidden: Float[Tensor, "B L D"]) -> Float[Tensor, "N D"]:
        """Returns the hidden states that predict the loss tokens, in their order: no others reach the vocabulary
        head."""
        return hidden[self.at.row, self.column]

    @property
    def is_reference(self) -> bool:
        """Tells whether the sequences are reference answers, which nobody sampled."""
        return self.rollouts[0].is_reference

    @property
    def lengths(self) -> list[int]:
        """Returns how many tokens of each sequence the forward pass needs, without padding."""
        last = torch.zeros(len(self.rollouts), dtype=torch.long, device=self.ids.device)
        return cast(list[int], last.scatter_reduce(0, self.at.row, self.column + 1, "amax").tolist())


_Row = tuple[str, int, Rollout, Span]  # teacher, tokens read, rollout, loss window


def pack(
    rollouts: Sequence[Rollout],
    spans: Sequence[Span],
    tokens_per_batch: int,
    device: torch.device | str = "cpu",
    whole_response: bool = False,
) -> list[Batch]:
    """Returns micro-batches of at most `tokens_per_batch` tokens, padding included; a longer rollout is one by itself.

    `spans` are the loss windows, in response tokens. Tokens after a window are left out, unless `whole_response`:
    credit from later tokens (γ > 0) needs them, with weight 0. Rollouts without loss tokens are left out.
    """
    rows: list[_Row] = []
    for rollout, (start, end) in zip(rollouts, spans, strict=True):
        if end > start:
            read = len(rollout.prompt.ids) + (rollout.length if whole_response else end)
            rows.append((rollout.prompt.teacher or "", read, rollout, (start, end)))
    rows.sort(key=lambda row: (row[0], -row[1], row[2].prompt.id, row[2].sample))

    batches: list[Batch] = []
    current: list[_Row] = []
    for row in rows:
        longest = current[0][1] if current else row[1]
        if current and (row[0] != current[0][0] or longest * (len(current) + 1) > tokens_per_batch):
            batches.append(_batch(current, device, whole_response))
            current = []
        current.append(row)
    if current:
        batches.append(_batch(current, device, whole_response))
    return batches


def _batch(rows: Sequence[_Row], device: torch.device | str, whole: bool) -> Batch:
    # The last token is only ever predicted, so the forward pass stops before it.
    ids = torch.zeros(len(rows), max(read for _, read, _, _ in rows) - 1, dtype=torch.long)
    row_of, position, tokens, behaviour, weight, age = [], [], [], [], [], []
    for row, (_, read, rollout, (start, end)) in enumerate(rows):
        prompt = rollout.prompt.ids
        ids[row, : read - 1] = torch.cat([prompt, rollout.ids])[: read - 1]
        looked_at = torch.arange(0, rollout.length) if whole else torch.arange(start, end)
        row_of.append(torch.full_like(looked_at, row))
        position.append(looked_at)
        tokens.append(rollout.ids[looked_at])
        behaviour.append(rollout.log_probs[looked_at])
        weight.append(((looked_at >= start) & (looked_at < end)).float())
        age.append(rollout.age_of_tokens[looked_at])
    at = LossTokens(*(torch.cat(parts).to(device) for parts in (tokens, row_of, position, behaviour, weight, age)))
    before = torch.tensor([len(rollout.prompt.ids) for _, _, rollout, _ in rows], device=device)
    return Batch(
        rollouts=tuple(rollout for _, _, rollout, _ in rows),
        teacher=rows[0][2].prompt.teacher,
        ids=ids.to(device),
        column=before[at.row] + at.position - 1,
        at=at,
    )
