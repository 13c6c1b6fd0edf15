"""S3-FIFO: a small queue that filters what is used only once, a main one, and a ghost of what was filtered out.

Owns that policy. Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction",
SOSP 2023. Invariant: an access changes no order.
"""

import msgspec

from treering.memory.queues import MOST_PASSED, Line, Sized

__all__ = ["S3Fifo"]

_SHARE = 10
"""The small queue's share of the size is one part in this many."""

_MOST_USES = 3
_MOST_FORGOTTEN = 2
"""How many ghosts one new ghost may push out, so that its steps are constant whatever their sizes."""


class S3Fifo(Sized, tag="s3fifo"):
    """Evicts from the small queue while that is over its share, else from the main one.

    `small` and `main` are first in, first out; `uses` counts up to three uses of each since it came or was last
    spared. The oldest of small moves to main if it was used more than once, else it goes and leaves its id in
    `ghost`. The oldest of main goes round again with one use fewer if it was used, else it goes. What comes back
    while its ghost is there enters main. A memory that a window held comes back to main as well. An eviction
    passes at most MOST_PASSED.
    """

    small: Line = msgspec.field(default_factory=Line)
    main: Line = msgspec.field(default_factory=Line)
    ghost: Line = msgspec.field(default_factory=Line)
    uses: dict[str, int] = msgspec.field(default_factory=dict)
    small_tokens: int = 0
    ghost_tokens: int = 0

    @property
    def share(self) -> int:
        """The tokens that the small queue may hold when memory is full."""
        return max(1, self.size // _SHARE)

    def access(self, id: str, clock: int) -> bool:
        """A memory was used; whether it is in this policy's hands."""
        uses = self.uses.get(id)
        if uses is None:
            return id in self.too_large.entries
        if uses < _MOST_USES:
            self.uses[id] = uses + 1
        return True

    def remove(self, id: str) -> None:
        """A memory is out of the policy's hands, and its ghost stays."""
        if tokens := self._take(id):
            self.ghost.entries[id] = tokens
            self.ghost_tokens += tokens
            for _ in range(_MOST_FORGOTTEN):
                if self.ghost_tokens > self.size - self.share:
                    self.ghost_tokens -= self.ghost.entries.popitem(last=False)[1]

    def evict(self, id: str) -> None:
        """What the eviction passes over moves on, and this memory goes."""
        if id in self.uses and self.tokens > self.size:
            passed, victim = self._plan()
            if victim == id:
                for other in passed:
                    self._pass(other)
        if id in self.main.entries:
            self._take(id)
        else:
            self.remove(id)

    def _enter(self, id: str, tokens: int, clock: int) -> None:
        self.uses[id] = 0
        if self._forget(id):
            self.main.entries[id] = tokens
        else:
            self.small.entries[id] = tokens
            self.small_tokens += tokens

    def _leave(self, id: str) -> int:
        if self.uses.pop(id, None) is None:
            return 0
        if id in self.small.entries:
            tokens = self.small.entries.pop(id)
            self.small_tokens -= tokens
            return tokens
        return self.main.entries.pop(id)

    def _forget(self, id: str) -> bool:
        """Drop a ghost; whether it was there."""
        tokens = self.ghost.entries.pop(id, None)
        self.ghost_tokens -= tokens or 0
        return tokens is not None

    def _choose(self, clock: int) -> str | None:
        return self._plan()[1]

    def _plan(self) -> tuple[list[str], str]:
        """What the next eviction passes over, in order, and what it takes. Memory must be over its size."""
        front = self.small.first()
        if front is not None and front != self.newest and self.small_tokens > self.share and self.uses[front] <= 1:
            return [], front  # nearly always: what follows finds the same, in more steps
        small = (id for id in self.small.entries if id != self.newest)
        main = (id for id in self.main.entries if id != self.newest)
        few, many = (len(part.entries) - (self.newest in part.entries) for part in (self.small, self.main))
        in_small = self.small_tokens
        passed: list[str] = []
        again: list[tuple[str, int]] = []
        met = 0
        while True:
            from_small = few > 0 and (in_small > self.share or not many)
            if from_small:
                id = next(small)
                uses = self.uses[id]
            elif (found := next(main, None)) is not None:
                id, uses = found, self.uses[found]
            else:
                id, uses = again[met]
                met += 1
            if uses <= (1 if from_small else 0) or len(passed) == MOST_PASSED:
                return passed, id
            passed.append(id)
            again.append((id, 0 if from_small else uses - 1))
            if from_small:
                few, many = few - 1, many + 1
                in_small -= self.small.entries[id]

    def _pass(self, id: str) -> None:
        if id in self.small.entries:
            tokens = self.main.entries[id] = self.small.entries.pop(id)
            self.small_tokens -= tokens
            self.uses[id] = 0
        else:
            self.main.entries.move_to_end(id)
            self.uses[id] -= 1
