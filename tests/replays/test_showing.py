"""Show: the prompt of a call, rebuilt from events, is what the engine was given."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from invariants import check_log

from treering.events.catalogue import RunConfig
from treering.events.codec import decode
from treering.events.errors import UsageError
from treering.events.in_memory import InMemoryStore
from treering.events.sqlite import SQLiteStore
from treering.replays.showing import prompt_of, state_at
from treering.runtime.runner import Runner, create_run, fork_run
from treering.runtime.task import Task
from treering.runtime.testing import ScriptedEngine


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def talker(task: Task, goal: str) -> str:
    """A conversation long enough to be compacted."""
    for number in range(8):
        await task.generate(f"{goal} {number} Anna met {number} sailors " + "word " * 8, max_tokens=8)
    return "done"


async def test_every_prompt_is_rebuilt_as_it_was_sent():
    """Message by message, over compactions, for each call in the log."""
    store, engine = InMemoryStore(), ScriptedEngine()
    config = RunConfig("talker", window_tokens=120, weights="scripted", template="words", overhead_tokens=2)
    run = create_run(store, config)
    async with Runner(store, run, engine, agents={"talker": talker}) as runner:
        assert (await runner.ask("Say")).status == "finished"
    kinds = [decode(record).header.kind for record in store.read(run)]
    assert "Compacted" in kinds
    calls = [seq for seq, kind in enumerate(kinds, start=1) if kind == "ModelCalled"]
    assert len(calls) == len(engine.requests)
    for seq, request in zip(calls, engine.requests, strict=True):
        shown = prompt_of(store, run, seq)
        assert shown.messages == request.messages
        assert prompt_of(store, run, shown.reply_seq) == shown


async def races(task: Task, goal: str) -> str:
    """Two calls that answer at once: both answers are on disk when one is chosen."""
    await task.generate("before", max_tokens=4)
    await task.first(task.generate("alpha", max_tokens=8), task.generate("beta", max_tokens=8))
    return (await task.generate("after", max_tokens=8)).text


async def gathers(task: Task, goal: str) -> str:
    """Calls side by side, of which the first answers before the second is sent, and the second must make room."""
    for number in range(3):
        await task.generate(f"{number} " + "word " * 20, max_tokens=8)
    await task.gather(
        *(task.generate(f"{name} " + "word " * size, max_tokens=8) for name, size in [("a", 2), ("b", 40)])
    )
    return (await task.generate("after", max_tokens=8)).text


async def deadlines(task: Task, goal: str) -> str:
    """A call in a race in a gather."""
    race = task.first(task.generate("one", max_tokens=8), task.generate("two", max_tokens=8))
    await task.gather(
        task.generate("beside", max_tokens=8), race, task.timeout(9.0, task.generate("x", max_tokens=8))
    )
    return (await task.generate("after", max_tokens=8)).text


@pytest.mark.parametrize("agent", [races, gathers, deadlines])
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_calls_side_by_side_are_rebuilt_too(agent, concurrency, tmp_path):
    """Whatever else is on disk by then, a call shows what it saw; what lost a race shows as what it is: said."""
    store, engine = SQLiteStore(str(tmp_path / "runs.db")), ScriptedEngine(delay_s=0.02)
    config = RunConfig(
        "agent", window_tokens=120, weights="scripted", template="words", overhead_tokens=2, concurrency=concurrency
    )
    run = create_run(store, config)
    async with Runner(store, run, engine, agents={"agent": agent}) as runner:
        outcome = await runner.ask("Say")
    check_log(store.read(run))
    asked = {request.messages for request in engine.requests}
    calls = [stored.seq for stored in map(decode, store.read(run, kinds=["ModelCalled"])) if stored.header.attempt]
    shown = [prompt_of(store, run, seq).messages for seq in calls]
    assert asked <= set(shown)
    assert shown[-1] == engine.requests[-1].messages
    for again in (True, False):  # from the log alone, and from the log before its end
        fork = run if again else fork_run(store, run, store.head(run)[0] - 3)
        async with Runner(store, fork, None if again else engine, agents={"agent": agent}, replay=again) as runner:
            found = (await runner.replay())[0] if again else await runner.resume()
        assert found.result == outcome.result


async def test_an_event_that_is_no_call_is_refused():
    """So is an event that is not there."""
    store = InMemoryStore()
    run = create_run(store, RunConfig("talker"))
    assert state_at(store, run).status == "empty"
    with pytest.raises(UsageError, match="ModelCalled"):
        prompt_of(store, run, 1)
    with pytest.raises(UsageError, match="found 9"):
        state_at(store, run, 9)
