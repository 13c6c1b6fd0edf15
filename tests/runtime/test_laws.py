"""The laws of a run, over the corpus of small workflows, on asyncio and trio."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from corpus import CORPUS, EFFECTS, leaf
from invariants import check_log
from laws import (
    Steady,
    assert_equal,
    assert_folds_from,
    called_in,
    cone_of,
    equal_view,
    fresh,
    headers,
    run_once,
    script,
)

from treering.events.codec import decode, verify_chain
from treering.events.errors import StoreError
from treering.runtime.errors import NotRunInFork, OutcomeUnknown
from treering.runtime.runner import Runner, fork_run, open_log
from treering.runtime.state import save_state
from treering.runtime.testing import ScriptedEngine


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    if request.param == "trio":
        from trio.testing import MockClock

        return ("trio", {"clock": MockClock(autojump_threshold=0)})
    return "asyncio"


def _skip_slow(name, anyio_backend):
    if anyio_backend == "asyncio" and name == "late":
        pytest.skip("waits; the simulated clock of the other backend does it in no time")


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


@pytest.mark.parametrize("name", sorted(set(CORPUS) - {"paying"}))
async def test_a_crash_at_every_event_is_resumed_to_an_equal_run(name, anyio_backend):
    """Whatever event a writer dies after, resume ends equal, and no call that was answered is paid for again.

    Also where a race or a deadline decides: here one side takes no time and the other 50 s, so that a crash
    cannot change who wins. (Where it can, see `assert_parts_at_choices`.)
    """
    _skip_slow(name, anyio_backend)
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    whole, (events, _) = equal_view(store, run), store.head(run)
    for last in range(1, events):
        store, run = fresh(name)
        await crash(store, run, last)
        died, _ = store.head(run)
        paid = {(at.task, at.op) for at in headers(store.read(run, kinds=["ModelReplied"]))}
        await run_once(store, run, CORPUS, ScriptedEngine(script))
        assert_equal(whole, equal_view(store, run))
        assert verify_chain(store.read(run)) > 3
        again = {(at.task, at.op) for at in headers(store.read(run, after=died, kinds=["ModelCalled"]))}
        assert not paid & again, f"paid twice after a crash at event {last}"


async def crash(store, run, last):
    """A process that dies when event `last` is on disk, and the next one not."""
    with pytest.raises(StoreError):
        await run_once(store, run, CORPUS, ScriptedEngine(script), last)
    assert store.head(run)[0] <= last  # less where it would part a transaction


async def test_an_idempotent_tool_without_an_outcome_is_called_again_with_its_key(anyio_backend):
    """At every event: once more if its outcome was lost, never if it was recorded or the call was not on disk."""
    store, run = fresh("acting")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    for last in range(1, store.head(run)[0]):
        store, run = fresh("acting")
        EFFECTS.clear()
        await crash(store, run, last)
        died = decode(next(iter(store.read(run, after=last - 1)))).header
        lost = died.op if died.kind == "ToolCalled" else 0
        await run_once(store, run, CORPUS, ScriptedEngine(script))
        assert sorted([f"tower{n}" for n in range(3)] + [f"tower{lost - 1}"] * bool(lost)) == EFFECTS, f"at {last}"
        calls = [decode(record) for record in store.read(run, kinds=["ToolCalled"])]
        assert len({call.event.key for call in calls}) == 3
        assert [call.header.attempt for call in calls if call.header.op == lost] == [1, 2] * bool(lost)


async def test_any_other_tool_without_an_outcome_is_unknown_and_never_called_again(anyio_backend):
    """At every event: the run stops for a person, however often it is resumed; else each payment is made once."""
    store, run = fresh("paying")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    whole, unknown = equal_view(store, run), 0
    for last in range(1, store.head(run)[0]):
        store, run = fresh("paying")
        EFFECTS.clear()
        await crash(store, run, last)
        calls = {(at.task, at.op) for at in headers(store.read(run, kinds=["ToolCalled"]))}
        lost = calls - {(at.task, at.op) for at in headers(store.read(run, kinds=["ToolReturned"]))}
        if lost:
            unknown += 1
            made = list(EFFECTS)
            for _ in range(3):
                with pytest.raises(OutcomeUnknown, match="may have acted"):
                    await run_once(store, run, CORPUS, ScriptedEngine(script))
            assert made == EFFECTS, f"after a crash at event {last}"
            assert len(set(made)) == len(made) == len(calls)
        else:
            await run_once(store, run, CORPUS, ScriptedEngine(script))
            assert_equal(whole, equal_view(store, run))
            assert sorted(EFFECTS) == ["paid 1 one", "paid 1 two", "paid 1.1 three"], f"after a crash at event {last}"
    assert unknown


async def test_a_result_is_taken_once(anyio_backend):
    """Whoever awaits a child again is told so, and the log holds one TaskJoined."""

    async def greedy(task, goal):
        child = task.spawn(CORPUS["acting"], goal)
        await child
        return await child

    store, run = fresh("greedy")
    outcome = await run_once(store, run, {**CORPUS, "greedy": greedy}, ScriptedEngine(script))
    assert outcome.status == "failed"
    assert "was taken already" in outcome.error
    assert len(headers(store.read(run, kinds=["TaskJoined"]))) == 1


async def test_what_was_sampled_before_a_crash_is_not_sampled_again(anyio_backend):
    """A random number or a time that is on disk is the one that the run ends with, though the world has others."""
    store, run = fresh("sampling")
    first = (await run_once(store, run, CORPUS, ScriptedEngine(script))).result
    for last in range(1, store.head(run)[0]):
        store, run = fresh("sampling")
        await crash(store, run, last)
        kept = {at.op for at in headers(store.read(run, kinds=["Sampled"]))}
        async with Runner(store, run, ScriptedEngine(script), agents=CORPUS, seams=Steady(7)) as runner:
            result = (await (runner.resume() if runner.state.roots else runner.ask("tower"))).result
        assert [value in first for value in result] == [op in kept for op in range(1, 5)], f"after event {last}"


@pytest.mark.parametrize("name", sorted(CORPUS))
async def test_a_fork_at_every_cut_ends_equal(name, anyio_backend):
    """A fork that changes nothing ends as its parent did, and what touched the world does not do so again."""
    _skip_slow(name, anyio_backend)
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    whole, (events, _) = equal_view(store, run), store.head(run)
    EFFECTS.clear()
    for cut in range(2, events):
        fork = fork_run(store, run, cut)
        await run_once(store, fork, CORPUS, ScriptedEngine(script))
        assert_equal(whole, equal_view(store, fork))
        check_log(store.read(fork))
    assert not EFFECTS


async def test_a_fork_leaves_the_world_alone_unless_it_is_told_otherwise(anyio_backend):
    """A tool that the parent did not call so stops a fork, for good; with live tools it acts."""
    store, run = fresh("acting")
    await run_once(store, run, CORPUS, ScriptedEngine(script), goal="tower")
    fork = fork_run(store, run, store.head(run)[0])
    EFFECTS.clear()
    for _ in range(2):
        async with Runner(store, fork, ScriptedEngine(script), agents=CORPUS, seams=Steady()) as runner:
            with pytest.raises(NotRunInFork, match=r"treering resume \w+ --live-tools"):
                await runner.ask("mill")
    assert not EFFECTS
    async with Runner(store, fork, ScriptedEngine(script), agents=CORPUS, live_tools=True) as runner:
        await runner.resume()
    assert EFFECTS == ["mill0", "mill1", "mill2"]


async def _edited(store, run, seq, reuse):
    """A fork in which the outcome `seq` is another: its view, and the calls that reached the model."""
    engine = ScriptedEngine(script)
    fork = fork_run(store, run, seq, [(seq, "Ines kept a parrot.")], reuse=reuse)
    await run_once(store, fork, CORPUS, engine)
    called = called_in(store, fork, seq)
    assert len(engine.requests) == len(called)
    return equal_view(store, fork), called


@pytest.mark.parametrize("name", ["fan_out", "nested", "side_by_side", "compacting", "shared_memory", "wordy"])
async def test_an_edit_under_reuse_ends_equal_to_a_fresh_fork_with_fewer_calls(name, anyio_backend):
    """Only what depends on the change runs again: strictly fewer calls wherever something does not."""
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    for at in headers(store.read(run, kinds=["ModelReplied"])):
        if "~" in at.task:
            continue
        fresh_view, anew = await _edited(store, run, at.seq, reuse=False)
        reusing_view, called = await _edited(store, run, at.seq, reuse=True)
        assert_equal(fresh_view, reusing_view)
        later = {
            (header.task, header.op) for header in headers(store.read(run, after=at.seq, kinds=["ModelReplied"]))
        }
        independent = later - cone_of(store, run, at)
        assert not called & independent
        assert called < anew if independent else called <= anew


CONES = [
    ("fan_out", ("1.2", 1), {("1", 9)}),  # a child: the merge alone
    ("fan_out", ("1", 9), set()),  # the merge: nothing
    ("nested", ("1.1.1", 1), {("1", 5)}),  # a grandchild: its parent asks nothing, the root does
    ("side_by_side", ("1", 2), {("1", 5)}),  # one of two side by side: not the other, nor the child
    ("nested", ("1.2.2", 1), {("1", 5)}),
    ("shared_memory", ("1", 9), set()),
    ("twins", ("1", 1), {("1", 6)}),  # neither of the equal siblings
    ("wordy", ("1.1", 5), {("1.1", 6), ("1", 5)}),  # not the sibling, though its window was compacted too
]


@pytest.mark.parametrize(("name", "edited", "cone"), CONES)
async def test_an_edit_runs_its_causal_cone_again_and_nothing_else(name, edited, cone, anyio_backend):
    """The cones were found by hand."""
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    places = {(at.task, at.op): at.seq for at in headers(store.read(run, kinds=["ModelReplied"]))}
    _, called = await _edited(store, run, places[edited], reuse=True)
    assert {place for place in called if "~" not in place[0]} == cone


async def test_one_more_child_in_front_runs_nothing_else_again(anyio_backend):
    """Children correspond by what they were asked, not by their place: only the new one and the merge are paid."""

    async def fan_out(task, goal):
        children = [task.spawn(leaf, f"{goal} part {n}") for n in (9, 0, 1, 2, 3)]
        return (await task.generate(" / ".join(await task.gather(*children)), max_tokens=20)).text

    store, run = fresh("fan_out")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    fork = fork_run(store, run, 2, reuse=True)
    await run_once(store, fork, {**CORPUS, "fan_out": fan_out}, ScriptedEngine(script))
    assert called_in(store, fork, 2) == {("1.1", 1), ("1", 11)}


@pytest.mark.parametrize("name", sorted(CORPUS))
async def test_folding_from_any_snapshot_equals_folding_from_the_start(name, anyio_backend):
    """A snapshot at any event, saved and loaded, leads to the same state."""
    _skip_slow(name, anyio_backend)
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    whole = save_state(open_log(store, run)[0])
    stored = [decode(record) for record in store.read(run)]
    for cut in range(len(stored)):
        assert_folds_from(stored, cut, whole)
