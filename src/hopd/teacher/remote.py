"""A teacher behind a vLLM server: log-probs of prompts, by the OpenAI-compatible `/v1/completions`.

A server says how likely the tokens of a sequence are, and which were the likeliest: enough for the objectives `sampled`
and `top_k` with the teacher's candidates. Its log-probs are of temperature 1, before any cut.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.errors import TeacherUnavailable
from hopd.objective import Detail, Objective, SampledSignal, TopKSignal
from hopd.recipe import ServerSource
from hopd.remote import Client, Fault, FaultKind, fingerprint_ids
from hopd.rollout.batch import Batch
from hopd.rollout.rollout import Rollout
from hopd.teacher.answer import Scores, read_answer

SAME_WEIGHTS = 0.05  # nats a token of the probe: more than half precision and another batch explain


class ServerTeacher:
    """`vocabulary` is the student's. Every request carries a probe besides: scores count only if they come from the
    weights that the run began with, `fingerprint`, the probe's log-probs (the first answer sets it)."""

    gives = Detail.TOP_K

    def __init__(self, source: ServerSource, objective: Objective, vocabulary: int):
        self.source, self.vocabulary = source, vocabulary
        self.top = objective.k if objective.needs == Detail.TOP_K else 0
        self.client = Client(source, f"the teacher {source.model} has not scored", TeacherUnavailable)
        self.probe = fingerprint_ids(vocabulary)
        self.fingerprint: Float[Tensor, " P"] | None = None
        self._fetched: dict[Rollout, Scores] = {}

    def fetch(self, batches: Sequence[Batch]) -> None:
        """Asks for the scores of all these batches at once, for `score` to find; what was fetched before is forgotten.

        Raises `TeacherUnavailable`."""
        self._fetched = {}
        wanted = [pair for batch in batches for pair in _sequences(batch)]
        groups = self._grouped(wanted)
        answers = self.ask([[ids for _, ids in group] for group in groups])
        for group, scores in zip(groups, answers, strict=True):
            self._fetched.update({rollout: score for (rollout, _), score in zip(group, scores, strict=True)})

    def score(self, batch: Batch) -> SampledSignal:
        """What `fetch` brought, or else by asking now. Raises `TeacherUnavailable`."""
        if any(rollout not in self._fetched for rollout in batch.rollouts):
            self.fetch([batch])
        scores = [self._fetched[rollout] for rollout in batch.rollouts]
        # The log-prob of the token at place t of a sequence stands at t − 1: the first has none.
        places = list(zip(batch.at.row.tolist(), batch.column.tolist(), strict=True))
        device = batch.at.tokens.device
        sampled = torch.stack([scores[row].log_probs[column] for row, column in places]).to(device)
        if not self.top:
            return SampledSignal(sampled)
        ids = torch.stack([scores[row].top_ids[column] for row, column in places]).to(device)
        likely = torch.stack([scores[row].top_log_probs[column] for row, column in places]).to(device)
        return TopKSignal(sampled, ids, likely)

    def ask(self, groups: Sequence[Sequence[list[int]]]) -> list[list[Scores]]:
        """The scores of sequences of token ids, one request a group; the probe goes with each and is checked."""
        requests = [
            {
                "model": self.source.model,
                "prompt": [self.probe, *group],
                "max_tokens": 1,  # vLLM does not take 0
                "temperature": 1.0,
                "prompt_logprobs": self.top,
            }
            for group in groups
        ]

        def read(n: int, body: bytes) -> list[Scores]:
            probed, *scores = read_answer(body, [self.probe, *groups[n]], self.top, self.vocabulary)
            self._check_weights(probed)
            return scores

        return self.client.ask("/v1/completions", requests, read)

    def _check_weights(self, probed: Scores) -> None:
        if self.fingerprint is None:
            self.fingerprint = probed.log_probs
        apart = float((probed.log_probs - self.fingerprint).abs().mean())
        if not apart <= SAME_WEIGHTS:
            raise Fault(
                FaultKind.OTHER_WEIGHTS,
                f"it has other weights than at the run's start: a probe's log-probs are {apart:.3g} nats apart",
            )

    def _grouped(self, wanted: Sequence[tuple[Rollout, list[int]]]) -> list[list[tuple[Rollout, list[int]]]]:
        """As many sequences a request as keep all servers busy, and at most the recipe's."""
        servers = len(self.source.servers) * self.source.concurrency
        size = max(1, min(self.source.sequences, -(-len(wanted) // servers)))
        return [list(wanted[start : start + size]) for start in range(0, len(wanted), size)]


def _sequences(batch: Batch) -> list[tuple[Rollout, list[int]]]:
    """Each rollout of the batch with its prompt and response, up to the last token that is looked at."""
    return [
        (rollout, torch.cat([rollout.prompt.ids, rollout.ids])[: read + 1].tolist())
        for rollout, read in zip(batch.rollouts, batch.lengths, strict=True)
    ]
