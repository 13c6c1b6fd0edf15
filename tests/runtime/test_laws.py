"""The laws of a run, over the corpus of small workflows, on asyncio and trio."""

import contextlib
import sys
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from corpus import CORPUS, EFFECTS
from laws import equal_view, fresh, run_once, script

from treering.events.codec import decode, verify_chain
from treering.events.errors import TreeringError
from treering.runtime.runner import Runner, fork_run, open_log
from treering.runtime.state import RunState, evolve, new_state
from treering.runtime.testing import ScriptedEngine


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    if request.param == "trio":
        from trio.testing import MockClock

        return ("trio", {"clock": MockClock(autojump_threshold=0)})
    return "asyncio"


TIMED = {"cancelled", "racing", "late"}


def _skip_slow(name, anyio_backend):
    if anyio_backend == "asyncio" and name in TIMED:
        pytest.skip("sleeps; the simulated clock of the other backend does it in no time")


def headers(records):
    return [decode(record).header for record in records]


@pytest.mark.parametrize("name", sorted(CORPUS))
async def test_every_workflow_ends_and_replays(name, anyio_backend):
    """A run ends, its chain holds, and the same code on the recorded outcomes takes the same path."""
    _skip_slow(name, anyio_backend)
    store, run = fresh(name)
    outcome = await run_once(store, run, CORPUS, ScriptedEngine(script))
    assert outcome is not None
    assert outcome.status == "finished", outcome.error
    assert verify_chain(store.read(run)) > 3
    async with Runner(store, run, agents=CORPUS, replay=True) as runner:
        assert [found.result for found in await runner.replay()] == [outcome.result]


@pytest.mark.parametrize("name", sorted(CORPUS))
async def test_a_crash_at_every_event_is_resumed_to_an_equal_run(name, anyio_backend):
    """Whatever event a writer dies after, resume ends equal, and no effect is performed twice."""
    _skip_slow(name, anyio_backend)
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    whole, (events, _) = equal_view(store, run), store.head(run)
    for last in range(1, events):
        EFFECTS.clear()
        store, run = fresh(name)
        with contextlib.suppress(TreeringError, BaseExceptionGroup, Exception):
            await run_once(store, run, CORPUS, ScriptedEngine(script), last)
        died_at = store.head(run)[0]
        paid = {(at.task, at.op) for at in headers(store.read(run, kinds=["ModelReplied"]))}
        engine = ScriptedEngine(script)
        await run_once(store, run, CORPUS, engine)
        if name not in ("acting", *TIMED):
            assert equal_view(store, run) == whole, f"after a crash at event {last}"
        assert verify_chain(store.read(run)) > 3
        again = {(at.task, at.op) for at in headers(store.read(run, after=died_at, kinds=["ModelCalled"]))}
        assert not paid & again, f"paid twice after a crash at event {last}"
        if name == "acting":
            # An idempotent tool whose outcome was lost is called again, and no other.
            assert len(EFFECTS) <= 4


@pytest.mark.parametrize("name", sorted(set(CORPUS) - {"acting"}))
async def test_a_fork_at_every_cut_ends_equal(name, anyio_backend):
    """A fork that changes nothing ends as its parent did."""
    _skip_slow(name, anyio_backend)
    if name in TIMED:
        pytest.skip("which of several came first is a new sample in a fork")
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    whole, (events, _) = equal_view(store, run), store.head(run)
    for cut in range(2, events):
        fork = fork_run(store, run, cut)
        await run_once(store, fork, CORPUS, ScriptedEngine(script))
        assert equal_view(store, fork) == whole, f"forked at {cut}"


@pytest.mark.parametrize("name", ["fan_out", "nested", "side_by_side", "compacting", "shared_memory"])
async def test_an_edit_under_reuse_ends_equal_to_a_fresh_fork_with_fewer_calls(name, anyio_backend):
    """Only what depends on the change runs again."""
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    replies = [
        decode(record).header.seq
        for record in store.read(run, kinds=["ModelReplied"])
        if "~" not in decode(record).header.task
    ]
    for seq in replies:
        calls = {}
        views = {}
        for reuse in (False, True):
            engine = ScriptedEngine(script)
            fork = fork_run(store, run, seq, [(seq, "Ines kept a parrot.")], reuse=reuse)
            await run_once(store, fork, CORPUS, engine)
            calls[reuse], views[reuse] = len(engine.requests), equal_view(store, fork)
        assert views[True] == views[False]
        assert calls[True] <= calls[False]


@pytest.mark.parametrize("name", sorted(CORPUS))
async def test_folding_from_any_snapshot_equals_folding_from_the_start(name, anyio_backend):
    """A snapshot at any event, saved and loaded, leads to the same state."""
    _skip_slow(name, anyio_backend)
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    whole = msgspec.msgpack.encode(open_log(store, run)[0])
    stored = [decode(record) for record in store.read(run)]
    for cut in range(len(stored)):
        state = new_state()
        for one in stored[:cut]:
            evolve(state, one.header, one.event)
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=RunState)
        for one in stored[cut:]:
            evolve(state, one.header, one.event)
        assert msgspec.msgpack.encode(state) == whole
