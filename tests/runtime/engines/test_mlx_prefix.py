"""Keys and values are kept by their tokens, within a number of bytes, and nobody can change them."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache

from treering.runtime.engines.mlx_prefix import PrefixCache

BYTES_PER_TOKEN = 2 * 2 * 4 * 4  # keys and values, two heads, width 4, float32


def filled(tokens: list[int]) -> list[KVCache]:
    """One layer whose values tell the tokens."""
    layer = KVCache()
    row = mx.array(tokens, dtype=mx.float32).reshape(1, 1, len(tokens), 1)
    layer.update_and_fetch(
        mx.broadcast_to(row, (1, 2, len(tokens), 4)), mx.broadcast_to(-row, (1, 2, len(tokens), 4))
    )
    return [layer]


def held(layer: KVCache) -> list[float]:
    return layer.keys_and_values()[0][0, 0, :, 0].tolist()


def test_the_longest_common_beginning_is_found():
    """Whatever follows differs."""
    cache = PrefixCache(10**6)
    cache.put([1, 2, 3, 4, 5, 6], filled([1, 2, 3, 4, 5, 6]))
    cache.put([1, 2, 3, 4, 9], filled([1, 2, 3, 4, 9]))
    length, layers = cache.longest([1, 2, 3, 4, 5, 7])
    assert length == 5
    assert held(layers[0]) == [1, 2, 3, 4, 5]
    assert cache.longest([2, 2, 3, 4, 5]) == (0, None)


def test_a_reader_cannot_change_what_is_kept():
    """Siblings extend caches of their own."""
    cache = PrefixCache(10**6)
    source = filled([1, 2, 3, 4, 5, 6])
    cache.put([1, 2, 3, 4, 5, 6], source)
    source[0].update_and_fetch(mx.full((1, 2, 1, 4), 70.0), mx.full((1, 2, 1, 4), 70.0))
    for other in (8, 9):
        _, layers = cache.longest([1, 2, 3, 4, 5, other])
        layers[0].update_and_fetch(mx.full((1, 2, 1, 4), float(other)), mx.full((1, 2, 1, 4), 0.0))
        assert held(layers[0]) == [1, 2, 3, 4, 5, other]
    assert held(cache.longest([1, 2, 3, 4, 5, 6])[1][0]) == [1, 2, 3, 4, 5, 6]


def test_a_continuation_takes_the_place_of_its_beginning():
    """And a beginning of what is there adds nothing."""
    cache = PrefixCache(10**6)
    cache.put([1, 2, 3, 4], filled([1, 2, 3, 4]))
    cache.put([1, 2, 3, 4, 5], filled([1, 2, 3, 4, 5]))
    cache.put([1, 2, 3], filled([1, 2, 3]))
    assert len(cache) == 1
    assert cache.nbytes == 5 * BYTES_PER_TOKEN


def test_the_least_recently_used_goes_first():
    """The limit holds, and a read counts as a use."""
    cache = PrefixCache(8 * BYTES_PER_TOKEN)
    cache.put([1, 1, 1, 1], filled([1, 1, 1, 1]))
    cache.put([2, 2, 2, 2], filled([2, 2, 2, 2]))
    cache.longest([1, 1, 1, 1])
    cache.put([3, 3, 3, 3], filled([3, 3, 3, 3]))
    assert cache.nbytes <= cache.limit_bytes
    assert cache.longest([1, 1, 1, 1])[0] == 4
    assert cache.longest([2, 2, 2, 2])[0] == 0
    cache.put([4] * 9, filled([4] * 9))
    assert cache.longest([4] * 9)[0] == 0


def test_only_plain_caches_are_kept():
    """A sliding window has no beginning to cut off; a cache that is too short is a mistake."""
    cache = PrefixCache(10**6)
    cache.put([1, 2, 3, 4], [RotatingKVCache(max_size=8)])
    assert len(cache) == 0
    with pytest.raises(ValueError, match="cannot stand for 5"):
        cache.put([1, 2, 3, 4, 5], filled([1, 2, 3, 4]))
