"""Which memories of the trunk stay hot: the retention policies.

Owns the protocol `Retention`, the simplest policies and the names of all. A policy's state is part of the folded
state: plain values, the same after the same calls. It never looks at a clock of its own (time is the token clock
that it is told) nor at chance (what is drawn comes from a seed in its state). Invariant: a constant number of
steps per access and per eviction.

Sizes are in tokens. What is pinned, or held by the live root's window, is not in a policy's hands and does not
count towards its size: pins may exceed it, and commands that show a run say so.
"""

from typing import Protocol

import msgspec

from treering.events.errors import UsageError
from treering.memory.activation import Activation
from treering.memory.queues import Line, Sized
from treering.memory.s3fifo import S3Fifo
from treering.memory.sieve import Sieve

__all__ = ["POLICIES", "KeepAll", "KeepWhileUsed", "LeastRecent", "Policy", "Retention", "parse_retention"]


class Retention(Protocol):
    """A rule that says which memory goes cold next. Only `victim` and `reason` leave it as it is."""

    def add(self, id: str, tokens: int, clock: int) -> None:
        """A memory becomes hot, or is free again after a window held it."""
        ...

    def access(self, id: str, clock: int) -> bool:
        """A memory was used; whether it is in this policy's hands."""
        ...

    def remove(self, id: str) -> None:
        """A memory is out of the policy's hands: pinned, or held by a window. One that never was is left alone."""
        ...

    def victim(self, clock: int) -> str | None:
        """The memory to evict now, or None."""
        ...

    def evict(self, id: str) -> None:
        """A memory goes cold: the one that `victim` named, unless the log was written under another rule."""
        ...

    def reason(self, id: str, age: int) -> str:
        """Why this memory goes, for people."""
        ...


class KeepAll(msgspec.Struct, tag="none"):
    """Nothing ever goes cold. It keeps no state, and holds nothing."""

    def add(self, id: str, tokens: int, clock: int) -> None:
        """No state."""

    def access(self, id: str, clock: int) -> bool:
        """Nothing is held."""
        return False

    def remove(self, id: str) -> None:
        """No state."""

    def victim(self, clock: int) -> str | None:
        """None."""
        return None

    def evict(self, id: str) -> None:
        """No state."""

    def reason(self, id: str, age: int) -> str:
        """Never asked."""
        return f"unused for {age} tokens"


class KeepWhileUsed(msgspec.Struct, tag="window"):
    """Use it or lose it: a memory goes cold once `size` ticks have passed since its last access.

    `accessed` holds the tick of each memory's last access, the longest ago first.
    """

    size: int
    accessed: Line = msgspec.field(default_factory=Line)

    def add(self, id: str, tokens: int, clock: int) -> None:
        """It is as if used now."""
        self.accessed.entries[id] = clock

    def access(self, id: str, clock: int) -> bool:
        """Its age begins again."""
        entries = self.accessed.entries
        try:
            entries.move_to_end(id)
        except KeyError:
            return False
        entries[id] = clock
        return True

    def remove(self, id: str) -> None:
        """Its age waits."""
        self.accessed.entries.pop(id, None)

    def victim(self, clock: int) -> str | None:
        """The one unused for longest, if that is too long."""
        oldest = self.accessed.first()
        return oldest if oldest is not None and clock - self.accessed.entries[oldest] > self.size else None

    def evict(self, id: str) -> None:
        """It leaves."""
        self.accessed.entries.pop(id, None)

    def reason(self, id: str, age: int) -> str:
        """Its age."""
        return f"unused for {age} tokens"


class LeastRecent(Sized, tag="lru"):
    """Evicts what was used longest ago, while more than `size` tokens are hot."""

    used: Line = msgspec.field(default_factory=Line)

    def access(self, id: str, clock: int) -> bool:
        """It is the most recent now."""
        try:
            self.used.entries.move_to_end(id)
        except KeyError:
            return id in self.too_large.entries
        return True

    def evict(self, id: str) -> None:
        """It leaves."""
        self.remove(id)

    def _enter(self, id: str, tokens: int, clock: int) -> None:
        self.used.entries[id] = tokens

    def _leave(self, id: str) -> int:
        return self.used.entries.pop(id, 0)

    def _choose(self, clock: int) -> str | None:
        return self.used.first()


Policy = KeepAll | KeepWhileUsed | LeastRecent | Sieve | S3Fifo | Activation
"""All there are: the codec finds the right one by its tag, which is its name."""

POLICIES: dict[str, type[KeepWhileUsed | LeastRecent | Sieve | S3Fifo | Activation]] = {
    "window": KeepWhileUsed,
    "lru": LeastRecent,
    "sieve": Sieve,
    "s3fifo": S3Fifo,
    "actr": Activation,
}
"""Those with a size, by name."""

_MOST_DIGITS = 15


def parse_retention(text: str, seed: int = 0) -> Policy:
    """The policy that `text` names, empty; `seed` is for those that draw. Raises UsageError."""
    if text == "none":
        return KeepAll()
    name, _, size = text.partition(":")
    made = POLICIES.get(name)
    if made is None or not (size.isascii() and size.isdecimal() and len(size) <= _MOST_DIGITS and int(size)):
        names = ", ".join(f"{each}:TOKENS" for each in POLICIES)
        raise UsageError(
            f"expected a retention policy, {names} (a whole number above 0) or none, found {text[:80]!r}; "
            "try window:10000"
        )
    return Activation(int(size), seed=seed) if made is Activation else made(int(size))
