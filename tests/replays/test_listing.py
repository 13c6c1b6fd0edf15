"""A run at a glance says what the fold of its whole log says."""

import pytest

from treering.events.catalogue import RunConfig
from treering.events.in_memory import InMemoryStore
from treering.replays.listing import summarise
from treering.replays.showing import state_at
from treering.runtime.errors import ChildFailed
from treering.runtime.forking import fork_run
from treering.runtime.runner import Runner, create_run
from treering.runtime.testing import ScriptedEngine


async def parent(task, goal):
    try:
        await task.spawn(child, "below")
    except ChildFailed:
        if goal == "fail":
            raise
    return goal


async def child(task, goal):
    raise ValueError("it always fails")


@pytest.mark.parametrize("goals", [[], ["go"], ["go", "fail"], ["fail", "go"]])
async def test_a_summary_equals_the_fold(goals):
    """At every cut of a log, whatever its tasks were doing."""
    store = InMemoryStore()
    run = create_run(store, RunConfig("parent"))
    async with Runner(store, run, ScriptedEngine(), agents={"parent": parent, "child": child}) as runner:
        for goal in goals:
            await runner.ask(goal)
    seen = set()
    for cut in range(1, store.head(run)[0] + 1):
        fork = fork_run(store, run, cut)
        assert summarise(store, store.row(fork)).status != "running"  # nobody goes on with it
        lease = store.acquire(fork)
        found, state = summarise(store, store.row(fork)), state_at(store, fork)
        lease.release()
        goal = state.tasks[state.roots[-1]].goal if state.roots else ""
        assert (found.status, found.goal, found.events) == (state.status, goal, state.seq)
        seen.add(found.status)
    assert seen >= ({"empty"} if not goals else {"empty", "running"})
