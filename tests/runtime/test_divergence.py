"""A divergence: its report, the fork that it advises, and what is none because it was in flight."""

import inspect
import re
import sys
from pathlib import Path

import anyio
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import anyio.lowlevel
from invariants import check_log
from laws import CrashingWriter

from treering.events.catalogue import RunConfig
from treering.events.codec import decode
from treering.events.errors import Divergence, StoreError, UsageError
from treering.events.in_memory import InMemoryStore
from treering.runtime.errors import OutcomeUnknown
from treering.runtime.runner import Runner, create_run, fork_run
from treering.runtime.task import current_call_key
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


class Words:
    """What the agents below say next; a test changes it, as a person changes code."""

    def __init__(self, **said):
        self.__dict__.update(said)


async def run_until(store, run, agents, last=None, live_tools=False, replay=False):
    """Go on with a run, until the log holds `last` events."""
    writer = None if last is None else lambda s, r, e: CrashingWriter(s, r, e, last)
    engine = ScriptedEngine()
    async with Runner(
        store, run, None if replay else engine, agents=agents, writer=writer, live_tools=live_tools, replay=replay
    ) as runner:
        if replay:
            return (await runner.replay())[-1]
        return await (runner.resume() if runner.state.roots else runner.ask("go"))


async def follow(store, agents, error, live_tools=False):
    """Do what an error says: `treering fork RUN --at SEQ --start [--live-tools]`; how the fork ends.

    Tools act with `live_tools` too: that a fork leaves the world alone is told by another error.
    """
    found = re.search(r"treering fork (\w+) --at (\d+) --start( --live-tools)?", str(error))
    assert found is not None, str(error)
    fork = fork_run(store, found[1], int(found[2]))
    return await run_until(store, fork, agents, live_tools=live_tools or found[3] is not None)


def ops_of(words):
    """Agents whose last op says another word once it is changed: one for each kind of op that is asked of the log."""

    async def tool(word):
        return word

    async def child(task, goal):
        return goal

    async def sleeper(task, goal):
        await task.sleep(1000.0)

    async def generates(task, goal):
        return (await task.generate(words.said, max_tokens=5)).text

    async def calls(task, goal):
        return await task.call(tool, idempotent=True, word=words.said)

    async def spawns(task, goal):
        return await task.spawn(child, words.said)

    async def recalls(task, goal):
        return await task.recall(words.said)

    async def cancels(task, goal):
        first, second = task.spawn(sleeper, "one"), task.spawn(sleeper, "two")
        await task.sleep(0)
        for child in (first, second) if words.said == "old" else (second, first):
            await child.cancel()
        return "cancelled"

    async def ends(task, goal):
        await task.generate("the same", max_tokens=5)
        return words.said

    agents = (generates, calls, spawns, recalls, cancels, ends)
    return {agent.__name__: agent for agent in agents}


@pytest.mark.parametrize("name", sorted(ops_of(Words())))
@pytest.mark.parametrize("replay", [False, True])
async def test_the_advised_fork_goes_on_to_the_end(name, replay):
    """Whatever op it is that differs: the command in the error is enough, and the new code is what runs."""
    words = Words(said="old")
    agents = {"agent": ops_of(words)[name]}
    store = InMemoryStore()
    run = create_run(store, RunConfig("agent"))
    whole = await run_until(store, run, agents)
    if not replay:  # a resume meets what is recorded only where the root did not end
        run = fork_run(store, run, store.head(run)[0] - 1)
        if name == "ends":
            return  # its end is all that differs
    words.said = "new"
    with pytest.raises(Divergence) as caught:
        await run_until(store, run, agents, replay=replay)
    outcome = await follow(store, agents, caught.value, live_tools=name == "calls")
    assert outcome.status == "finished", outcome.error
    assert outcome.result != whole.result or name in ("recalls", "cancels")


@pytest.mark.parametrize("name", ["generates", "calls"])
async def test_what_was_in_flight_is_issued_again_as_the_code_has_it_now(name):
    """A call without an outcome is no record of one: a resume asks anew, as the next attempt, and diverges nowhere."""
    words = Words(said="old")
    agents = {"agent": ops_of(words)[name]}
    store = InMemoryStore()
    run = create_run(store, RunConfig("agent"))
    with pytest.raises(StoreError):
        await run_until(store, run, agents, last=3)
    words.said = "new"
    outcome = await run_until(store, run, agents)
    assert outcome.status == "finished"
    assert "new" in outcome.result
    calls = [decode(record) for record in store.read(run, kinds=["ModelCalled", "ToolCalled"])]
    assert [call.header.attempt for call in calls] == [1, 2]
    if name == "calls":  # another effect: whoever knows the first key must not take it for the first
        assert calls[0].event.key != calls[1].event.key
    check_log(store.read(run))
    assert (await run_until(store, run, agents, replay=True)).result == outcome.result


async def test_a_tool_that_may_have_acted_is_not_forgotten_by_new_code():
    """Whatever the op is now: the run stops for a person, and the advised fork goes on."""

    async def pay(name):
        return name

    words = Words(said="pay")

    async def agent(task, goal):
        if words.said == "pay":
            return await task.call(pay, name="one")
        if words.said == "pay other":
            return await task.call(pay, name="other")
        if words.said == "say":
            return (await task.generate("something", max_tokens=5)).text
        return await task.random() < 2

    store = InMemoryStore()
    run = create_run(store, RunConfig("agent"))
    agents = {"agent": agent}
    with pytest.raises(StoreError):
        await run_until(store, run, agents, last=3)
    for said in ("pay", "pay other", "say", "draw"):
        words.said = said
        with pytest.raises(OutcomeUnknown, match="may have acted") as caught:
            await run_until(store, run, agents)
        assert (await follow(store, agents, caught.value)).status == "finished"


async def test_a_tool_is_given_its_key_the_same_one_each_time():
    """Also after a crash, and in a fork that goes on with what was in flight; two calls have two."""
    keys = []

    async def tool(n):
        await anyio.lowlevel.checkpoint()
        keys.append((n, current_call_key()))

    async def agent(task, goal):
        await task.gather(*[task.call(tool, idempotent=True, n=n) for n in range(2)])

    store = InMemoryStore()
    run = create_run(store, RunConfig("agent"))
    with pytest.raises(StoreError):
        await run_until(store, run, {"agent": agent}, last=4)
    fork = fork_run(store, run, 4)
    keys.clear()
    await run_until(store, fork, {"agent": agent}, live_tools=True)  # before the run itself knows an outcome
    await run_until(store, run, {"agent": agent})
    assert sorted(keys) == sorted([(n, f"{run}/1/{n + 1}") for n in range(2)] * 2)
    with pytest.raises(UsageError, match=r"task\.call"):
        current_call_key()
