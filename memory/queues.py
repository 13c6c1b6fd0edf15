"""Queues of memories whose steps are constant: what the retention policies are built from.

Owns `Line`, the ordered mapping, and `Sized`, the part that all policies with a size in tokens share. They are
saved and loaded with the state that they belong to, through `to_plain` and `from_plain`. Invariant: the first
entry of a line is found in one step, however many have left it.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec

__all__ = ["MOST_PASSED", "Line", "Sized", "from_plain", "to_plain"]

MOST_PASSED = 64
"""How many memories an eviction passes over at most, where the paper's rule would go on until it finds one that
was not used: so that the steps of one eviction are constant too, and not only those of all together."""


class Line:
    """Numbers by id, in an order of their own: that of arrival, until `move_to_end` changes it.

    A bare dict would not do: it finds its first entry by walking over the holes of all that left before it. Nor
    would a bare OrderedDict: the codec writes it in the order of arrival. So it is wrapped.
    """

    __slots__ = ("entries",)

    def __init__(self, entries: Iterable[tuple[str, int]] = ()) -> None:
        self.entries = OrderedDict(entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Line) and self.entries == other.entries

    __hash__ = None  # type: ignore[assignment]  # it changes

    def first(self) -> str | None:
        """The id that came first, or None."""
        return next(iter(self.entries), None)


def to_plain(value: Any) -> Any:
    """What the codec writes for a line: its entries in their order. Give it as `enc_hook`."""
    if isinstance(value, Line):
        return list(value.entries.items())
    raise NotImplementedError(f"expected a Line, found {type(value).__name__}")


def from_plain(wanted: type, plain: Any) -> Any:
    """The line that `to_plain` wrote. Give it as `dec_hook`."""
    if wanted is Line:
        return Line((str(id), int(number)) for id, number in plain)
    raise NotImplementedError(f"expected to make a Line, found {wanted.__name__}")


class Sized(msgspec.Struct):
    """What all policies with a size share. Sizes are in tokens; `tokens` is what the queues hold now.

    A memory larger than the whole size goes cold at once, and nothing else goes for its sake. The one that came last,
    `newest`, is not evicted: the papers make room before they let it in, and here it is in when room is made.
    """

    size: int
    tokens: int = 0
    newest: str = ""
    too_large: Line = msgspec.field(default_factory=Line)

    def add(self, id: str, tokens: int, clock: int) -> None:
        """A memory becomes hot, or is free again after a window held it."""
        if tokens > self.size:
            self.too_large.entries[id] = tokens
        else:
            self.newest = id
            self.tokens += tokens
            self._enter(id, tokens, clock)

    def remove(self, id: str) -> None:
        """A memory is out of the policy's hands: pinned, or held by a window."""
        self._take(id)

    def victim(self, clock: int) -> str | None:
        """The memory to evict now, or None. Changes nothing."""
        if self.too_large.entries:
            return self.too_large.first()
        return self._choose(clock) if self.tokens > self.size else None

    def reason(self, id: str, age: int) -> str:
        """Why this memory goes, for people."""
        if id in self.too_large.entries:
            return f"larger than the {self.size} tokens of memory"
        return f"over {self.size} tokens of memory, unused for {age} tokens"

    def _take(self, id: str) -> int:
        """Take a memory out; the tokens that it leaves in the queues, 0 if it was in none."""
        if self.too_large.entries.pop(id, None) is not None:
            return 0
        tokens = self._leave(id)
        self.tokens -= tokens
        return tokens

    def _enter(self, id: str, tokens: int, clock: int) -> None:
        raise NotImplementedError

    def _leave(self, id: str) -> int:
        raise NotImplementedError

    def _choose(self, clock: int) -> str | None:
        raise NotImplementedError
