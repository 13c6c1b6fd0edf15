"""Which memories of the trunk stay hot: the retention policies.

Owns the protocol `Retention` and its implementations. A policy never looks at a clock of its own: time is the
token clock that it is told. Invariant: a constant number of steps per access and per eviction, and the same
evictions for the same calls.
"""

from typing import Protocol

import msgspec

from treering.events.errors import UsageError

__all__ = ["KeepAll", "KeepWhileUsed", "Queue", "Retention", "parse_retention"]

Queue = dict[str, int]
"""Id -> last access on the token clock, least recently accessed first. Part of the folded state."""


class Retention(Protocol):
    """A rule that says which memory goes cold next."""

    def victim(self, queue: Queue, clock: int) -> str | None:
        """The id of one memory to evict now, or None."""
        ...


class KeepWhileUsed(msgspec.Struct, frozen=True):
    """Use it or lose it: a memory goes cold once `tokens` ticks have passed since its last access."""

    tokens: int

    def victim(self, queue: Queue, clock: int) -> str | None:
        for oldest, accessed in queue.items():  # the first only: the queue is in the order of access
            return oldest if clock - accessed > self.tokens else None
        return None


class KeepAll(msgspec.Struct, frozen=True):
    """Nothing ever goes cold."""

    def victim(self, queue: Queue, clock: int) -> str | None:
        return None


def parse_retention(text: str) -> Retention:
    """The policy that `text` names: `window:TOKENS` or `none`. Raises UsageError."""
    name, _, size = text.partition(":")
    if name == "none" and not size:
        return KeepAll()
    if name == "window":
        if size.isdecimal() and int(size) > 0:
            return KeepWhileUsed(int(size))
        raise UsageError(f"expected window:TOKENS with a whole number above 0, found {text!r}; try window:10000")
    raise UsageError(f"expected a retention policy, window:TOKENS or none, found {text!r}")
