"""Computes intervals of means, and pass@k, from tables of scores."""

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000


def bootstrap_interval(
    scores: Float[np.ndarray, "problems samples"], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean.

    It resamples problems, not samples: samples of one problem are not independent.
    """
    means = scores.mean(axis=1)
    drawn = np.random.default_rng(seed).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(
    differences: Float[np.ndarray, "runs problems"], over_runs: bool = False, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Returns the interval of the mean difference of two models that answered the same problems, in one or more pairs
    of runs.

    Problems are resampled, each with all its runs, so the interval is for these weights on other problems. `over_runs`
    adds the variation between seeds by Student's t, since resampling two or three runs would miss most of it. Raises
    `ValueError` for `over_runs` with a single run.
    """
    runs, problems = differences.shape
    if over_runs and runs < 2:
        raise ValueError(f"an interval over runs needs at least 2 runs, got {runs}")
    random = np.random.default_rng(seed)
    by_problem, by_run = differences.mean(axis=0), differences.mean(axis=1)
    means = by_problem[random.integers(problems, size=(RESAMPLES, problems))].mean(axis=1)
    if over_runs:
        means = means + random.standard_t(runs - 1, RESAMPLES) * by_run.std(ddof=1) / runs**0.5
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pass_at(k: int, scores: Float[np.ndarray, "problems samples"]) -> float:
    """Returns the unbiased estimate from n ≥ k samples, 1 − C(n−c, k) / C(n, k), averaged over problems
    (arXiv:2107.03374). c is the number of samples with a score of 1.

    Raises `ValueError` if k is not from 1 to n.
    """
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= {n}, the number of samples, got k = {k}")
    failed = n - (scores >= 1).sum(axis=1)
    # C(n−c, k) / C(n, k) as a product: the chance that k draws without replacement all fail.
    chance = np.prod([np.clip(failed - i, 0, None) / (n - i) for i in range(k)], axis=0)
    return float(1 - chance.mean())
