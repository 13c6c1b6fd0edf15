"""The laws of a run, over workflows that hypothesis makes up.

`TREERING_EXAMPLES=2000 python -m pytest tests/runtime/test_generated.py` looks further than the usual run does,
each time at other workflows.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

sys.path.insert(0, str(Path(__file__).parent))

from corpus import EFFECTS
from invariants import check_log
from laws import (
    CrashingWriter,
    Killed,
    PacedEngine,
    Steady,
    answered,
    assert_equal,
    assert_folds_from,
    assert_parts_at_choices,
    called_in,
    cone_of,
    config_for,
    equal_view,
)
from programs import interpret, loose_programs, programs, steady_programs
from simulation import seeded

from treering.events.codec import decode, verify_chain
from treering.events.errors import StoreError
from treering.events.in_memory import InMemoryStore
from treering.runtime.errors import OutcomeUnknown
from treering.runtime.runner import Runner, create_run, fork_run, open_log
from treering.runtime.state import save_state

MORE = int(os.environ.get("TREERING_EXAMPLES", "0"))
LAW = settings(
    max_examples=MORE or 40,
    derandomize=not MORE,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
AGENTS: dict[str, Any] = {"interpret": interpret}
PLACES = st.integers(0, 100_000)
"""A place in a log whose length is not known yet: taken modulo its length."""
CONFIGS = st.builds(
    lambda window, retention, concurrency: config_for(
        "interpret", window_tokens=window, retention=retention, concurrency=concurrency
    ),
    st.sampled_from([70, 120, 400]),
    st.sampled_from(["window:5", "window:60", "window:10000", "none"]),
    st.integers(1, 4),
)


class Case:
    """One store, one program, and a loop to run it on."""

    def __init__(self, program: list[Any], config: Any, seed: int | None) -> None:
        self.program, self.config, self.seed = program, config, seed
        self.store = InMemoryStore()
        self.world = Steady()

    def new(self) -> str:
        return create_run(self.store, self.config, self.world)

    def session(self, run: str, last: int | None = None, live_tools: bool = False) -> PacedEngine:
        """One process's life, to the end or until the log holds `last` events; the engine that it asked."""
        engine = PacedEngine(0.0 if self.seed is None else 2.0)
        writer = None if last is None else lambda s, r, e: CrashingWriter(s, r, e, last)

        async def live() -> None:
            async with Runner(
                self.store, run, engine, agents=AGENTS, seams=self.world, writer=writer, live_tools=live_tools
            ) as runner:
                if runner.state.roots:
                    await runner.resume()
                else:
                    await runner.ask("tower", {"program": self.program})

        self.loop(live)
        return engine

    def crash(self, run: str, last: int) -> None:
        """A session that dies after event `last`."""
        try:
            self.session(run, last)
        except (StoreError, Killed):
            return
        raise AssertionError(f"expected a death after event {last}")

    def replay(self, run: str) -> None:
        async def live() -> None:
            async with Runner(self.store, run, agents=AGENTS, replay=True) as runner:
                outcomes = await runner.replay()
            state, *_ = open_log(self.store, run)
            assert [outcome.status for outcome in outcomes] == [state.tasks[path].status for path in state.roots]

        self.loop(live)

    def loop(self, live: Any) -> None:
        if self.seed is None:
            asyncio.run(live())
        else:
            self.seed += 1  # no two sessions have the same interleaving
            with seeded(self.seed):
                trio.run(live, clock=MockClock(autojump_threshold=0))

    def check(self, run: str) -> None:
        """Chain, invariants at every step, and replay."""
        assert verify_chain(self.store.read(run)) > 2
        check_log(self.store.read(run))
        self.replay(run)

    def events(self, run: str, *kinds: str, after: int = 0) -> list[Any]:
        return [decode(record) for record in self.store.read(run, after=after, kinds=kinds or None)]


ON_TRIO = st.builds(Case, programs(), CONFIGS, st.integers(0, 50))
ON_ASYNCIO = st.builds(Case, steady_programs(), CONFIGS, st.none())
CASES = st.one_of(ON_TRIO, ON_TRIO, ON_ASYNCIO)
LOOSE = st.builds(Case, loose_programs(), CONFIGS, st.integers(0, 50))


@LAW
@given(CASES)
def test_a_run_ends_keeps_every_invariant_and_replays(case):
    """Whatever the program: chain, invariants at every step, and the same path on the recorded outcomes."""
    run = case.new()
    case.session(run)
    case.check(run)


@LAW
@given(CASES, st.lists(PLACES, min_size=1, max_size=3))
def test_crashes_are_resumed_to_an_equal_run(case, places):
    """Wherever writers die, the run that is resumed ends equal, and nothing recorded is paid for again."""
    whole = case.new()
    case.session(whole)
    head = case.store.head(whole)[0]
    run = case.new()
    paid: set[tuple[str, int]] = set()
    for place in places:
        at = case.store.head(run)[0]
        case.crash(run, at + place % max(1, head - at)) if at < head - 1 else None
        paid |= {(one.header.task, one.header.op) for one in case.events(run, "ModelReplied", "ToolReturned")}
    died = case.store.head(run)[0]
    case.session(run)
    assert_equal(equal_view(case.store, whole), equal_view(case.store, run))
    again = {(one.header.task, one.header.op) for one in case.events(run, "ModelCalled", "ToolCalled", after=died)}
    assert not paid & again
    case.check(run)


@LAW
@given(st.builds(Case, programs(paying=True), CONFIGS, st.integers(0, 50)), PLACES, st.booleans())
def test_no_effect_is_performed_twice(case, place, aimed):
    """A payment whose outcome was lost stops the run as unknown and is never made again; all else is made once."""
    whole = case.new()
    EFFECTS.clear()
    case.session(whole)
    wanted = Counter(EFFECTS)
    head = case.store.head(whole)[0]
    run = case.new()
    EFFECTS.clear()
    acts = [one.header.seq for one in case.events(whole, "ToolCalled")]
    case.crash(run, acts[place % len(acts)] if aimed and acts else 1 + place % (head - 1))
    lost = calls_without_outcome(case, run)
    died = case.store.head(run)[0]
    if any(not called.idempotent for called in lost.values()):
        for _ in range(2):
            with pytest.raises(OutcomeUnknown, match="may have acted"):
                case.session(run)
        check_log(case.store.read(run))
        calls = [one.event for one in case.events(run, "ToolCalled")]
        allowed = Counter(json.loads(bytes(called.arguments))["name"] for called in calls if not called.idempotent)
        paid = Counter(name.removeprefix("paid ") for name in EFFECTS if name.startswith("paid "))
        assert paid <= allowed, "paid more often than a call says"
        return
    case.session(run)
    again = {(one.header.task, one.header.op): one for one in case.events(run, "ToolCalled", after=died)}
    for place, called in lost.items():
        # It is called again with the same key, unless the race that it was in had been decided.
        if place in again:
            assert (again[place].event.key, again[place].header.attempt) == (called.key, 2)
    extra = Counter(json.loads(bytes(called.arguments))["name"] for called in lost.values())
    for name, count in Counter(EFFECTS).items():
        assert wanted[name] <= count <= wanted[name] + extra[name], name
        assert count == wanted[name] or not name.startswith("paid"), name


def calls_without_outcome(case: Case, run: str) -> dict[tuple[str, int], Any]:
    """By task and op, the tool calls whose outcome is not on disk."""
    lost = {(one.header.task, one.header.op): one.event for one in case.events(run, "ToolCalled")}
    for one in case.events(run, "ToolReturned"):
        lost.pop((one.header.task, one.header.op), None)
    return lost


@LAW
@given(CASES, PLACES)
def test_a_fork_at_a_cut_ends_equal(case, place):
    """A fork that changes nothing ends as its parent did, and no tool acts again."""
    run = case.new()
    case.session(run)
    EFFECTS.clear()
    fork = fork_run(case.store, run, 2 + place % max(1, case.store.head(run)[0] - 2), seams=case.world)
    case.session(fork)
    assert_equal(equal_view(case.store, run), equal_view(case.store, fork))
    assert not EFFECTS
    case.check(fork)


@LAW
@given(CASES, PLACES, st.sampled_from(["Ines kept a parrot.", "", "Reply"]), PLACES)
def test_an_edit_under_reuse_ends_equal_to_a_fresh_fork(case, place, text, death):
    """What was edited leads to the same run either way; under reuse, only what depends on it reaches the model.

    So it does where the fork's writer dies on the way: what was taken over before is not given to another op.
    """
    run = case.new()
    case.session(run)
    replies = [
        one for one in case.events(run, "ModelReplied") if "~" not in one.header.task and not one.event.failure
    ]
    if not replies:
        return
    edited = replies[place % len(replies)].header
    forks, called = {}, {}
    for reuse in (False, True):
        forks[reuse] = fork_run(case.store, run, edited.seq, [(edited.seq, text)], reuse=reuse, seams=case.world)
        case.session(forks[reuse], live_tools=True)
        called[reuse] = called_in(case.store, forks[reuse], edited.seq)
        case.check(forks[reuse])
    assert_equal(equal_view(case.store, forks[False]), equal_view(case.store, forks[True]))
    killed = fork_run(case.store, run, edited.seq, [(edited.seq, text)], reuse=True, seams=case.world)
    begun, ended = case.store.head(killed)[0], case.store.head(forks[True])[0]
    with contextlib.suppress(StoreError, Killed):
        case.session(killed, begun + death % max(1, ended - begun), live_tools=True)
    case.session(killed, live_tools=True)
    assert_equal(equal_view(case.store, forks[True]), equal_view(case.store, killed))
    used = [one.event.reused for one in case.events(killed, "ModelReplied", after=begun) if one.event.reused]
    assert len(used) == len(set(used)), f"taken over twice: {used}"
    assert called[True] <= called[False]
    taken = [one.header for one in case.events(forks[True], "ModelReplied", after=edited.seq) if one.event.reused]
    assert called[False] - called[True] <= {(at.task, at.op) for at in taken}
    # What the parent's models answered outside the cone of the edit is not asked again (a failure is).
    assert not called[True] & (answered(case.store, run) - cone_of(case.store, run, edited))


@LAW
@given(st.one_of(CASES, LOOSE), PLACES)
def test_folding_from_a_snapshot_equals_folding_from_the_start(case, place):
    """A snapshot, saved and loaded, leads to the same state."""
    run = case.new()
    case.session(run)
    whole = save_state(open_log(case.store, run)[0])
    stored = case.events(run)
    assert_folds_from(stored, place % len(stored), whole)


OVERTAKEN = [
    "first",
    [
        ["remember", "mill", False],
        ["run", [["run", [["remember", "mill", False]], {}], ["gather", [["act", "mill"]], True]], {}],
    ],
]
"""A child that is about to act as its parent's race is decided."""
GIVEN_UP = [
    ["first", [["first", [["sleep", 9.0], ["sleep", 8.0]]], ["say", 1, 4]]],
    ["remember", "mill", False],
    ["recall", "mill"],
]
"""A race that loses a race."""


@LAW
@example(Case([OVERTAKEN], config_for("interpret"), 0), [0])
@example(Case(GIVEN_UP, config_for("interpret"), 0), [0])
@given(LOOSE, st.lists(PLACES, min_size=1, max_size=2))
def test_where_timing_decides_runs_part_only_at_what_it_decided(case, places):
    """Races of equals: after a crash, all is equal up to a recorded choice that came out otherwise, and replays."""
    whole = case.new()
    case.session(whole)
    case.check(whole)
    run = case.new()
    head = case.store.head(whole)[0]
    try:
        for place in places:
            at = case.store.head(run)[0]
            case.session(run, at + place % max(1, head - at) + 1)
    except (StoreError, Killed):
        pass
    kept = [record.digest for record in case.store.read(run)]
    case.session(run)
    assert [record.digest for record in case.store.read(run)][: len(kept)] == kept
    case.check(run)
    assert_parts_at_choices(equal_view(case.store, whole), equal_view(case.store, run))
