"""Ops: the numbered effects of a task, as awaitables.

Owns the order in which agent code may await them, and how several run beside each other. Invariant: at any
time the open ops of a task are those of one `await`, so that what a task has seen never depends on timing.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from treering.runtime.errors import OpMisused

if TYPE_CHECKING:
    from treering.runtime.task import Task

__all__ = ["Op", "run_together"]

T = TypeVar("T")


class Op(Generic[T]):
    """One effect, numbered when it was made and performed when it is awaited. It can be awaited once.

    `prepare` runs before any op of the same await is performed, in the order of numbers; `abandon` records
    that the op was given up. Raises OpMisused for an await that could not be replayed.
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


async def run_together(ops: Sequence[Op[Any]]) -> list[Any]:
    """Perform all, wait for all; their results or the exceptions that they raised, by position."""
    for op in ops:
        if op.prepare is not None:
            await op.prepare()
    results: list[Any] = [None] * len(ops)

    async def one(position: int, op: Op[Any]) -> None:
        try:
            results[position] = await op.perform()
        except Exception as error:
            results[position] = error

    if all(op.what == "join" for op in ops):
        # Joins only wait: doing so in turn gives the same order at a fraction of the cost.
        for position, op in enumerate(ops):
            await one(position, op)
        return results
    async with anyio.create_task_group() as group:
        for position, op in enumerate(ops):
            group.start_soon(one, position, op)
    return results


def check_same_task(made_by: object, runs_in: object, path: str) -> None:
    """Raises OpMisused unless both are the same task of the event loop."""
    if made_by is not runs_in:
        raise OpMisused(
            f"task {path}: expected its ops to be made by its own coroutine, found another one; "
            "use task.spawn for work of its own and task.gather for ops side by side"
        )
