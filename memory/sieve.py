"""SIEVE: a first-in first-out queue whose hand spares what was used since it last came by.

Owns that policy. Source: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU: an Efficient
Turn-Key Eviction Algorithm for Web Caches", NSDI 2024. Invariant: an access changes no order.
"""

import msgspec

from treering.memory.queues import MOST_PASSED, Line, Sized

__all__ = ["Sieve"]


class Sieve(Sized, tag="sieve"):
    """Evicts the first memory from the hand on that was not used since the hand last passed it.

    The hand is the border between two lines: `ahead` of it, oldest first, and `behind` it, what it spared in this
    round. The queue of the paper, from its tail to its head, is `behind` and then `ahead`; when nothing is ahead,
    the hand is at the head and goes back to the tail. `seen` holds the bit of each memory. The paper's hand may
    pass the whole queue at once; this one stops after MOST_PASSED.
    """

    ahead: Line = msgspec.field(default_factory=Line)
    behind: Line = msgspec.field(default_factory=Line)
    seen: dict[str, int] = msgspec.field(default_factory=dict)

    def access(self, id: str, clock: int) -> bool:
        """A memory was used; whether it is in this policy's hands."""
        if id in self.seen:
            self.seen[id] = 1
            return True
        return id in self.too_large.entries

    def evict(self, id: str) -> None:
        """The hand goes on to this memory and takes it out."""
        self._skip_newest()
        for _ in range(MOST_PASSED if id in self.seen else 0):
            front = self.ahead.first()
            if front is None or (front == id and not self.seen[id]):
                break
            self.seen[front] = 0
            self.behind.entries[front] = self.ahead.entries.pop(front)
            self._turn()
            self._skip_newest()
        self.remove(id)
        self._skip_newest()

    def _enter(self, id: str, tokens: int, clock: int) -> None:
        self.seen[id] = 0
        self.ahead.entries[id] = tokens

    def _leave(self, id: str) -> int:
        if self.seen.pop(id, None) is None:
            return 0
        tokens = self.ahead.entries.pop(id) if id in self.ahead.entries else self.behind.entries.pop(id)
        self._turn()
        return tokens

    def _turn(self) -> None:
        if not self.ahead.entries:
            self.ahead, self.behind = self.behind, self.ahead

    def _skip_newest(self) -> None:
        if self.ahead.first() == self.newest:  # the hand is at the head, but for what came last
            self.behind.entries[self.newest] = self.ahead.entries.pop(self.newest)
            self._turn()

    def _choose(self, clock: int) -> str | None:
        passed: list[str] = []
        for part in (self.ahead.entries, self.behind.entries):
            for id in part:
                if id != self.newest:
                    if len(passed) == MOST_PASSED or not self.seen[id]:
                        return id
                    passed.append(id)
        return passed[0]  # all were used: the hand has been round, and meets the first again
