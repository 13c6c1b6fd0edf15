"""Reuse: an outcome of the parent is taken over by one op, whatever happens on the way."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from laws import CrashingWriter, fresh, headers

from treering.events.catalogue import Edit, ModelCalled, ModelReplied
from treering.events.catalogue import Header as At
from treering.events.codec import decode
from treering.events.errors import StoreError
from treering.runtime.journal import Journal, Reuse
from treering.runtime.runner import Runner, fork_run
from treering.runtime.testing import ScriptedEngine


def voting(before, votes):
    """An agent that votes: the same request each time, other samples."""

    async def agent(task, goal):
        for n in range(before):
            await task.generate(f"new {n}", max_tokens=5, keep=False)
        return [(await vote(task)).text for _ in range(votes)]

    return {"agent": agent}


def vote(task):
    return task.generate("vote", max_tokens=5, temperature=1.0, keep=False)


async def go_on(store, run, agents, last=None):
    writer = None if last is None else lambda s, r, e: CrashingWriter(s, r, e, last)
    async with Runner(store, run, ScriptedEngine(), agents=agents, writer=writer) as runner:
        return (await (runner.resume() if runner.state.roots else runner.ask("go"))).result


async def test_a_crash_in_a_fork_does_not_forget_what_was_taken_over():
    """At every event: each vote of the parent is one vote of the fork, though both stand at other ops in it."""
    store, run = fresh("agent")
    samples = await go_on(store, run, voting(0, 2))
    assert samples[0] != samples[1]
    fork = fork_run(store, run, 2, reuse=True)
    assert await go_on(store, fork, voting(2, 2)) == samples
    for last in range(4, store.head(fork)[0]):
        fork = fork_run(store, run, 2, reuse=True)
        with pytest.raises(StoreError):
            await go_on(store, fork, voting(2, 2), last)
        assert await go_on(store, fork, voting(2, 2)) == samples, f"after a crash at event {last}"


async def test_what_the_fork_shares_is_used():
    """A second vote is another sample, the same that a fork without reuse draws; it is not the first once more."""
    store, run = fresh("agent")
    first = await go_on(store, run, voting(0, 1))
    replied = headers(store.read(run, kinds=["ModelReplied"]))[0].seq
    results = [
        await go_on(store, fork_run(store, run, replied, reuse=reuse), voting(0, 2)) for reuse in (True, False)
    ]
    assert results[0] == results[1]
    assert results[0][0] == first[0]
    assert results[0][1] != first[0]


async def test_an_edited_outcome_is_not_taken_over_by_another_op():
    """Neither before nor after the edit is reached, nor when a crash lies between."""
    store, run = fresh("agent")
    await go_on(store, run, voting(0, 2))
    second = headers(store.read(run, kinds=["ModelReplied"]))[1].seq
    for last in (None, *range(6, 11)):
        fork = fork_run(store, run, second, [(second, "mine")])
        if last is not None:
            with pytest.raises(StoreError):
                await go_on(store, fork, voting(0, 3), last)
        await go_on(store, fork, voting(0, 3))
        replies = [decode(record).event for record in store.read(fork, kinds=["ModelReplied"])]
        assert [(reply.edited, reply.reused) for reply in replies] == [(0, 0), (second, 0), (0, 0)]


def test_outcomes_are_found_by_op_then_by_request_in_order():
    """Each once; neither what lies before the cut, nor what is used, nor another's request."""
    journal = Journal()
    for op in range(1, 7):
        journal.add(
            At("r", 2 * op, "ModelCalled", 0, "", "1", op), ModelCalled("same" if op % 2 else f"r{op}", (), 1, 1)
        )
        journal.add(At("r", 2 * op + 1, "ModelReplied", 0, "", "1", op), ModelReplied(f"answer {op}"))
    reuse = Reuse(lambda: journal, [Edit(13, "1", 6, "edited")], True, cut=4, used=[13])
    reuse.correspond("1", "", "", "")
    asked = [(5, "same"), (9, "same"), (1, "same"), (2, "same"), (2, "r2"), (4, "r4"), (4, "r4"), (6, "r6")]
    found = [reuse.model("1", op, request) for op, request in asked]
    assert [one and one[0] for one in found] == [11, 7, None, None, 5, 9, None, None]
