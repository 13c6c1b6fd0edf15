"""Show: the prompt of a call, rebuilt from events, is what the engine was given."""

import pytest

from treering.events.catalogue import RunConfig
from treering.events.codec import decode
from treering.events.errors import UsageError
from treering.events.in_memory import InMemoryStore
from treering.replays.showing import prompt_of, state_at
from treering.runtime.runner import Runner, create_run
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


async def test_an_event_that_is_no_call_is_refused():
    """So is an event that is not there."""
    store = InMemoryStore()
    run = create_run(store, RunConfig("talker"))
    assert state_at(store, run).status == "empty"
    with pytest.raises(UsageError, match="ModelCalled"):
        prompt_of(store, run, 1)
    with pytest.raises(UsageError, match="found 9"):
        state_at(store, run, 9)
