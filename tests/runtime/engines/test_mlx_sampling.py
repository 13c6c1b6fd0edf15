"""Draws belong to their sequence."""

import mlx.core as mx

from treering.runtime.engines.mlx_sampling import greedy, make_sampler

ROW = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))


def draws(sampler, count: int = 40) -> list[int]:
    return [int(sampler(ROW)[0]) for _ in range(count)]


def test_equal_seeds_draw_equally_whatever_the_global_state_is():
    """The global state is neither read nor moved."""
    first = draws(make_sampler(1.0, 1.0, 7))
    mx.random.seed(99)
    assert draws(make_sampler(1.0, 1.0, 7)) == first
    assert draws(make_sampler(1.0, 1.0, 8)) != first


def test_a_seed_may_be_any_integer():
    """Hashes and negative numbers are seeds."""
    assert draws(make_sampler(1.0, 1.0, 2**80 + 5), 3) == draws(make_sampler(1.0, 1.0, 5), 3)
    draws(make_sampler(1.0, 1.0, -1), 1)


def test_temperature_zero_is_greedy():
    """And shared by all, so that a greedy batch is chosen in one call."""
    assert make_sampler(0.0, 0.5, 3) is greedy
    assert draws(greedy, 1) == [0]


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    """Tokens outside of it are never drawn, those inside are."""
    assert set(draws(make_sampler(1.0, 0.75, 1), 200)) == {0, 1}
    assert set(draws(make_sampler(1.0, 0.1, 1), 50)) == {0}
    assert set(draws(make_sampler(1.0, 0.0, 1), 50)) == {0}


def test_frequencies_follow_the_distribution():
    """Roughly, over a thousand draws."""
    counted = draws(make_sampler(1.0, 1.0, 5), 1000)
    assert 430 < counted.count(0) < 570
