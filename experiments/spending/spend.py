"""Names the ways to spend a step that are compared, as horizons of a recipe, and how many steps they get."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.spending.case import TENTH, Case

SHARE = 0.4  # of OPD's tokens, for spends whose step is a tenth of OPD's: they level off before
LEAST, MOST = 16, 640  # steps


@dataclass(frozen=True)
class Spend:
    """Holds the horizon of a recipe, about how many tokens a step has, and the share of OPD's tokens to train with."""

    horizon: Mapping[str, Any]
    tokens: float
    share: float = SHARE

    def steps(self, case: Case) -> int:
        """Returns how many steps have the share of OPD's tokens."""
        return min(MOST, max(LEAST, round(self.share * case.steps * case.prompts * case.answer / self.tokens)))


def fixed(case: Case, rollouts: int, tokens: int, continues: bool = False, share: float = SHARE) -> Spend:
    """Returns a spend that stays the same: so many rollouts, each of so many tokens a step."""
    horizon: dict[str, Any] = {"controller": "truncated", "tokens": tokens, "rollouts": rollouts}
    if continues:
        horizon["continue"] = True
    return Spend(horizon, rollouts * min(tokens, case.answer), share)


def schemes(case: Case) -> dict[str, Spend]:
    """Returns what the paper compares, controls that have TOPD's tokens in a step, and the adaptive controller."""
    n, t = case.prompts, case.full_tokens
    short, start, growing = t // TENTH, t // 12, case.steps * 3 // 2
    progressive = {"controller": "progressive", "start": start, "increment": max(1, round((t - start) / growing))}
    return {
        "OPD": Spend({"controller": "full"}, n * case.answer, share=1),
        "POPD": Spend(progressive, n * (start + case.answer) / 2, share=0.75),
        "TOPD": fixed(case, n, short),
        "few full": fixed(case, max(1, round(n / TENTH)), t),
        "continued": fixed(case, n, short, continues=True),
        "adaptive": Spend({"controller": "adaptive"}, 3 * case.answer),
    }


def grid(case: Case) -> dict[str, Spend]:
    """Returns {n/8, n/4, n} rollouts × {T/10, T/4, T, continued by T/10}."""
    n, t = case.prompts, case.full_tokens
    made = {}
    for part in (8, 4, 1):
        for name, tokens in (("T/10", t // 10), ("T/4", t // 4), ("T", t)):
            made[f"n/{part} × {name}"] = fixed(
                case, n // part, tokens, share=1 if n * t == n // part * tokens else SHARE
            )
        made[f"n/{part} continued"] = fixed(case, n // part, t // 10, continues=True)
    return made


def all_spends(case: Case) -> dict[str, Spend]:
    """Returns every spend of a case by its name."""
    return schemes(case) | grid(case)
