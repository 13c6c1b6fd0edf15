"""What a task remembered at an event: for the trunk, for a running child, for one that was joined since."""

import sys
from pathlib import Path

import anyio
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

from laws import fresh, run_once, script

from treering.events.catalogue import LogSpan, MemoryRef, Recalled, SourceSpan
from treering.events.codec import decode
from treering.events.errors import UsageError
from treering.memory.hierarchy import memory_id
from treering.memory.recall import Query
from treering.replays.remembering import memory_at
from treering.runtime.runner import open_log
from treering.runtime.task import Say, Task
from treering.runtime.testing import ScriptedEngine


async def child(task: Task, goal: str) -> None:
    await task.remember("The child saw an owl.", sources=[SourceSpan("book", 3, 9)])
    await task.recall("keeper", 1, over="memory")
    await task.generate("think " * 20, max_tokens=5)


async def parent(task: Task, goal: str) -> None:
    rule = await task.remember("The rule is to be kind.", pinned=True)
    await task.remember("The keeper is Ada.")
    await task.generate(Say(("See ", rule)), max_tokens=5)
    for _ in range(3):
        await task.generate("word " * 40, max_tokens=5, keep=False)
    await task.spawn(child, "look")
    await task.recall("owl", 1, over="memory")


@pytest.fixture(scope="module")
def log():
    async def live():
        store, run = fresh("parent", retention="window:60")
        await run_once(store, run, {"parent": parent, "child": child}, ScriptedEngine(script))
        return store, run

    store, run = anyio.run(live)
    events = [decode(record) for record in store.read(run)]
    return store, run, events


def seq_of(events, kind: str, task: str) -> int:
    return next(one.seq for one in events if one.header.kind == kind and one.header.task == task)


def test_the_trunk_with_ages_uses_and_provenance(log):
    """After the last event: what is hot, cold and pinned, since when, how often used, and from what."""
    store, run, events = log
    found = memory_at(store, run)
    state = open_log(store, run)[0]
    assert (found.place.at, found.place.task, found.place.own) == (state.seq, "1", "")
    assert (found.clock, found.trunk) == (state.memory.clock, state.memory.digest())
    by_text = {one.text.split()[1]: one for one in found.memories}
    rule, keeper, owl = by_text["rule"], by_text["keeper"], by_text["child"]
    # The keeper had gone cold; that the child looked it up revived it.
    assert [one.state for one in (rule, keeper, owl)] == ["hot", "hot", "hot"]
    assert (rule.pinned, owl.pinned) == (True, False)
    assert (owl.task, owl.op, owl.event) == ("1.1", 1, seq_of(events, "Remembered", "1.1"))
    assert owl.refs == (SourceSpan("book", 3, 9),)
    assert (owl.uses, owl.unused) == (1, 0)
    assert owl.age == 21 + 6  # the prompt and the reply that entered the child's window after it wrote
    assert (keeper.uses, rule.uses) == (1, 0)
    assert found.of("hot") + found.of("cold") == list(found.memories)


def test_a_child_sees_its_own_and_the_trunk_as_of_its_spawn(log):
    """While it runs: what it wrote is in its scope, what it looked up counts as used, and its clock goes on."""
    store, run, events = log
    spawned = [one.seq for one in events if one.header.kind == "TaskSpawned"][1]
    before = memory_at(store, run, spawned, "1.1")
    assert {one.state for one in before.memories} == {"hot", "cold"}
    end = seq_of(events, "TaskFinished", "1.1")
    during = memory_at(store, run, end, "1.1")
    owl = next(one for one in during.memories if "owl" in one.text)
    keeper = next(one for one in during.memories if "keeper" in one.text)
    assert (owl.scope, keeper.scope) == ("1.1", "")
    assert (keeper.state, keeper.uses, keeper.unused) == ("cold", 1, 0)
    assert owl.age == during.clock - before.clock > 0
    assert not any("owl" in one.text for one in memory_at(store, run, end, "1").memories)


def test_of_a_task_that_was_joined_the_last_event_of_its_own_memory_is_shown(log):
    """Without an event that is the one before its parent took the result; with a later one, a line says so."""
    store, run, events = log
    joined = seq_of(events, "TaskJoined", "1")
    assert memory_at(store, run, task="1.1") == memory_at(store, run, joined - 1, "1.1")
    with pytest.raises(UsageError, match=f"give --at {joined - 1}"):
        memory_at(store, run, joined + 1, "1.1")
    with pytest.raises(UsageError, match="expected a task of the run at event"):
        memory_at(store, run, task="1.9")


def test_it_finds_what_a_recall_of_the_run_found(log):
    """Asked at the event before, the same hits with the same scores; and says which words they have."""
    store, run, events = log
    recalled = next(one for one in events if isinstance(one.event, Recalled) and one.header.task == "1.1")
    found = memory_at(store, run, recalled.seq - 1, "1.1", Query("keeper", 1, "memory")).hits
    assert [(hit.ref, hit.score, hit.tier) for hit in found] == [
        (hit.ref, hit.score, hit.tier) for hit in recalled.event.hits
    ]
    assert (found[0].tier, found[0].words, found[0].task) == ("cold", ("keeper",), "1")
    deep = memory_at(store, run, query=Query("thinking kind", deep=True)).hits
    assert [(type(hit.ref), hit.words) for hit in deep if hit.tier in ("hot", "log")][:2] == [
        (MemoryRef, ("kind",)),
        (LogSpan, ("thinking",)),
    ]
    assert deep[0].ref == MemoryRef(memory_id("The rule is to be kind."))


def test_looking_changes_nothing(log):
    """The log is as long as before, and a second look gives the same."""
    store, run, _ = log
    head = store.head(run)
    assert memory_at(store, run) == memory_at(store, run)
    assert memory_at(store, run, query=Query("")).hits == ()
    assert store.head(run) == head
