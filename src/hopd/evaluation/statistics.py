"""Estimates and their uncertainty, from a problems × samples table of scores."""

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000


def bootstrap_interval(
    scores: Float[np.ndarray, "problems samples"], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean. Problems are resampled, not samples: samples of one problem hang together."""
    means = scores.mean(axis=1)
    drawn = np.random.default_rng(seed).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(
    differences: Float[np.ndarray, "runs problems"], over_runs: bool = False, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean difference of two models that answered the same problems, in one pair of runs or several.

    Problems are resampled, with all runs of each: it speaks of these weights on other problems. `over_runs` adds what
    another seed changes, by Student's t: of three runs resampling would miss most of it. Raises `ValueError` if one
    run is to speak of others.
    """
    runs, problems = differences.shape
    if over_runs and runs < 2:
        raise ValueError(f"an interval over runs needs at least 2, there are {runs}")
    random = np.random.default_rng(seed)
    by_problem, by_run = differences.mean(axis=0), differences.mean(axis=1)
    means = by_problem[random.integers(problems, size=(RESAMPLES, problems))].mean(axis=1)
    if over_runs:
        means = means + random.standard_t(runs - 1, RESAMPLES) * by_run.std(ddof=1) / runs**0.5
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pass_at(k: int, scores: Float[np.ndarray, "problems samples"]) -> float:
    """The unbiased estimate from n ≥ k samples, 1 − C(n−c, k) / C(n, k), averaged over problems (arXiv:2107.03374).

    A sample passes when its score is 1.
    """
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    failed = n - (scores >= 1).sum(axis=1)
    # C(n−c, k) / C(n, k) as a product: the chance that k draws without replacement all fail.
    chance = np.prod([np.clip(failed - i, 0, None) / (n - i) for i in range(k)], axis=0)
    return float(1 - chance.mean())
