"""Interrupting: what Ctrl-C does to a job.

Owns the signal handler while a job runs. The first Ctrl-C cancels the job, which then ends in order; a second one
ends the process at once. Both lose nothing that is on disk. The handler runs between any two steps of the
program, so that the second works also where the event loop hangs.
"""

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from treering.cli.printing import is_terminal, note
from treering.runtime.seams import loop_caller

__all__ = ["Job", "finish_job"]

T = TypeVar("T")


class Job:
    """A job in this process. `run` is the run that it writes to, once it is known."""

    def __init__(self) -> None:
        self.run = ""
        self._pressed = 0

    @property
    def advice(self) -> str:
        """How to go on after an interruption."""
        return f"treering resume {self.run}" if self.run else "nothing was begun"

    async def until_interrupted(self, work: Callable[["Job"], Awaitable[T]]) -> T | None:
        """Do `work`; None if Ctrl-C ended it."""
        call = loop_caller()
        scope = anyio.CancelScope()

        def pressed(*_: Any) -> None:
            self._pressed += 1
            if self._pressed > 1:
                cursor = "\x1b[?25h" if is_terminal() else ""  # a live picture hides it
                os.write(2, f"{cursor}\nended at once; {self.advice}\n".encode())
                os._exit(1)
            with contextlib.suppress(RuntimeError):  # it may come in the middle of another line
                note("ending in order; press Ctrl-C again to end at once")
            call(scope.cancel)

        before = signal.signal(signal.SIGINT, pressed)
        try:
            with scope:
                return await work(self)
        finally:
            signal.signal(signal.SIGINT, before)
        return None


def finish_job(work: Callable[[Job], Awaitable[int]]) -> int:
    """Do `work` to its end or to Ctrl-C; the exit code."""
    job = Job()
    code = anyio.run(job.until_interrupted, work)
    if code is None:
        note(f"interrupted; {job.advice}")
        return 1
    return code
