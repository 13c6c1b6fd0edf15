"""The way back from a thread to a task that awaits: asyncio and trio alike.

Owns one caller's end. Never blocks the thread that posts, and never touches the loop from it except by the
loop's own thread-safe door. The invariant: items arrive in the order in which they were put.
"""

from collections import deque
from typing import Generic, TypeVar

import anyio

from treering.runtime.seams import loop_caller

__all__ = ["Mailbox"]

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Made by a task on its event loop; `put` from any thread, `get` from that task only."""

    def __init__(self) -> None:
        self._post = loop_caller()
        self._items: deque[T] = deque()
        self._arrived = anyio.Event()

    def put(self, item: T) -> None:
        """Hand over `item`. If the loop has ended nobody waits for it, and it is dropped."""
        try:
            self._post(self._receive, item)
        except RuntimeError:
            return

    async def get(self) -> T:
        """The next item, in order."""
        while not self._items:
            await self._arrived.wait()
            self._arrived = anyio.Event()
        return self._items.popleft()

    def _receive(self, item: T) -> None:
        self._items.append(item)
        self._arrived.set()
