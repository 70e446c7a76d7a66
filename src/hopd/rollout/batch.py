"""Packs rollouts into micro-batches by tokens: sequences of similar length together, padded to the longest of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    @property
    def of_teacher(self) -> "Batch":
        """Returns the batch as its teacher reads it: the same responses behind the teacher's own prompts. Loss tokens
        are the same ones in the same order, so its hidden states are compared with the student's one by one."""
        if all(rollout.prompt.teacher_ids is None for rollout in self.rollouts):
            return self
        rollouts = tuple(replace(rollout, prompt=rollout.prompt.of_teacher) for rollout in self.rollouts)
        changed = [len(a.prompt.ids) - len(b.prompt.ids) for a, b in zip(rollouts, self.rollouts, strict=True)]
        read = [length + more for length, more in zip(self.lengths, changed, strict=True)]
        moved = torch.tensor(changed, device=self.ids.device)[self.at.row]
        return replace(
            self, rollouts=rollouts, ids=_padded(rollouts, read).to(self.ids.device), column=self.column + moved
        )


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
    credit from later tokens (γ > 0) needs them, with weight 0. Rollouts without loss tokens are left out. A prompt
    counts as long as the longer of the student's and the teacher's own.
    """
    rows: list[_Row] = []
    for rollout, (start, end) in zip(rollouts, spans, strict=True):
        if end > start:
            read = rollout.prompt.longest + (rollout.length if whole_response else end)
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
    row_of, position, tokens, behaviour, weight, age, lengths = [], [], [], [], [], [], []
    for row, (_, _, rollout, (start, end)) in enumerate(rows):
        looked_at = torch.arange(0, rollout.length) if whole else torch.arange(start, end)
        # The last token is only ever predicted, so the forward pass stops before it.
        lengths.append(len(rollout.prompt.ids) + (rollout.length if whole else end) - 1)
        row_of.append(torch.full_like(looked_at, row))
        position.append(looked_at)
        tokens.append(rollout.ids[looked_at])
        behaviour.append(rollout.log_probs[looked_at])
        weight.append(((looked_at >= start) & (looked_at < end)).float())
        age.append(rollout.age_of_tokens[looked_at])
    at = LossTokens(*(torch.cat(parts).to(device) for parts in (tokens, row_of, position, behaviour, weight, age)))
    rollouts = tuple(rollout for _, _, rollout, _ in rows)
    before = torch.tensor([len(rollout.prompt.ids) for rollout in rollouts], device=device)
    return Batch(
        rollouts=rollouts,
        teacher=rollouts[0].prompt.teacher,
        ids=_padded(rollouts, lengths).to(device),
        column=before[at.row] + at.position - 1,
        at=at,
    )


def _padded(rollouts: Sequence[Rollout], lengths: Sequence[int]) -> Int[Tensor, "B L"]:
    """Returns the first ids of each prompt and response, as many as `lengths` says."""
    ids = torch.zeros(len(rollouts), max(lengths), dtype=torch.long)
    for row, (rollout, length) in enumerate(zip(rollouts, lengths, strict=True)):
        ids[row, :length] = torch.cat([rollout.prompt.ids, rollout.ids])[:length]
    return ids
