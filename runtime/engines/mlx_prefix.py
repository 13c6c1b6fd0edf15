"""A small prefix cache: keys and values of prompts read before, to be read again by others.

Owns them by their tokens, in memory, within a number of bytes. Never computes, and never hands out an array
that its user could change: a reader gets slices in a cache of its own. The invariant: an entry holds exactly
the keys and values of its tokens, so that any beginning of it serves whoever begins alike.

Plain attention caches only: others (sliding windows, recurrent states) have no beginning to cut off.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

__all__ = ["PrefixCache"]

_SHORTEST = 4  # fewer tokens than this cost less to compute than to look after


class _Entry:
    """Keys and values per layer, each of shape (1, heads, tokens, width)."""

    __slots__ = ("layers", "nbytes", "tokens")

    def __init__(self, tokens: tuple[int, ...], layers: list[tuple[Any, Any]]) -> None:
        self.tokens = tokens
        self.layers = layers
        self.nbytes = sum(keys.nbytes + values.nbytes for keys, values in layers)


class PrefixCache:
    """Least recently used goes first. `limit_bytes` 0 keeps nothing."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, tokens: Sequence[int]) -> tuple[int, list[Any] | None]:
        """How many of `tokens`' first are known, and a cache of them that the caller may extend."""
        wanted = tuple(tokens)
        best, length = None, 0
        for key, entry in self._entries.items():
            common = _common(entry.tokens, wanted)
            if common > length:
                best, length = key, common
        if best is None or length < _SHORTEST:
            return 0, None
        self._entries.move_to_end(best)
        return length, [_slice(keys, values, length) for keys, values in self._entries[best].layers]

    def put(self, tokens: Sequence[int], cache: Sequence[Any]) -> None:
        """Keep what `cache` holds for `tokens`, its first. Entries that `tokens` continue are dropped."""
        if not tokens or not all(type(layer) is KVCache and layer.keys is not None for layer in cache):
            return
        length = len(tokens)
        if any(layer.offset < length for layer in cache):
            raise ValueError(f"a cache of {cache[0].offset} tokens cannot stand for {length}")
        # New slices, not the arrays themselves: `cache` goes on writing to those.
        layers = [(layer.keys[..., :length, :], layer.values[..., :length, :]) for layer in cache]
        entry = _Entry(tuple(tokens), layers)
        if entry.nbytes > self.limit_bytes:
            return
        for key, other in list(self._entries.items()):
            common = _common(other.tokens, entry.tokens)
            if common == length:
                self._entries.move_to_end(key)
                return
            if common == len(other.tokens):
                self._drop(key)
        mx.async_eval(layers)  # type: ignore[no-untyped-call]
        self._entries[self._next] = entry
        self._next += 1
        self.nbytes += entry.nbytes
        while self.nbytes > self.limit_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget all of it."""
        self._entries.clear()
        self.nbytes = 0

    def _drop(self, key: int) -> None:
        self.nbytes -= self._entries.pop(key).nbytes


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many first tokens two sequences share, by halving: slices compare at C speed."""
    same, differs = 0, min(len(a), len(b))
    if a[:differs] == b[:differs]:
        return differs
    while differs - same > 1:
        middle = (same + differs) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            differs = middle
    return same


def _slice(keys: Any, values: Any, length: int) -> Any:
    layer = KVCache()
    layer.keys = keys[..., :length, :]
    layer.values = values[..., :length, :]
    layer.offset = length
    return layer
