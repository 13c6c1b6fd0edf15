"""The way back from a thread to a task that awaits: asyncio and trio alike.

Owns one caller's end. Never blocks the thread that posts, and never touches the loop from it except by the
loop's own thread-safe door. The invariant: items arrive in the order in which they were put.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import anyio
import anyio.lowlevel

__all__ = ["Mailbox"]

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Made by a task on its event loop; `put` from any thread, `get` from that task only."""

    def __init__(self) -> None:
        native: Any = anyio.lowlevel.current_token().native_token
        # asyncio's and trio's doors have the same shape: a function and its arguments, run soon, not awaited.
        door = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
        self._post: Callable[..., object] = door
        self._items: deque[T] = deque()
        self._arrived = anyio.Event()

    def put(self, item: T) -> None:
        """Hand over `item`. If the loop has ended nobody waits for it, and it is dropped."""
        try:
            self._post(self._receive, item)
        except RuntimeError:
            # asyncio: "Event loop is closed"; trio: RunFinishedError, a RuntimeError.
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
