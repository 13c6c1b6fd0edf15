"""Where the world comes in: the clock, randomness, the writer thread and the event loop.

Owns the seams that everything else is given, so that a test gives others and patches nothing. The only module
of the runtime, beside the engines, that may look at a clock, a source of randomness or a thread.
"""

import asyncio
import os
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import anyio.lowlevel

from treering.events.codec import Record
from treering.events.log import Blob, LogStore

__all__ = [
    "Bell",
    "Commit",
    "InlineWriter",
    "Seams",
    "ThreadWriter",
    "World",
    "Writer",
    "coroutine_of",
    "current_task",
    "loop_caller",
    "new_bell",
    "new_run_id",
]

_DRAW_BYTES = 4096
Commit = tuple[Sequence[Record], Sequence[Blob]]
Done = Callable[[BaseException | None], None]


class Seams(Protocol):
    """Time and chance."""

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow."""
        ...

    def entropy(self, size: int) -> bytes:
        """Unguessable bytes."""
        ...


class World:
    """The real ones. For one event loop: not for several threads at once."""

    def __init__(self) -> None:
        self._drawn, self._used = b"", 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def entropy(self, size: int) -> bytes:
        # Drawn in blocks: a call of the system for each salt is a sixth of an append.
        if len(self._drawn) - self._used < size:
            self._drawn, self._used = os.urandom(max(size, _DRAW_BYTES)), 0
        self._used += size
        return self._drawn[self._used - size : self._used]


class Writer(Protocol):
    """Commits batches one at a time, in the order in which they are submitted."""

    def soon(self, fly: Callable[[], None]) -> None:
        """Call `fly`, which submits a batch: at once, or, where a batch costs, when others had their turn to add to it."""
        ...

    def submit(self, commit: Commit, done: Done) -> None:
        """Commit, then call `done` on the event loop with the error, if there was one."""
        ...

    def close(self) -> None:
        """No more batches will come; those submitted are finished."""
        ...


class InlineWriter:
    """Commits at once, on the event loop: for a store that does not wait for a disk."""

    def __init__(self, store: LogStore, run: str, epoch: int) -> None:
        self._store, self._run, self._epoch = store, run, epoch

    def soon(self, fly: Callable[[], None]) -> None:
        fly()

    def submit(self, commit: Commit, done: Done) -> None:
        try:
            self._store.append(self._run, self._epoch, *commit)
        except Exception as error:
            done(error)
        else:
            done(None)

    def close(self) -> None:
        """Nothing runs."""


class ThreadWriter:
    """Commits on one thread of its own, so that the event loop never waits for the disk."""

    def __init__(self, store: LogStore, run: str, epoch: int) -> None:
        self._store, self._run, self._epoch = store, run, epoch
        self._queue: queue.SimpleQueue[tuple[Commit, Done] | None] = queue.SimpleQueue()
        self._call = loop_caller()
        self._soon = _loop_soon()
        self._fly: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._work, name=f"treering-log-{run}", daemon=True)
        self._thread.start()

    def soon(self, fly: Callable[[], None]) -> None:
        # After this turn of the loop: whoever else woke up now has appended by then.
        self._fly = fly
        self._soon(self._fly_now)

    def _fly_now(self) -> None:
        fly, self._fly = self._fly, None
        if fly is not None:
            fly()

    def submit(self, commit: Commit, done: Done) -> None:
        self._queue.put((commit, done))

    def close(self) -> None:
        self._fly_now()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            commit, done = item
            failed: BaseException | None = None
            try:
                self._store.append(self._run, self._epoch, *commit)
            except BaseException as error:  # it is handed on, and ends the run
                failed = error
            try:
                self._call(done, failed)
            except RuntimeError:
                return  # the loop is gone, and with it whoever waited


def loop_caller() -> Callable[..., object]:
    """A function that runs another on the event loop of the caller, from any thread.

    It raises RuntimeError once the loop has ended (asyncio's is closed; trio's RunFinishedError is one too).
    """
    native: Any = anyio.lowlevel.current_token().native_token
    # asyncio's and trio's doors have the same shape: a function and its arguments, run soon, not awaited.
    return getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon  # type: ignore[no-any-return]


class Bell(Protocol):
    """Wakes all who wait for it, once."""

    def wait(self) -> Awaitable[Any]:
        """Until it is set."""
        ...

    def set(self) -> None:
        """Wake them."""
        ...


class _LoopBell:
    """asyncio's: a bare future for each who waits, at half the cost of an event with its coroutine."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[asyncio.Future[None]] = []

    def wait(self) -> Awaitable[Any]:
        turn = self._loop.create_future()
        self._waiting.append(turn)
        return turn

    def set(self) -> None:
        for turn in self._waiting:
            if not turn.done():  # whoever was cancelled waits no more
                turn.set_result(None)


def new_bell() -> Bell:
    """A bell for the running event loop. Nobody may wait for it after it was set."""
    try:
        return _LoopBell(asyncio.get_running_loop())
    except RuntimeError:  # no loop of asyncio's runs here
        return anyio.Event()


def _loop_soon() -> Callable[..., object]:
    """A function that runs another in the next turn of the event loop; only for the loop's own thread."""
    native: Any = anyio.lowlevel.current_token().native_token
    return getattr(native, "call_soon", None) or native.run_sync_soon  # type: ignore[no-any-return]


def current_task() -> Any:
    """The identity of the running task of the event loop; cheaper than anyio's description of it."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop of asyncio's runs here
        import trio

        return trio.lowlevel.current_task()


def coroutine_of(task: Any) -> Any:
    """The coroutine that a task of the event loop runs."""
    return task.get_coro() if isinstance(task, asyncio.Task) else task.coro


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letters that look like digits


def new_run_id(seams: Seams) -> str:
    """A run's name: 10 characters, 50 random bits."""
    return "".join(_ALPHABET[byte % 32] for byte in seams.entropy(10))
