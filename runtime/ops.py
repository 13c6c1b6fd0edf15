"""Ops: the numbered effects of a task, as awaitables.

Owns the order in which agent code may await them, and how several run beside each other. Invariant: at any
time the open ops of a task are those of one `await`, so that what a task has seen never depends on timing.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

if TYPE_CHECKING:
    from treering.runtime.task import Task

__all__ = ["Op", "abandon_all", "prepare_all", "run_together", "run_until_first", "settled"]

T = TypeVar("T")


class Op(Generic[T]):
    """One effect, numbered when it was made and performed when it is awaited. It can be awaited once.

    `prepare` runs before any op of the same await is performed, in the order of numbers, whether its outcome is
    recorded or not; an op of ops prepares them all, and has the lowest of their numbers. `abandon` records that the op was given up. Raises OpMisused for an await that could not be replayed.
    """

    __slots__ = ("abandon", "number", "perform", "prepare", "task", "what")

    def __init__(
        self,
        task: "Task",
        number: int,
        what: str,
        perform: Callable[[], Awaitable[T]],
        prepare: Callable[[], Awaitable[None]] | None = None,
        abandon: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.task = task
        self.number = number
        self.what = what
        self.perform = perform
        self.prepare = prepare
        self.abandon = abandon
        task.add_open(self)

    def __await__(self) -> Generator[Any, None, T]:
        return self._alone().__await__()

    async def _alone(self) -> T:
        self.task.begin(self)
        try:
            if self.prepare is not None:
                await self.prepare()
            return await self.perform()
        finally:
            self.task.settle()


async def prepare_all(ops: Sequence[Op[Any]]) -> None:
    """Prepare each op, in the order of numbers: what an op of ops does to be ready itself."""
    for op in ops:
        if op.prepare is not None:
            await op.prepare()


async def settled(op: Op[Any]) -> Any:
    """Perform an op; its result, or the exception that it raised."""
    try:
        return await op.perform()
    except Exception as error:
        return error


async def run_together(ops: Sequence[Op[Any]]) -> list[Any]:
    """Perform all, wait for all; what each settled to, by position."""
    if all(op.what == "join" for op in ops):
        # Joins only wait: doing so in turn gives the same order at a fraction of the cost.
        return [await settled(op) for op in ops]
    results: list[Any] = [None] * len(ops)

    async def one(position: int) -> None:
        await checkpoint_if_cancelled()  # its task may have ended before this began: nothing may act after that
        results[position] = await settled(ops[position])

    async with anyio.create_task_group() as group:
        for position in range(len(ops)):
            group.start_soon(one, position)
    return results


async def run_until_first(ops: Sequence[Op[Any]]) -> tuple[int, Any]:
    """Perform all and stop when one has settled; its position and what it settled to."""
    done: list[tuple[int, Any]] = []

    async def one(position: int) -> None:
        await checkpoint_if_cancelled()  # as above, and what has lost before it began need not begin
        done.append((position, await settled(ops[position])))
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for position in range(len(ops)):
            group.start_soon(one, position)
    return done[0]


async def abandon_all(ops: Sequence[Op[Any]], reason: str) -> None:
    """Record of each op that it was given up, unless the log holds its outcome."""
    for op in ops:
        if op.abandon is not None:
            await op.abandon(reason)
