"""Model slots: how many calls may be in flight, and whose turn it is.

Owns a semaphore that serves the deepest waiting task first, so that live contexts stay few. A task that waits
for its children holds no slot, so that a tree of any depth cannot deadlock.
"""

import contextlib
import heapq
from collections.abc import AsyncIterator

import anyio

__all__ = ["Slots"]


class Slots:
    """At most `limit` holders at a time."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: list[tuple[int, int, anyio.Event]] = []
        self._count = 0

    @contextlib.asynccontextmanager
    async def hold(self, depth: int) -> AsyncIterator[None]:
        """Wait for a slot and hold it. Deeper tasks go first, then those that asked first."""
        if self._free:
            self._free -= 1
        else:
            self._count += 1
            turn = anyio.Event()
            item = (-depth, self._count, turn)
            heapq.heappush(self._waiting, item)
            try:
                await turn.wait()
            except BaseException:
                if turn.is_set():
                    self._release()
                else:
                    self._waiting.remove(item)
                    heapq.heapify(self._waiting)
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._free += 1
