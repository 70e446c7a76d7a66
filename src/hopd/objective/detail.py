"""Names how much of a distribution is known: what a teacher returns, and what an estimator does with the rest."""

from enum import IntEnum
from typing import Literal

Tail = Literal["paper", "renormalised", "bucket"]


class Detail(IntEnum):
    """Ranks how much of its distribution a teacher returns.

    `SAMPLED` means log-probs of the sampled tokens, `TOP_K` also of its most likely tokens, `VOCABULARY` of all tokens.
    """

    SAMPLED = 1
    TOP_K = 2
    VOCABULARY = 3
