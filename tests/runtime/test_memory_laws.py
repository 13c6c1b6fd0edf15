"""Memory over whole runs: the same at every step on either event loop, from any snapshot, after any crash, and
whichever sibling is faster (hypothesis says).
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

sys.path.insert(0, str(Path(__file__).parent))

from corpus import CORPUS
from laws import equal_view, fresh, run_once, script
from simulation import WORKFLOWS

from treering.events.codec import decode
from treering.events.in_memory import InMemoryStore
from treering.runtime.deriving import DERIVED
from treering.runtime.engine import Reply, Request, StreamText
from treering.runtime.runner import Runner
from treering.runtime.state import RunState, evolve, load_state, new_state, save_state, scope_of
from treering.runtime.task import Say, Task
from treering.runtime.testing import ScriptedEngine

Steps = dict[tuple[str, int], tuple[str, str]]


async def scout(task: Task, goal: str, deeper: int = 0) -> list[str]:
    """Keeps what its siblings keep too, says things, and looks things up in every way there is."""
    await task.remember("The common rule is to be kind.", pinned=goal == "mill")
    child = task.spawn(scout, f"{goal}'s cellar", deeper=deeper - 1) if deeper else None
    said = await task.generate(f"What is kept in the {goal}?", max_tokens=9)
    ref = await task.remember(f"The {goal} holds lantern oil. {said.text}")
    hits = await task.recall("lantern oil rule", 3, access=False)
    await task.generate(Say(("See ", *[hit for hit in hits if hit.tier == "hot"])), max_tokens=5)
    below = [] if child is None else await child
    deep = await task.recall("kept in the cellar", 4, over="memory", deep=True)
    own = await task.recall("oil", 2, over="memory", task=task.path, max_age_tokens=60)
    await task.use(ref, *own[:1])
    return [f"{hit.tier} {hit.task} {hit.text}" for hit in [*hits, *deep, *own]] + below


async def scouting(task: Task, goal: str) -> Any:
    children = [task.spawn(scout, name, deeper=n) for n, name in enumerate(("harbour", "mill", "tower"))]
    await task.remember(f"The {goal} was asked about first.")
    await task.generate("meanwhile", max_tokens=4)
    found = [await child for child in children[:2]]
    early = await task.recall("lantern oil", 3, deep=True)
    await children[2]
    late = await task.recall("lantern oil in the tower", 5, deep=True, access=False)
    return [found, [hit.text for hit in early], [hit.text for hit in late], task.provenance(late[0].ref)]


AGENTS = {**WORKFLOWS, "scouting": scouting, "scout": scout}
LAWFUL = ["scouting", "shared_memory", "forgetful", "side_by_side", "nested"]
"""Workflows in which nothing is left to chance or to a clock."""


class Uneven(ScriptedEngine):
    """Takes its time for each request, as these numbers say in turn."""

    def __init__(self, delays: list[int]) -> None:
        super().__init__(script)
        self._delays = list(delays)

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        await anyio.sleep(self._delays.pop() / 100 if self._delays else 0)
        return await super().generate(request, on_text)


def lived(name: str, engine: ScriptedEngine | None = None, backend: str = "trio", crash_at: int | None = None) -> Any:
    """A run of a workflow, resumed if it is made to crash; (store, run)."""

    async def live() -> Any:
        store, run = fresh(name, retention="window:60")
        if crash_at is not None:
            with contextlib.suppress(BaseException):
                await run_once(store, run, AGENTS, ScriptedEngine(script), crash_at)
        outcome = await run_once(store, run, AGENTS, engine or ScriptedEngine(script))
        assert outcome is not None
        assert outcome.status == "finished", outcome.error
        return store, run

    options = {"clock": MockClock(autojump_threshold=0)} if backend == "trio" else {}
    return anyio.run(live, backend=backend, backend_options=options)


def steps(store: InMemoryStore, run: str, snapshot_at: int = 0) -> Steps:
    """What each task saw between two of its ops, and for roots the trunk then, by the task and the next op.

    Also checks that nobody else changed it in between. The fold goes by way of a snapshot after `snapshot_at`.
    """
    state, found = new_state(), {}
    records = [decode(record) for record in store.read(run)]
    for at, stored in enumerate(records):
        evolve(state, stored.header, stored.event)
        if stored.seq == snapshot_at:
            state = load_state(save_state(state))
        if at + 1 < len(records) and isinstance(records[at + 1].event, DERIVED):
            continue  # what this event caused is of the same step
        for task in state.tasks.values():
            if task.status == "running" and (task.path == task.root or task.path in state.memory.scopes):
                place, seen = (task.path, task.next_op), _seen(state, task.path)
                own = stored.header.task.partition("~")[0] == task.path  # a compaction is of no op of its own
                if place not in found or own:
                    found[place] = seen
                assert found[place] == seen, f"event {stored.seq} changed what {task.path} sees before op {place[1]}"
    return found


def assert_same(one: Steps, other: Steps) -> None:
    """Equal wherever both stood. Where ops were gathered, outcomes that came out of turn take several steps at once."""
    both = one.keys() & other.keys()
    assert {place: one[place] for place in both} == {place: other[place] for place in both}
    for path in {path for path, _ in one} | {path for path, _ in other}:
        last = [max((op for at, op in found if at == path), default=0) for found in (one, other)]
        assert last[0] == last[1], f"task {path} ended at op {last[0]} and at op {last[1]}"
    assert len(both) > 0.7 * max(len(one), len(other))


def _seen(state: RunState, path: str) -> tuple[str, str]:
    scope = scope_of(state.tasks[path])
    view = state.memory.view(scope)
    return state.memory.view_digest(view), "" if scope else state.memory.digest()


@pytest.mark.parametrize("name", LAWFUL)
def test_both_event_loops_give_the_same_memory_at_every_step(name: str) -> None:
    """Views, trunk, hits and results are equal on asyncio and trio."""
    one, other = lived(name, backend="asyncio"), lived(name, backend="trio")
    assert_same(steps(*one), steps(*other))
    assert equal_view(*one) == equal_view(*other)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(LAWFUL), st.lists(st.integers(0, 9), max_size=16))
def test_it_never_shows_which_sibling_was_faster(name: str, delays: list[int]) -> None:
    """Hypothesis says how long each call takes: views and trunk at every step, hits and results stay."""
    even, uneven = lived(name), lived(name, Uneven(delays))
    assert_same(steps(*even), steps(*uneven))
    assert equal_view(*even) == equal_view(*uneven)


@pytest.mark.parametrize("name", LAWFUL)
def test_from_any_snapshot_memory_is_the_same_at_every_later_step(name: str) -> None:
    """A fold by way of a snapshot after any event gives the same views and trunk."""
    store, run = lived(name, Uneven([3, 1, 4, 1, 5]))
    whole = steps(store, run)
    for cut in range(1, store.head(run)[0] + 1):
        assert steps(store, run, snapshot_at=cut) == whole


@pytest.mark.parametrize("name", LAWFUL)
def test_after_a_crash_at_any_event_memory_is_the_same_at_every_step(name: str) -> None:
    """A run that died and was resumed has the views and the trunk of one that did not."""
    store, run = lived(name)
    whole, same = steps(store, run), equal_view(store, run)
    for last in range(2, store.head(run)[0]):
        again = lived(name, crash_at=last)
        assert_same(steps(*again), whole)
        assert equal_view(*again) == same, f"after a crash at event {last}"


def test_hits_are_read_from_the_log_in_a_replay() -> None:
    """A replay finds what was recorded, deep recalls and provenance included, without an engine."""
    store, run = lived("scouting", Uneven([2, 7, 1]))

    async def replay() -> Any:
        async with Runner(store, run, agents=AGENTS, replay=True) as runner:
            return [outcome.result for outcome in await runner.replay()], runner.state.tasks["1"].result

    (result,), recorded = anyio.run(replay)
    assert msgspec.json.decode(recorded) == result
    tiers = {line.split(" ")[0] for line in result[0][0]}
    assert {"hot", "log"} <= tiers


def test_the_workflows_are_in_the_corpus_of_the_other_laws() -> None:
    """Those that are named here exist."""
    assert set(LAWFUL) <= set(AGENTS)
    assert {"shared_memory", "nested"} <= set(CORPUS)
