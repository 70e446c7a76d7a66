"""Reads a server's answer strictly: every score is there and finite, or the whole answer is a `Fault`."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopd.remote import Fault, FaultKind

IMPOSSIBLE = -9998.0  # vLLM writes −9999 for a log-prob of −∞, which JSON has no number for


@dataclass(frozen=True)
class Scores:
    """Holds the scores of one sequence of N + 1 tokens, the first of which has none: log-probs in nats, and the K most
    likely tokens at each position with theirs. `decoded` is each token's text by the server's tokenizer, None where the
    answer lacks it."""

    log_probs: Float[Tensor, " N"]
    top_ids: Int[Tensor, "N K"]
    top_log_probs: Float[Tensor, "N K"]
    decoded: tuple[str | None, ...]

    @property
    def has_gaps(self) -> bool:
        """Tells whether a score is missing."""
        return bool(self.log_probs.isnan().any() or self.top_log_probs.isnan().any())

    def with_last(self, other: "Scores") -> "Scores":
        """Returns the scores with the probability of another sequence's last token added to that of the own last."""
        both = torch.stack([self.log_probs[-1:], other.log_probs[-1:]])
        last = both.nan_to_num(-math.inf).logsumexp(0)  # one that is impossible adds nothing
        last = last.masked_fill(last.isinf(), math.nan)
        return replace(self, log_probs=torch.cat([self.log_probs[:-1], last]))


def read_answer(body: bytes, sequences: list[list[int]], top: int, vocabulary: int, gaps: bool = False) -> list[Scores]:
    """Returns the scores of each sequence of token ids, with the `top` likeliest tokens below `vocabulary`. Raises
    `Fault` rather than fill in a missing number; with `gaps`, log-probs that are not finite are NaN instead."""
    try:
        choices = json.loads(body)["choices"]
        choices = sorted(choices, key=lambda choice: choice["index"])
        answered = [choice["prompt_logprobs"] for choice in choices]
    except (ValueError, KeyError, TypeError) as error:
        raise Fault(FaultKind.MALFORMED, f"its answer is cut off or not what was asked for ({error!r})") from error
    if len(answered) != len(sequences):
        raise Fault(FaultKind.WRONG_LENGTH, f"it scored {len(answered)} of {len(sequences)} sequences")
    try:
        return [_scores(*pair, top, vocabulary, gaps) for pair in zip(answered, sequences, strict=True)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Fault(FaultKind.MALFORMED, f"its answer is not what was asked for ({error!r})") from error


def _scores(places: list[Any] | None, ids: list[int], top: int, vocabulary: int, gaps: bool) -> Scores:
    if places is None:
        raise Fault(FaultKind.NOT_FINITE, "it gave null in place of the prompt's log-probs")
    if len(places) != len(ids):
        raise Fault(FaultKind.WRONG_LENGTH, f"it gave {len(places)} log-probs for a sequence of {len(ids)} tokens")
    log_probs, top_ids, top_log_probs, decoded = [], [], [], []
    for number, (place, token) in enumerate(zip(places[1:], ids[1:], strict=True), 1):
        entry = {"logprob": None} if place is None else place[str(token)]
        of_token = _number(entry["logprob"], f"of id {token}, token {number} of a sequence", gaps)
        decoded.append(entry.get("decoded_token"))
        log_probs.append(of_token)
        if top:
            # Likeliest first. Ids that only the teacher has (padding of its vocabulary) mean nothing to the student.
            known = {int(id): e["logprob"] for id, e in (place or {}).items() if int(id) < vocabulary}
            likely = [(-_number(p, f"of id {id} after token {number}", gaps), id) for id, p in known.items()]
            if place is None or any(math.isnan(negative) for negative, _ in likely):
                likely = [(math.nan, 0)] * top
            if len(likely) < top:
                raise Fault(FaultKind.WRONG_LENGTH, f"it gave {len(likely)} likely tokens at a position, not {top}")
            likely = sorted(likely)[:top]
            top_ids.append([id for _, id in likely])
            top_log_probs.append([-negative for negative, _ in likely])
    return Scores(
        torch.tensor(log_probs, dtype=torch.float32),
        torch.tensor(top_ids, dtype=torch.long).view(len(log_probs), top),
        torch.tensor(top_log_probs, dtype=torch.float32).view(len(log_probs), top),
        tuple(decoded),
    )


def _number(value: Any, what: str, gaps: bool) -> float:
    """Returns a log-prob. Raises `Fault` for what is none, or with `gaps` returns NaN for what is not finite."""
    if value is None or math.isnan(value) or value <= IMPOSSIBLE:
        if gaps:
            return math.nan
        kind = FaultKind.IMPOSSIBLE if value is not None and value <= IMPOSSIBLE else FaultKind.NOT_FINITE
        raise Fault(kind, f"it gave {'null' if value is None else value} in place of the log-prob {what}")
    if value > 1e-3:
        raise Fault(FaultKind.MALFORMED, f"it gave {value} as a log-prob; serve with --logprobs-mode raw_logprobs")
    return float(value)
