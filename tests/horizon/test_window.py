from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import RecipeError
from hopd.horizon import First, Last, Random, Segment, Whole, Window

lengths = st.integers(0, 40_000)
uniforms = st.floats(0, 1, exclude_max=True)
sizes = st.integers(1, 2000)
fractions = st.floats(0, 1)

segments = st.tuples(fractions, fractions).filter(lambda ends: ends[0] != ends[1]).map(lambda e: Segment(*sorted(e)))
sized = st.one_of(st.builds(First, sizes), st.builds(Last, sizes), st.builds(Random, sizes))
windows = st.one_of(st.builds(Whole), sized, segments)


@given(windows, lengths, uniforms)
def test_a_span_lies_in_the_rollout_and_is_empty_only_when_the_rollout_is(
    window: Window, length: int, uniform: float
) -> None:
    start, end = window.span(length, uniform)
    assert 0 <= start <= end <= length
    assert (start < end) == (length > 0)


@given(sized, lengths, uniforms)
def test_first_last_and_random_have_their_size_or_the_whole_rollout(
    window: First | Last | Random, length: int, uniform: float
) -> None:
    start, end = window.span(length, uniform)
    assert end - start == min(window.tokens, length)


@given(sizes, lengths)
def test_first_begins_at_the_first_token_and_last_ends_at_the_last(tokens: int, length: int) -> None:
    assert First(tokens).span(length)[0] == 0
    assert Last(tokens).span(length)[1] == length


def test_whole_is_every_token() -> None:
    assert Whole().span(17) == (0, 17)


@given(st.integers(1, 40), st.integers(1, 60))
def test_random_begins_at_every_possible_start_equally_often(tokens: int, length: int) -> None:
    starts = max(1, length - tokens + 1)
    draws = [(i + 0.5) / (3 * starts) for i in range(3 * starts)]
    counts = Counter(Random(tokens).span(length, uniform)[0] for uniform in draws)
    assert counts == dict.fromkeys(range(starts), 3)


@given(st.integers(20, 40_000))
def test_the_tenths_of_a_long_rollout_share_no_token_and_leave_none_out(length: int) -> None:
    spans = [Segment(tenth / 10, (tenth + 1) / 10).span(length) for tenth in range(10)]
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert all(abs((end - start) - length / 10) <= 1 for start, end in spans)


def test_a_segment_of_a_rollout_too_short_for_it_is_one_token() -> None:
    assert Segment(0.2, 0.3).span(3) == (0, 1)
    assert Segment(0.9, 1.0).span(1) == (0, 1)


@pytest.mark.parametrize("kind", [First, Last, Random])
@pytest.mark.parametrize("tokens", [0, -3, 1.5, "100", True, None])
def test_a_window_without_a_whole_number_of_tokens_is_an_error(kind: type, tokens: object) -> None:
    with pytest.raises(RecipeError, match="needs tokens: a whole number of at least 1, got "):
        kind(tokens)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (10, 20)])
def test_a_segment_outside_the_rollout_is_an_error_that_names_the_range(start: float, end: float) -> None:
    with pytest.raises(RecipeError, match=r"0 <= start < end <= 1 \(fractions of the rollout\)"):
        Segment(start, end)
