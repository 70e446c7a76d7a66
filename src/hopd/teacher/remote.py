"""Scores with a teacher behind a vLLM server, by the OpenAI-compatible `/v1/completions`.

The server returns the log-probs of a sequence's tokens and of the likeliest ones: enough for the objectives `sampled`
and `top_k` with the teacher's candidates. They are at temperature 1, before any top-k or top-p.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopd.errors import TeacherUnavailable
from hopd.objective import Detail, Objective, SampledSignal, TopKSignal
from hopd.recipe import ServerSource
from hopd.remote import Client, Fault, FaultKind, fingerprint_ids
from hopd.rollout.batch import Batch
from hopd.rollout.rollout import Rollout
from hopd.teacher.answer import Scores, read_answer

# After so many equal answers, what a server gives in place of a log-prob is what it has: −∞ is an answer, while NaN may
# be a passing fault. A step of which more is missing than MISSING, or a fingerprint with gaps, is a wrong setting.
EQUAL = {FaultKind.IMPOSSIBLE: 2, FaultKind.NOT_FINITE: 5}
MISSING = 0.1
HOW = (
    "serve with --logprobs-mode raw_logprobs and --generation-config vllm, and without what masks tokens (bad words, "
    "allowed ids, a grammar)"
)
SAME_WEIGHTS = 0.05  # nats a token of the fingerprint: more than half precision and another batch explain


class RemoteTeacher:
    """Scores by asking the servers of `source`. `vocabulary` is the student's. A sequence that ends at one of `ends` is
    scored with each of the others in its place too, and gets the probability of all of them together.

    Every request also scores the fingerprint's tokens, and an answer counts only if their log-probs equal
    `fingerprint`, which the first answer sets: so all scores come from the weights that the run began with."""

    gives = Detail.TOP_K

    def __init__(self, source: ServerSource, objective: Objective, vocabulary: int, ends: tuple[int, ...] = ()):
        self.source, self.vocabulary, self.ends = source, vocabulary, ends
        self.top = objective.k if objective.needs == Detail.TOP_K else 0
        self.client = Client(source, f"the teacher {source.model} has not scored", TeacherUnavailable)
        self.fingerprint_ids = fingerprint_ids(vocabulary)
        self.fingerprint: Float[Tensor, " P"] | None = None
        self.gaps, self.example = 0, ""  # loss tokens without a score in the last fetch, and a sentence on the first
        self._fetched: dict[Rollout, Scores] = {}

    def fetch(self, batches: Sequence[Batch]) -> None:
        """Asks for the scores of all these batches at once and keeps them for `score`, in place of earlier ones.

        Raises `TeacherUnavailable`, also if more than a few loss tokens have no score."""
        self._fetched = {}
        wanted = [pair for batch in batches for pair in _sequences(batch, self.ends)]
        groups = self._grouped(wanted)
        answers = self.ask([[ids for _, ids in group] for group in groups])
        for group, scores in zip(groups, answers, strict=True):
            for (rollout, _), score in zip(group, scores, strict=True):
                first = self._fetched.get(rollout)
                self._fetched[rollout] = score if first is None else first.with_last(score)
        self._count_gaps(batches)

    def score(self, batch: Batch) -> SampledSignal:
        """Returns the fetched scores, or asks for them now; where there is none, the student's own. Raises
        `TeacherUnavailable`."""
        sampled, ids, likely = self._scores_of(batch)
        gap = self._is_gap(batch)
        sampled = torch.where(gap, batch.at.behaviour.to(sampled.dtype), sampled)
        if not self.top:
            return SampledSignal(sampled, ends=self.ends)
        return TopKSignal(sampled, ids, likely.masked_fill(gap[:, None], 0.0))

    def without_gaps(self, batch: Batch) -> Batch:
        """Returns the batch with no weight on loss tokens without a score. Raises `TeacherUnavailable`."""
        gap = self._is_gap(batch)
        return (
            replace(batch, at=replace(batch.at, weight=batch.at.weight.masked_fill(gap, 0.0))) if gap.any() else batch
        )

    def _scores_of(self, batch: Batch) -> tuple[Float[Tensor, " N"], Int[Tensor, "N K"], Float[Tensor, "N K"]]:
        self._ensure(batch)
        scores = [self._fetched[rollout] for rollout in batch.rollouts]
        # The log-prob of a sequence's token t is at t − 1: the first token has none.
        places = list(zip(batch.at.row.tolist(), batch.of_teacher.column.tolist(), strict=True))
        device = batch.at.tokens.device
        sampled = torch.stack([scores[row].log_probs[column] for row, column in places]).to(device)
        ids = torch.stack([scores[row].top_ids[column] for row, column in places]).to(device)
        likely = torch.stack([scores[row].top_log_probs[column] for row, column in places]).to(device)
        return sampled, ids, likely

    def _ensure(self, batch: Batch) -> None:
        if any(rollout not in self._fetched for rollout in batch.rollouts):
            self.fetch([batch])

    def _is_gap(self, batch: Batch) -> Bool[Tensor, " N"]:
        self._ensure(batch)
        if not any(self._fetched[rollout].has_gaps for rollout in batch.rollouts):
            return torch.zeros_like(batch.at.weight, dtype=torch.bool)
        sampled, _, likely = self._scores_of(batch)
        return sampled.isnan() | likely.isnan().any(-1)

    def _count_gaps(self, batches: Sequence[Batch]) -> None:
        self.gaps, self.example, tokens = 0, "", 0
        for batch in batches:
            gap = self._is_gap(batch) & (batch.at.weight > 0)
            tokens += int((batch.at.weight > 0).sum())
            self.gaps += int(gap.sum())
            if not self.example and self.gaps:
                place = int(gap.nonzero()[0])
                self.example = (
                    f"the teacher {self.source.model} gave no finite log-prob of id {int(batch.at.tokens[place])}, "
                    f"response token {int(batch.at.position[place])} of {batch.rollouts[int(batch.at.row[place])]}, "
                    "though asked again"
                )
        if self.gaps > max(1, MISSING * tokens):
            raise TeacherUnavailable(f"{self.example}; in all, {self.gaps} of {tokens} tokens have none: {HOW}")

    def in_place_of_last(self, batch: Batch, ids: Sequence[int]) -> Float[Tensor, "N K"]:
        """Returns the log-probs of `ids` in place of the last token that is scored of each rollout. Raises
        `TeacherUnavailable`."""
        wanted = [(rollout, [*read[:-1], id]) for rollout, read in _sequences(batch) for id in ids]
        answers = self.ask([[read for _, read in group] for group in self._grouped(wanted)])
        return torch.stack([score.log_probs[-1] for scores in answers for score in scores]).view(-1, len(ids))

    def ask(self, groups: Sequence[Sequence[list[int]]]) -> list[list[Scores]]:
        """Scores sequences of token ids, one request for each group, and checks the fingerprint in every answer."""
        requests = [
            {
                "model": self.source.model,
                "prompt": [self.fingerprint_ids, *group],
                "max_tokens": 1,  # vLLM does not take 0
                "temperature": 1.0,
                "prompt_logprobs": self.top,
            }
            for group in groups
        ]

        seen = Counter[tuple[int, str]]()

        def read(n: int, body: bytes) -> list[Scores]:
            asked = [self.fingerprint_ids, *groups[n]], self.top, self.vocabulary
            try:
                fingerprint, *scores = read_answer(body, *asked)
            except Fault as fault:
                seen[n, str(fault)] += 1
                if fault.kind not in EQUAL or seen[n, str(fault)] < EQUAL[fault.kind]:
                    raise
                fingerprint, *scores = read_answer(body, *asked, gaps=True)
                if bool(fingerprint.log_probs.isnan().any()):
                    raise TeacherUnavailable(f"the teacher {self.source.model}: {fault}; {HOW}") from None
            self._check_weights(fingerprint)
            return scores

        return self.client.ask("/v1/completions", requests, read)

    def _check_weights(self, found: Scores) -> None:
        if self.fingerprint is None:
            self.fingerprint = found.log_probs
        difference = float((found.log_probs - self.fingerprint).abs().mean())
        if not difference <= SAME_WEIGHTS:
            raise Fault(
                FaultKind.OTHER_WEIGHTS,
                "it has other weights than at the run's start: log-probs of the fingerprint differ by "
                f"{difference:.3g} nats a token",
            )

    def _grouped(self, wanted: Sequence[tuple[Rollout, list[int]]]) -> list[list[tuple[Rollout, list[int]]]]:
        """Splits sequences into requests, small enough to keep all servers busy and at most of the recipe's size."""
        servers = len(self.source.servers) * self.source.concurrency
        size = max(1, min(self.source.sequences, -(-len(wanted) // servers)))
        return [list(wanted[start : start + size]) for start in range(0, len(wanted), size)]


def _sequences(batch: Batch, ends: Sequence[int] = ()) -> list[tuple[Rollout, list[int]]]:
    """Returns each rollout with the ids of the teacher's prompt and the response, up to the last token that is scored;
    where that is one of `ends`, which only a last one can be, also with each of the others in its place."""
    made = []
    of_teacher = batch.of_teacher
    for rollout, seen, read in zip(batch.rollouts, of_teacher.rollouts, of_teacher.lengths, strict=True):
        ids = torch.cat([seen.prompt.ids, seen.ids])[: read + 1].tolist()
        others = [end for end in ends if end != ids[-1]] if ids[-1] in ends else []
        made += [(rollout, ids), *((rollout, [*ids[:-1], end]) for end in others)]
    return made
