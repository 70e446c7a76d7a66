"""Names the ways to spend a step that are compared, as horizons of a recipe, and how many steps they get."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.spending.case import TENTH, Case

SHARE = 0.4  # of OPD's tokens, for spends whose step is smaller: they level off before


@dataclass(frozen=True)
class Spend:
    """Holds the horizon of a recipe, and the tokens of a step in the mean."""

    horizon: Mapping[str, Any]
    tokens: float

    def steps(self, case: Case, share: float) -> int:
        """Returns how many steps have this share of OPD's tokens."""
        return max(8, round(share * case.steps * case.prompts * case.answer / self.tokens))


def fixed(case: Case, rollouts: int, tokens: int, continues: bool = False) -> Spend:
    """Returns a spend that stays the same: so many rollouts, each of so many tokens a step."""
    horizon: dict[str, Any] = {"controller": "truncated", "tokens": tokens, "rollouts": rollouts}
    if continues:
        horizon["continue"] = True
    return Spend(horizon, rollouts * min(tokens, case.answer))


def grid(case: Case) -> dict[str, Spend]:
    """Returns {n/8, n/4, n} rollouts × {T/10, T/4, T, continued by T/10}."""
    t = case.full_tokens
    made = {}
    for part in (8, 4, 1):
        rollouts = case.prompts // part
        for name, tokens in (("T/10", t // 10), ("T/4", t // 4), ("T", t)):
            made[f"n/{part} × {name}"] = fixed(case, rollouts, tokens)
        made[f"n/{part} continued"] = fixed(case, rollouts, t // 10, continues=True)
    return made


def schemes(case: Case) -> dict[str, Spend]:
    """Returns what the paper compares, and its controls at TOPD's tokens a step."""
    n, t = case.prompts, case.full_tokens
    short, popd = t // TENTH, case.steps * 3 // 2
    start = t // 12
    progressive = {"controller": "progressive", "start": start, "increment": max(1, round((t - start) / popd))}
    return {
        "OPD": Spend({"controller": "full"}, n * case.answer),
        "POPD": Spend(progressive, n * (start + case.answer) / 2),
        "TOPD": fixed(case, n, short),
        "few full": fixed(case, max(1, round(n / TENTH)), t),
        "continued": fixed(case, n, short, continues=True),
    }


def share_of(name: str) -> float:
    """Returns the share of OPD's tokens that a scheme is trained with."""
    return {"OPD": 1.0, "POPD": 0.75}.get(name, SHARE)
