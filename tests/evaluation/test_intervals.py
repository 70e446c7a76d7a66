"""Intervals and pass@k against their definitions, on drawn tables of scores."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hopd.evaluation.intervals import bootstrap_interval, paired_interval, pass_at

shapes = st.tuples(st.integers(1, 6), st.integers(1, 7))
tables = shapes.flatmap(lambda shape: arrays(float, shape, elements=st.sampled_from([0.0, 0.5, 1.0])))


def enumerated_pass_at(k: int, scores: np.ndarray) -> float:
    """Returns the fraction of k-subsets of a problem's samples with a passed one, averaged over problems."""
    solved = [[max(subset) >= 1 for subset in combinations(row, k)] for row in scores.tolist()]
    return float(np.mean([np.mean(subsets) for subsets in solved]))


@given(tables, st.data())
def test_pass_at_k_is_the_fraction_of_k_subsets_that_hold_a_pass(scores: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, scores.shape[1]))
    assert pass_at(k, scores) == pytest.approx(enumerated_pass_at(k, scores), abs=1e-12)


@given(tables)
def test_pass_at_1_is_the_fraction_of_passed_samples(scores: np.ndarray) -> None:
    assert pass_at(1, scores) == pytest.approx((scores == 1).mean(), abs=1e-12)


def test_pass_at_k_keeps_its_precision_for_many_samples() -> None:
    scores = np.zeros((1, 4096))
    scores[0, 0] = 1
    assert pass_at(1024, scores) == pytest.approx(1024 / 4096, rel=1e-9)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_pass_at_more_samples_than_there_are_or_at_none_is_an_error(k: int) -> None:
    with pytest.raises(ValueError, match=rf"1 <= k <= 3, .*got k = {k}"):
        pass_at(k, np.ones((2, 3)))


@given(shapes.flatmap(lambda shape: arrays(float, shape, elements=st.floats(0, 1))))
def test_the_interval_lies_within_the_problems_means(scores: np.ndarray) -> None:
    low, high = bootstrap_interval(scores)
    means = scores.mean(axis=1)
    assert means.min() - 1e-12 <= low <= high <= means.max() + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_holds_the_mean(seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 2, size=(40, 4)).astype(float)
    low, high = bootstrap_interval(scores)
    assert low < scores.mean() < high


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.960), (0.8, 1.282)])
def test_the_interval_of_many_problems_is_about_as_wide_as_the_normal_one(level: float, deviations: float) -> None:
    scores = np.random.default_rng(0).integers(0, 2, size=(1500, 1)).astype(float)
    low, high = bootstrap_interval(scores, level)
    assert high - low == pytest.approx(2 * deviations * scores.std() / np.sqrt(1500), rel=0.1)
    assert (low + high) / 2 == pytest.approx(scores.mean(), abs=0.1 * (high - low))


def test_repeated_samples_do_not_narrow_the_interval() -> None:
    scores = np.random.default_rng(0).integers(0, 2, size=(100, 1)).astype(float)
    assert bootstrap_interval(np.repeat(scores, 16, axis=1)) == bootstrap_interval(scores)


def test_samples_that_differ_within_a_problem_but_not_between_problems_leave_no_width() -> None:
    scores = np.tile([0.0, 1.0, 1.0, 0.0], (50, 1))
    assert bootstrap_interval(scores) == (0.5, 0.5)


def test_the_interval_is_a_function_of_scores_and_seed() -> None:
    scores = np.random.default_rng(0).random((30, 2))
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)


def test_the_interval_covers_the_truth_about_as_often_as_its_level() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval((rng.random((60, 1)) < 0.4).astype(float)) for _ in range(200)]
    assert 0.90 <= np.mean([low <= 0.4 <= high for low, high in intervals]) <= 0.99


@given(shapes.flatmap(lambda shape: arrays(float, shape, elements=st.floats(-1, 1))))
def test_the_paired_interval_changes_sign_with_the_sides(differences: np.ndarray) -> None:
    low, high = paired_interval(differences)
    assert differences.mean(axis=0).min() - 1e-12 <= low <= high <= differences.mean(axis=0).max() + 1e-12
    assert paired_interval(-differences) == pytest.approx((-high, -low), abs=1e-12)


@given(st.integers(2, 5), st.integers(1, 50))
def test_the_paired_interval_of_no_difference_is_zero(runs: int, problems: int) -> None:
    assert paired_interval(np.zeros((runs, problems)), over_runs=True) == (0, 0)


def covered(effect: float, of_seed: float, of_problem: float, noise: float, runs: int, over_runs: bool) -> float:
    """Returns the fraction of drawn experiments whose interval holds the true difference."""
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        drawn = effect + noise * random.standard_normal((runs, 80))
        drawn += of_problem * random.standard_normal(80) + of_seed * random.standard_normal((runs, 1))
        low, high = paired_interval(drawn, over_runs)
        held += low <= effect <= high
    return held / 400


@pytest.mark.parametrize(
    ("of_seed", "of_problem", "noise", "runs", "over_runs", "within"),
    [
        (0.0, 0.5, 0.5, 1, False, (0.91, 0.98)),
        (0.0, 0.5, 0.5, 3, False, (0.91, 0.98)),
        (0.2, 0.05, 0.05, 3, True, (0.91, 0.98)),  # seeds alone
        (0.2, 0.05, 0.05, 3, False, (0.0, 0.3)),  # which resampled problems do not show
        (0.05, 0.5, 0.1, 3, True, (0.91, 1.0)),
        (0.05, 0.2, 0.5, 5, True, (0.93, 1.0)),  # what both share counts twice: a little too wide
    ],
)
def test_the_paired_interval_covers_as_often_as_its_level(
    of_seed: float, of_problem: float, noise: float, runs: int, over_runs: bool, within: tuple[float, float]
) -> None:
    fraction = covered(0.3, of_seed, of_problem, noise, runs, over_runs)
    assert within[0] <= fraction <= within[1], fraction


def test_a_known_difference_is_found_and_one_run_gives_no_interval_over_runs() -> None:
    random = np.random.default_rng(0)
    before, after = random.random((3, 300)) < 0.5, random.random((3, 300)) < 0.65
    low, high = paired_interval(after.astype(float) - before, over_runs=True)
    assert 0 < low < 0.15 < high
    with pytest.raises(ValueError, match="at least 2 runs, got 1"):
        paired_interval(np.zeros((1, 9)), over_runs=True)
