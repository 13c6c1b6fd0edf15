"""What could not be replayed is refused, with a line that says what to use instead."""

import sys
from pathlib import Path

import anyio
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from laws import fresh, run_once

from treering.runtime.testing import ScriptedEngine


async def made_elsewhere(task, goal):
    async def other():
        await task.generate("from elsewhere", max_tokens=3)

    async with anyio.create_task_group() as group:
        group.start_soon(other)


async def awaited_elsewhere(task, goal):
    op = task.generate("from elsewhere", max_tokens=3)

    async def other():
        await op

    async with anyio.create_task_group() as group:
        group.start_soon(other)


async def under_a_deadline(task, goal):
    with anyio.fail_after(5):
        await task.generate("in time", max_tokens=3)


async def out_of_order(task, goal):
    first, second = task.now(), task.random()
    await second
    await first


async def awaited_twice(task, goal):
    op = task.now()
    await op
    await op


async def gathered_and_awaited(task, goal):
    op = task.now()
    await task.gather(op)
    await op


async def gathered_twice(task, goal):
    op = task.now()
    await task.gather(op, op)


async def never_awaited(task, goal):
    task.now()


async def never_awaited_gather(task, goal):
    task.gather(task.now())


MISUSES = [
    (made_elsewhere, "made by another coroutine than the agent's own; use spawn and gather"),
    (awaited_elsewhere, "awaited by another coroutine than the agent's own; use spawn and gather"),
    (under_a_deadline, "under a deadline of the agent's own; use task.timeout"),
    (out_of_order, "before an op made earlier; await in order or use gather"),
    (awaited_twice, "awaited twice"),
    (gathered_and_awaited, "awaited twice, or is part of a gather"),
    (gathered_twice, "each once"),
    (never_awaited, "a now was made and never awaited"),
    (never_awaited_gather, "a gather was made and never awaited"),
]


@pytest.mark.parametrize(("agent", "why"), MISUSES, ids=[agent.__name__ for agent, _ in MISUSES])
async def test_an_op_that_could_not_be_replayed_is_refused(agent, why):
    """The task fails with a line that names it, asks no model for it, and leaves no call open."""

    async def root(task, goal):
        results = await task.gather(task.spawn(agent, "misuse"), return_failures=True)
        return str(results[0])

    store, run = fresh("root")
    engine = ScriptedEngine()
    outcome = await run_once(store, run, {"root": root}, engine)
    assert outcome.status == "finished", outcome.error
    assert outcome.result.startswith("task 1.1 failed:")
    assert why in outcome.result
    assert not engine.requests
