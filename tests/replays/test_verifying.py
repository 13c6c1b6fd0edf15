"""Verify: every honest log passes, in any fork; a chained lie does not."""

import sys
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

from corpus import CORPUS
from laws import Steady, fresh, run_once, script

from treering.events.catalogue import Cause, Evicted, Header, RunConfig, TaskSpawned
from treering.events.codec import body_digest, encode, to_json
from treering.events.errors import BrokenChain
from treering.events.in_memory import InMemoryStore
from treering.replays.showing import state_at
from treering.replays.verifying import verify
from treering.runtime.runner import Runner, create_run, fork_run
from treering.runtime.state import load_state, save_state
from treering.runtime.task import Task
from treering.runtime.testing import ScriptedEngine


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def forgetful(task: Task, goal: str) -> str:
    """Remembers, uses the window until the memory goes cold, and recalls it."""
    await task.remember("The parrot lives in the harbour.")
    for number in range(6):
        await task.generate(f"{goal} {number} " + "word " * 10, max_tokens=8)
    hits = await task.recall("Where does the parrot live?", 1)
    return hits[0].tier


async def _forgetful_run() -> tuple[InMemoryStore, str]:
    store = InMemoryStore()
    config = RunConfig("forgetful", retention="window:20", weights="scripted", template="words", overhead_tokens=2)
    run = create_run(store, config, Steady())
    async with Runner(store, run, ScriptedEngine(script), agents={"forgetful": forgetful}) as runner:
        outcome = await runner.ask("go")
    assert outcome.result == "cold"
    return store, run


def _forge(store: InMemoryStore, run: str, event: Evicted | TaskSpawned, task: str = "") -> int:
    """Append an event that no runtime would, with a right chain; its seq."""
    last, head = store.head(run)
    lease = store.acquire(run, True)
    body, salt = to_json(event), b"s" * 16
    header = Header(run, last + 1, type(event).__name__, 0, body_digest(salt, body), task)
    store.append(run, lease.epoch, [encode(header, body, salt, head)])
    lease.release()
    return last + 1


@pytest.mark.parametrize("name", ["fan_out", "nested", "failing", "over_budget", "shared_memory", "compacting"])
async def test_every_workflow_verifies(name):
    """What the runtime wrote follows from itself."""
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    assert verify(store, run).events == store.head(run)[0]


async def test_evictions_are_computed_again_in_the_run_and_in_every_fork():
    """Evicted and Revived are recomputed; a fork at any event, gone on with, verifies too."""
    store, run = await _forgetful_run()
    assert verify(store, run).derived >= 2
    for cut in range(1, store.head(run)[0] + 1):
        fork = fork_run(store, run, cut)
        async with Runner(store, fork, ScriptedEngine(script), agents={"forgetful": forgetful}) as runner:
            await runner.resume()
        assert verify(store, fork).segments == 2


async def hoarder(task: Task, goal: str) -> int:
    """Remembers more than its memory holds, uses some of it, and pins more than that."""
    for number in range(12):
        await task.remember(f"fact {number} " + "and more " * (number % 4), pinned=number in (3, 4, 7))
        await task.recall(f"fact {number % 3}", 1)
        await task.generate(f"{goal} {number}", max_tokens=4)
    await task.remember("long " * 60)
    return 0


@pytest.mark.parametrize("rule", ["lru:12", "sieve:12", "s3fifo:12", "actr:12"])
async def test_every_policy_is_computed_again_also_after_a_fork_to_another(rule):
    """Evictions of every rule verify, and so do those of a fork that goes on under a rule of its own."""
    store = InMemoryStore()
    config = RunConfig("hoarder", retention=rule, weights="scripted", template="words", overhead_tokens=2)
    run = create_run(store, config, Steady())
    async with Runner(store, run, ScriptedEngine(script), agents={"hoarder": hoarder}) as runner:
        await runner.ask("go")
    assert verify(store, run).derived >= 5
    state = state_at(store, run)
    hot, pinned = state.memory.resident()
    assert 12 < pinned < hot <= pinned + 12
    last = store.head(run)[0]
    for cut, other in ((last // 3, "window:20"), (last // 2, "lru:6"), (last // 2, rule), (last - 2, "sieve:6")):
        fork = fork_run(store, run, cut, config=msgspec.structs.replace(config, retention=other))
        async with Runner(store, fork, ScriptedEngine(script), agents={"hoarder": hoarder}) as runner:
            await runner.resume()
        assert verify(store, fork).derived >= 5
    assert load_state(save_state(state)) == state


async def test_an_eviction_that_does_not_follow_is_named():
    """A forged event with a right chain is found by the fold."""
    store, run = await _forgetful_run()
    seq = _forge(store, run, Evicted("m0", 1, Cause(1, "because")), "1")
    with pytest.raises(BrokenChain) as broken:
        verify(store, run)
    assert broken.value.seq == seq


async def test_an_event_of_another_run_is_named():
    """Each segment of a lineage holds events of its own run only."""
    store, run = await _forgetful_run()
    last, head = store.head(run)
    lease = store.acquire(run, True)
    body, salt = to_json(TaskSpawned("2", "forgetful", "again")), b"s" * 16
    header = Header("elsewhere", last + 1, "TaskSpawned", 0, body_digest(salt, body))
    store.append(run, lease.epoch, [encode(header, body, salt, head)])
    with pytest.raises(BrokenChain, match="elsewhere"):
        verify(store, run)
