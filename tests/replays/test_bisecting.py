"""Bisect finds the planted reply, whatever differs beside it, with few forks."""

import sys
from math import ceil, log2
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

import anyio
from laws import Steady, config_for, run_once

from treering.events.catalogue import ModelReplied
from treering.events.codec import decode
from treering.events.errors import UsageError
from treering.events.in_memory import InMemoryStore
from treering.replays.bisecting import bisect, candidates_of
from treering.replays.verifying import verify
from treering.runtime.runner import Runner, create_run, fork_run
from treering.runtime.testing import ScriptedEngine


async def worker(task, goal):
    first = await task.generate(f"Think of {goal}", max_tokens=20)
    second = await task.generate("Say it", max_tokens=20)
    return f"{first.text} / {second.text}"


async def boss(task, goal):
    count = int(goal)
    parts = await task.gather(*(task.spawn(worker, f"part {number}") for number in range(count)))
    return (await task.generate(" | ".join(parts), max_tokens=20)).text


AGENTS = {"boss": boss}


def sober(request):
    """An engine whose verdict depends on all that it was shown, and is bad only where there is poison."""
    said = request.messages[-1].text
    if "|" in said or "part" not in said:
        return "a spoiled verdict" if "poison" in " ".join(m.text for m in request.messages) else f"fine {len(said)}"
    return f"thought of {said.split()[-1]}"


def drifting(planted):
    """The same engine in another mood: every thought is worded otherwise, one is poison."""

    def script(request):
        said = request.messages[-1].text
        if said.startswith("Think of part"):
            return "poison" if said.endswith(f" {planted}") else f"mused on {said.split()[-1]}"
        return sober(request)

    return script


def is_good(run, outcome):
    return "spoiled" not in outcome.result


async def two_runs(store, count, planted):
    """A good run and a bad one of another engine; their ids."""
    runs = []
    for script in (sober, drifting(planted)):
        run = create_run(store, config_for("boss"), Steady() if not runs else None)
        await run_once(store, run, AGENTS, ScriptedEngine(script), goal=str(count))
        runs.append(run)
    return runs


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1))))
def test_the_planted_reply_is_found_among_many_that_differ(drawn):
    """One thought of another run is poison, all others are only worded otherwise."""
    count, planted = drawn

    async def check():
        store = InMemoryStore()
        good, bad = await two_runs(store, count, planted)
        found = await bisect(store, good, bad, is_good, ScriptedEngine(sober), AGENTS)
        assert (found.culprit.task, found.culprit.op, found.culprit.after) == (f"1.{planted + 1}", 1, "poison")
        assert found.alone
        assert len(found.trials) <= ceil(log2(found.candidates)) + 2
        event = decode(next(iter(store.read(bad, after=found.culprit.b - 1, until=found.culprit.b)))).event
        assert isinstance(event, ModelReplied)
        assert event.text == "poison"
        for trial in found.trials:
            assert verify(store, trial.run).segments == 2

    anyio.run(check)


def test_a_planted_edit_in_a_fork_is_found_and_only_its_cone_is_paid():
    """The bad run is a fork of the good one: what they share is not tried, what is equal is not paid for."""

    async def check():
        store = InMemoryStore()
        good, _ = await two_runs(store, 6, 0)
        replies = [s for record in store.read(good, kinds=["ModelReplied"]) if (s := decode(record)).header.op == 1]
        harmless, planted, later = (one.seq for one in replies[1:4])
        bad = fork_run(store, good, later, [(harmless, "x"), (planted, "poison"), (later, "y")])
        async with Runner(store, bad, ScriptedEngine(sober), agents=AGENTS) as runner:
            await runner.resume()
        found = await bisect(store, good, bad, is_good, ScriptedEngine(sober), AGENTS)
        assert found.culprit.a == planted
        # A worker's second call and the verdict follow from each edit that was taken, and nothing else.
        assert all(trial.calls <= trial.taken + 1 for trial in found.trials)

    anyio.run(check)


def test_two_replies_that_are_bad_only_together_are_told():
    """The second makes it go bad, and not alone."""

    def both(request):
        said = " ".join(message.text for message in request.messages)
        return "spoiled" if said.count("half") > 1 and "|" in said else sober(request)

    async def check():
        store = InMemoryStore()
        good, _ = await two_runs(store, 5, 0)
        replies = [s for record in store.read(good, kinds=["ModelReplied"]) if (s := decode(record)).header.op == 1]
        bad = fork_run(store, good, replies[3].seq, [(replies[1].seq, "half"), (replies[3].seq, "half")])
        async with Runner(store, bad, ScriptedEngine(both), agents=AGENTS) as runner:
            await runner.resume()
        found = await bisect(store, good, bad, is_good, ScriptedEngine(both), AGENTS)
        assert found.culprit.a == replies[3].seq
        assert not found.alone

    anyio.run(check)


def test_what_cannot_be_searched_is_refused_before_anything_is_forked():
    """The check must tell the runs apart, and replies must differ; if they do not explain it, that is said."""

    async def check():
        store = InMemoryStore()
        good, bad = await two_runs(store, 3, 1)
        engine = ScriptedEngine(sober)
        for one, other, judge, expected in (
            (bad, good, is_good, "found that it fails"),
            (good, bad, lambda run, outcome: True, "found that it passes"),
            (good, good, lambda run, outcome, seen=[]: not seen and not seen.append(1), "found none"),
        ):
            with pytest.raises(UsageError, match=expected):
                await bisect(store, one, other, judge, engine, AGENTS)
        assert len(store.runs()) == 2
        assert candidates_of(store, good, good) == []
        with pytest.raises(UsageError, match="something else differs"):
            await bisect(store, good, bad, lambda run, outcome: run != bad, engine, AGENTS)
        unfinished = fork_run(store, good, 5)
        with pytest.raises(UsageError, match="resume"):
            await bisect(store, good, unfinished, is_good, engine, AGENTS)

    anyio.run(check)


def test_later_questions_of_the_good_run_are_asked_again():
    """A reply to the first question that spoils only the answer to the second is found."""

    async def learner(task, goal):
        if goal == "learn":
            said = await task.generate("Think of part 1", max_tokens=20)
            await task.remember(f"The lesson is {said.text}")
            return "learned"
        hits = await task.recall("What is the lesson?", 1, over="memory")
        return (await task.generate(f"part | {hits[0].text}", max_tokens=20)).text

    async def check():
        store, runs = InMemoryStore(), []
        for script in (sober, drifting(1)):
            run = create_run(store, config_for("learner"))
            async with Runner(store, run, ScriptedEngine(script), agents={"learner": learner}) as runner:
                await runner.ask("learn")
                await runner.ask("tell")
            runs.append(run)
        found = await bisect(store, *runs, is_good, ScriptedEngine(sober), {"learner": learner})
        assert (found.culprit.task, found.culprit.after) == ("1", "poison")

    anyio.run(check)
