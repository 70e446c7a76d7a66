"""Checks the waits after failed attempts."""

from hypothesis import given
from hypothesis import strategies as st

from hopd.remote.backoff import LONGEST_WAIT, Backoff


@given(st.floats(0.01, 60), st.integers(1, 2000))
def test_waits_double_with_jitter_up_to_the_longest(first, failures):
    """Covers numbers of failures for which the power of two would overflow a float."""
    backoff = Backoff(first, deadline=1e6)
    for failed in range(failures):
        longest = min(LONGEST_WAIT, first * 2.0 ** min(failed, 100))
        assert 0.5 * longest <= backoff.fail() <= longest
    assert backoff.failed == failures


def test_a_wait_that_the_server_asks_for_may_exceed_the_longest():
    backoff = Backoff(first=1.0, deadline=1e6)
    assert backoff.fail(retry_after=3 * LONGEST_WAIT) == 3 * LONGEST_WAIT
    assert backoff.fail(retry_after=0.1) >= 1.0  # a shorter one does not shorten ours


def test_no_attempt_begins_after_the_deadline():
    backoff = Backoff(first=1.0, deadline=100.0)
    assert backoff.allows(50.0)
    assert not backoff.allows(101.0)
