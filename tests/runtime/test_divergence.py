"""The report of a divergence names the line of agent code, however the op is awaited."""

import inspect

import pytest

from treering.events.catalogue import RunConfig
from treering.events.errors import Divergence
from treering.events.in_memory import InMemoryStore
from treering.runtime.runner import Runner, create_run
from treering.runtime.testing import ScriptedEngine

CHANGED = False


async def alone(task, goal):
    await task.recall("new" if CHANGED else "old")
    await task.sleep(0)


async def gathers(task, goal):
    return await _gather_two(task)


async def _gather_two(task):
    await task.gather(
        task.now(),
        task.recall("new" if CHANGED else "old"),
    )


@pytest.mark.parametrize(("agent", "where"), [(alone, alone), (gathers, _gather_two)])
async def test_a_divergence_names_the_line_of_agent_code(agent, where, monkeypatch):
    """Also of an op in a gather, which runs in a coroutine of its own."""
    store = InMemoryStore()
    run = create_run(store, RunConfig("agent"))
    async with Runner(store, run, ScriptedEngine(), agents={"agent": agent}) as runner:
        await runner.ask("go")
    monkeypatch.setitem(globals(), "CHANGED", True)
    async with Runner(store, run, agents={"agent": agent}, replay=True) as runner:
        with pytest.raises(Divergence) as caught:
            await runner.replay()
    file, _, line = caught.value.line.rpartition(":")
    lines, first = inspect.getsourcelines(where)
    assert file == __file__
    assert first < int(line) < first + len(lines)
