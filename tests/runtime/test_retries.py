"""How long to wait before another attempt."""

from hypothesis import given
from hypothesis import strategies as st

from treering.runtime.retries import RetryPolicy

DRAWS = st.floats(0.0, 1.0, exclude_max=True)


@given(st.integers(1, 10_000), DRAWS)
def test_the_wait_is_within_a_bound_that_doubles_up_to_a_cap(attempt: int, draw: float) -> None:
    """Full jitter: anywhere from nothing to the bound, however many attempts failed."""
    policy = RetryPolicy(base_s=0.5, cap_s=30.0)
    bound = min(30.0, 0.5 * 2.0 ** min(attempt - 1, 30))
    assert policy.delay_s(attempt, None, draw) == draw * bound
    assert policy.delay_s(attempt, None, 0.0) == 0.0


@given(st.floats(0.1, 1e9), DRAWS)
def test_what_a_server_asks_for_is_honoured_up_to_a_limit(asked_s: float, draw: float) -> None:
    """Never less than it asked for, never much more than the longest wait allowed."""
    policy = RetryPolicy(base_s=0.5, cap_s=30.0, longest_asked_s=120.0)
    wait_s = policy.delay_s(1, asked_s, draw)
    assert min(asked_s, 120.0) <= wait_s <= 120.0 + 0.5


def test_nonsense_asked_for_is_ignored() -> None:
    """A wait of nothing, or less, is the usual one."""
    policy = RetryPolicy()
    assert policy.delay_s(2, 0.0, 0.5) == policy.delay_s(2, -1.0, 0.5) == policy.delay_s(2, None, 0.5) == 0.5
