"""The laws of a run, over workflows that hypothesis makes up.

`TREERING_EXAMPLES=2000 python -m pytest tests/runtime/test_generated.py` looks further than the usual run does,
each time at other workflows.
"""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

sys.path.insert(0, str(Path(__file__).parent))

from corpus import EFFECTS
from invariants import check_log
from laws import CrashingWriter, Killed, PacedEngine, Steady, assert_equal, config_for, equal_view
from programs import interpret, loose_programs, programs, steady_programs
from simulation import seeded

from treering.events.codec import decode, verify_chain
from treering.events.errors import StoreError
from treering.events.in_memory import InMemoryStore
from treering.runtime.errors import OutcomeUnknown
from treering.runtime.runner import Runner, create_run, fork_run, open_log
from treering.runtime.state import evolve, load_state, new_state, save_state

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

    def session(self, run: str, last: int | None = None) -> PacedEngine:
        """One process's life, to the end or until the log holds `last` events; the engine that it asked."""
        engine = PacedEngine(0.0 if self.seed is None else 2.0)
        writer = None if last is None else lambda s, r, e: CrashingWriter(s, r, e, last)

        async def live() -> None:
            async with Runner(self.store, run, engine, agents=AGENTS, seams=self.world, writer=writer) as runner:
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
