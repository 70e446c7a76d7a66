"""Measures held-out divergence from the teacher, for models that are too small to compare by accuracy.

The teacher answers held-out prompts once, to the full length, and a student is measured on these answers. The student
samples nothing, so every student is measured on the same tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hopd.evaluation.intervals import bootstrap_interval
from hopd.model import LanguageModel
from hopd.objective.divergence import forward_kl, reverse_kl
from hopd.objective.head import chunks
from hopd.objective.signal import log_prob_of
from hopd.rollout import Rollout, pack


@dataclass(frozen=True)
class Divergence:
    """Holds means over the teacher's tokens, in nats per token.

    `interval` is the 95 % bootstrap interval of the reverse KL over answers. `scores` holds minus the reverse KL of
    each answer, weighted by its length, so that the mean of the scores is the score.
    """

    reverse_kl: float
    interval: tuple[float, float]
    forward_kl: float
    perplexity: float
    answers: int
    tokens: int
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """Returns minus the reverse KL; greater is better."""
        return -self.reverse_kl

    def summary(self) -> str:
        """Returns one line for a person."""
        low, high = self.interval
        return (
            f"on {self.answers} held-out answers of the teacher: reverse KL {self.reverse_kl:.4f} (95 % interval "
            f"{low:.4f} to {high:.4f}), forward KL {self.forward_kl:.4f}, perplexity {self.perplexity:.2f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields but the scores of each answer."""
        return {name: value for name, value in asdict(self).items() if name != "scores"}


@torch.no_grad()
def measure_divergence(
    student: LanguageModel, teacher: LanguageModel, answers: Sequence[Rollout], tokens_per_batch: int = 8192
) -> Divergence:
    """Measures the KL in both directions and the student's perplexity on the teacher's `answers`, at temperature 1."""
    sums = torch.zeros(len(answers), 3, dtype=torch.float64)
    index_of = {id(answer): index for index, answer in enumerate(answers)}
    for batch in pack(answers, [(0, answer.length) for answer in answers], tokens_per_batch, student.device):
        both = (student, batch), (teacher, batch.of_teacher)
        hidden = [read.states(model.hidden(read.ids)) for model, read in both]
        rows = torch.tensor([index_of[id(answer)] for answer in batch.rollouts])
        for part in chunks(len(batch.at.tokens), student.head.vocabulary):
            logits = student.head.logits(hidden[0][part])
            s, g = logits.log_softmax(-1), teacher.head.logits(hidden[1][part]).log_softmax(-1)
            terms = torch.stack([reverse_kl(s, g), forward_kl(s, g), -log_prob_of(logits, batch.at.tokens[part])], -1)
            sums.index_add_(0, rows[batch.at.row[part].cpu()], terms.double().cpu())
    lengths = torch.tensor([answer.length for answer in answers], dtype=torch.float64)
    reverse, forward, surprise = (sums.sum(0) / lengths.sum()).tolist()
    weighted = (sums[:, 0] / lengths.mean()).numpy()
    return Divergence(
        reverse_kl=reverse,
        interval=bootstrap_interval(weighted[:, None]),
        forward_kl=forward,
        perplexity=math.exp(surprise),
        answers=len(answers),
        tokens=int(lengths.sum()),
        scores=tuple((-weighted).tolist()),
    )
