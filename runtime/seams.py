"""Where the world comes in: the clock, randomness, the writer thread and the event loop.

Owns the seams that everything else is given, so that a test gives others and patches nothing. The only module
of the runtime, beside the engines, that may look at a clock, a source of randomness or a thread.
"""

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import anyio.lowlevel

from treering.events.codec import Record
from treering.events.log import Blob, LogStore

__all__ = [
    "Commit",
    "InlineWriter",
    "Seams",
    "ThreadWriter",
    "World",
    "Writer",
    "coroutine_of",
    "current_task",
    "loop_caller",
    "new_run_id",
]

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
    """The real ones."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def entropy(self, size: int) -> bytes:
        return os.urandom(size)


class Writer(Protocol):
    """Commits batches one at a time, in the order in which they are submitted."""

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
        self._thread = threading.Thread(target=self._work, name=f"treering-log-{run}", daemon=True)
        self._thread.start()

    def submit(self, commit: Commit, done: Done) -> None:
        self._queue.put((commit, done))

    def close(self) -> None:
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
