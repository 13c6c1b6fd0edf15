"""Diff: equal runs have no difference; runs that parted say where, why, and what their calls saw."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

from corpus import CORPUS, fan_out, leaf
from laws import Steady, config_for, fresh, run_once, script

from treering.events.catalogue import ModelReplied
from treering.events.codec import decode
from treering.replays.comparing import align
from treering.replays.explaining import compare
from treering.replays.text_diffs import text_diff
from treering.runtime.runner import Runner, create_run, fork_run
from treering.runtime.testing import ScriptedEngine

TIMED = {"cancelled", "racing", "late", "racing_calls", "call_in_time"}
CALM = sorted(set(CORPUS) - TIMED - {"acting"})
"""What ends without waiting, and looks at no chance."""


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def again(store, name, agents=CORPUS, goal="tower", **changes):
    """One more run in this store, to its end; its id."""
    run = create_run(store, config_for(name, **changes))
    await run_once(store, run, agents, ScriptedEngine(script), goal=goal)
    return run


def seq_of(store, run, task, kind="ModelReplied", op=None):
    return next(
        stored.seq
        for record in store.read(run, task=task, kinds=[kind])
        if (stored := decode(record)) and op in (None, stored.header.op)
    )


def by_task(found):
    return {one.task_b: one for one in found.differences}


@pytest.mark.parametrize("name", CALM)
async def test_a_diff_of_equal_runs_is_empty(name):
    """Of a run with itself, with another run of the same code, and with a fork that changed nothing."""
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    other = await again(store, name)
    assert other != run
    fork = fork_run(store, run, store.head(run)[0] // 2 + 1)
    await run_once(store, fork, CORPUS, ScriptedEngine(script))
    for second in (run, other, fork):
        found = compare(store, run, second)
        assert found.equal, found
        assert found.differences == found.only_a == found.only_b == found.memory == ()


@pytest.mark.parametrize("name", ["fan_out", "nested", "side_by_side", "compacting", "shared_memory", "failing"])
async def test_an_edit_of_any_reply_is_found_as_the_first_difference(name):
    """Whatever reply of whatever task a fork replaced: the diff names its task, op and events, and that it was set."""
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    replies = [s for record in store.read(run, kinds=["ModelReplied"]) if (s := decode(record))]
    assert replies
    for stored in replies:
        if "~" in stored.header.task:
            continue
        fork = fork_run(store, run, stored.seq, [(stored.seq, "Ines kept a parrot.")])
        await run_once(store, fork, CORPUS, ScriptedEngine(script))
        found = compare(store, run, fork)
        assert not found.equal
        one = by_task(found)[stored.header.task]
        assert (one.op, one.what, one.a, one.kind) == (stored.header.op, "answered", stored.seq, "ModelReplied")
        assert "a person set this outcome in B" in one.cause
        assert one.upstream is None
        assert "+Ines kept a parrot." in one.diff
        event = next(decode(record) for record in store.read(fork, after=one.b - 1, until=one.b)).event
        assert isinstance(event, ModelReplied)
        assert event.edited == stored.seq


async def test_the_cause_leads_upstream_to_the_child_that_differs():
    """A parent takes another result: its call is shown as text, and the cause is the child's reply."""
    store, run = fresh("nested")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    seq = seq_of(store, run, "1.2.1")
    fork = fork_run(store, run, seq, [(seq, "Ines kept a parrot.")])
    await run_once(store, fork, CORPUS, ScriptedEngine(script))
    found = by_task(compare(store, run, fork))
    assert list(found) == ["1.2.1", "1", "1.2"]  # where it began comes first
    assert (found["1"].what, found["1"].upstream) == ("joined", ("1.2", found["1.2"].op))
    assert found["1.2"].upstream == ("1.2.1", 1)
    assert "child 1.2.1" in found["1.2"].cause
    assert "Ines kept a parrot." in found["1.2"].diff
    call = found["1"].call
    assert call is not None
    assert call.because == ("child 1.2, joined by op 4",)
    assert "+" in call.diff
    assert "Ines kept a parrot." in call.diff


async def test_a_later_call_says_that_a_reply_in_its_window_differs():
    """The reply entered the window: the next call saw it."""
    store, run = fresh("compacting")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    seq = seq_of(store, run, "1", op=2)
    fork = fork_run(store, run, seq, [(seq, "Ines kept a parrot.")])
    await run_once(store, fork, CORPUS, ScriptedEngine(script))
    call = by_task(compare(store, run, fork))["1"].call
    assert call is not None
    assert call.op == 3
    assert call.because == ("the reply of op 2 in its window",)
    assert "+[assistant] Ines kept a parrot." in call.diff


async def knower(task, goal):
    """Says nothing, and remembers what it was told."""
    said = await task.generate(goal, max_tokens=8)
    await task.remember(f"The parrot belongs to {said.text}")
    return "done"


async def knowing(task, goal):
    """Asks a child, and then its memory."""
    await task.spawn(knower, goal)
    hits = await task.recall("Whose parrot?", 1, over="memory")
    return (await task.generate(hits[0].text, max_tokens=8)).text


async def test_a_recall_names_the_memory_that_differs_and_who_remembered_it():
    """The child ends the same, and yet its parent recalls something else."""
    agents = {"knowing": knowing}
    store, run = fresh("knowing")
    await run_once(store, run, agents, ScriptedEngine(script))
    seq = seq_of(store, run, "1.1")
    fork = fork_run(store, run, seq, [(seq, "Ines")])
    await run_once(store, fork, agents, ScriptedEngine(script))
    found = compare(store, run, fork)
    one = by_task(found)["1"]
    assert (one.kind, one.what) == ("Recalled", "answered")
    assert "remembered by 1.1 op 2 in B" in one.cause
    assert one.upstream == ("1.1", 1)
    assert one.call is not None
    assert one.call.because == (f"what op {one.op} recalled",)
    assert "+[user] The parrot belongs to Ines" in one.call.diff
    assert [(change.a, change.b) for change in found.memory] == [("hot", ""), ("", "hot")]
    other = await again(store, "knowing", agents, "mill")
    assert by_task(compare(store, run, other))["1"].cause == "another question was asked"


async def test_one_more_child_in_front_moves_no_other():
    """Tasks correspond by spawn, not by number: the children that are the same have no difference."""

    async def more(task, goal):
        children = [task.spawn(leaf, "something new")] + [task.spawn(leaf, f"{goal} part {n}") for n in range(4)]
        answers = await task.gather(*children)
        merged = await task.generate(" / ".join(answers[1:]), max_tokens=20)
        return [*answers[1:], merged.text]

    store, run = fresh("fan_out")
    await run_once(store, run, {"fan_out": fan_out}, ScriptedEngine(script))
    other = await again(store, "fan_out", {"fan_out": more})
    aligned = align(store, run, other)
    assert [aligned.pairs[f"1.{n}"] for n in (2, 3, 4, 5)] == ["1.1", "1.2", "1.3", "1.4"]
    found = compare(store, run, other)
    assert by_task(found).keys() == {"1"}
    assert found.only_b == ("1.1",)
    assert found.a.result == found.b.result


async def test_another_configuration_and_a_log_that_ends_early_are_named():
    """Another seed is a cause; so is a run that did not come so far."""
    store, run = fresh("fan_out")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    other = await again(store, "fan_out", seed=7)
    assert "seed 0 and 7" in by_task(compare(store, run, other))["1.1"].cause.replace("-", "0")
    fork = fork_run(store, run, 6)
    found = compare(store, run, fork)
    assert {one.what for one in found.differences} == {"only a"}
    assert all("the log of B ends before it" in one.cause for one in found.differences)


async def test_what_a_fork_shares_is_not_read_again():
    """The events up to the cut are the same by identity."""
    store, run = fresh("fan_out")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    last = store.head(run)[0]
    fork = fork_run(store, run, last - 1)
    async with Runner(store, fork, ScriptedEngine(script), agents=CORPUS, seams=Steady()) as runner:
        await runner.resume()
    aligned = align(store, run, fork)
    assert aligned.shared == last - 1
    assert sum(len(log.ops) for log in aligned.a.values()) <= 1


def test_a_text_diff_shows_the_sentence_that_differs():
    """Long lines are compared by sentences; equal texts give nothing."""
    before = "One thing. " * 20 + "The parrot is green. " + "Another thing. " * 20
    after = before.replace("green", "blue")
    assert text_diff(before, before) == ""
    changed = [line for line in text_diff(before, after).splitlines() if line[:1] in "+-"]
    assert changed == ["--- A", "+++ B", "-The parrot is green.", "+The parrot is blue."]
