"""Causal views, the token clock and retention, as plain values."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.events.errors import UsageError
from treering.memory.hierarchy import TRUNK, Hierarchy, memory_id
from treering.memory.retention import KeepAll, KeepWhileUsed, parse_retention


def _remember(memory: Hierarchy, scope: str, text: str, pinned: bool = False) -> str:
    id = memory_id(text)
    memory.remember(scope, id, text, 5, (), pinned)
    return id


def test_a_child_sees_its_parent_as_of_its_spawn_and_not_its_siblings():
    """What is written later, or beside, is not seen."""
    memory = Hierarchy()
    before = _remember(memory, TRUNK, "before")
    memory.open("1.1", TRUNK)
    memory.open("1.2", TRUNK)
    after = _remember(memory, TRUNK, "after")
    beside = _remember(memory, "1.2", "beside")
    view = memory.view("1.1")
    assert memory.state(before, view) == "hot"
    assert memory.state(after, view) is None
    assert memory.state(beside, view) is None


def test_a_grandchild_sees_the_whole_path():
    """A view is the path from a task's own scope up to the trunk."""
    memory = Hierarchy()
    memory.open("1.1", TRUNK)
    mine = _remember(memory, "1.1", "mine")
    memory.open("1.1.1", "1.1")
    later = _remember(memory, "1.1", "later")
    view = memory.view("1.1.1")
    assert memory.state(mine, view) == "hot"
    assert memory.state(later, view) is None


def test_a_join_brings_writes_and_ticks_in_their_order():
    """The parent's clock and memory change when it takes the result, and not before."""
    memory = Hierarchy()
    memory.open("1.1", TRUNK)
    memory.tick("1.1", 30)
    id = _remember(memory, "1.1", "found")
    memory.tick("1.1", 12)
    assert (memory.clock, memory.state(id, memory.view(TRUNK))) == (0, None)
    memory.join("1.1", TRUNK)
    assert memory.clock == 42
    assert memory.memories[id].accessed == 30
    assert memory.state(id, memory.view(TRUNK)) == "hot"


def test_a_pin_of_a_child_waits_for_its_join():
    """What the trunk evicts does not depend on how far a child has come."""
    memory = Hierarchy()
    id = _remember(memory, TRUNK, "a rule")
    memory.open("1.1", TRUNK)
    _remember(memory, "1.1", "a rule", pinned=True)
    memory.tick(TRUNK, 11)
    assert memory.due(KeepWhileUsed(10)) == id
    memory.join("1.1", TRUNK)
    memory.tick(TRUNK, 11)
    assert memory.due(KeepWhileUsed(10)) is None
    assert memory.memories[id].pinned


def test_the_same_text_is_one_memory_and_is_used_again():
    """Recalled text that is stored again is an access, not a new memory."""
    memory = Hierarchy()
    id = _remember(memory, TRUNK, "a  fact")
    memory.tick(TRUNK, 10)
    assert _remember(memory, TRUNK, " a fact ") == id
    assert len(memory.memories) == 1
    assert memory.memories[id].accessed == 10


def test_use_it_or_lose_it():
    """A memory goes cold once the window has passed since its last access, and is revived by one."""
    memory = Hierarchy()
    policy = KeepWhileUsed(100)
    id = _remember(memory, TRUNK, "old")
    pinned = _remember(memory, TRUNK, "rule", pinned=True)
    memory.tick(TRUNK, 100)
    assert memory.due(policy) is None
    memory.tick(TRUNK, 1)
    assert memory.due(policy) == id
    memory.evict(id)
    assert memory.state(id, memory.view(TRUNK)) == "cold"
    assert memory.due(policy) is None
    assert memory.state(pinned, memory.view(TRUNK)) == "hot"
    memory.access(TRUNK, id)
    assert memory.revivable == [id]
    memory.revive(id)
    assert memory.state(id, memory.view(TRUNK)) == "hot"


def test_what_the_root_window_points_at_is_held():
    """A memory in the live root's window never goes cold; its age counts from when it left."""
    memory = Hierarchy()
    id = _remember(memory, TRUNK, "in use")
    memory.hold({id})
    memory.tick(TRUNK, 1000)
    assert memory.due(KeepWhileUsed(100)) is None
    memory.hold(set())
    assert memory.due(KeepWhileUsed(100)) is None
    memory.tick(TRUNK, 101)
    assert memory.due(KeepWhileUsed(100)) == id


@given(st.permutations(["1.1", "1.2", "1.3"]))
def test_the_interleaving_of_siblings_never_shows(order):
    """Whoever writes first, the trunk after the joins is the same."""
    memory = Hierarchy()
    for child in ("1.1", "1.2", "1.3"):
        memory.open(child, TRUNK)
    for child in order:
        memory.tick(child, len(child) + int(child[-1]))
        _remember(memory, child, f"by {child}")
        _remember(memory, child, "by all")
    for child in ("1.1", "1.2", "1.3"):
        memory.join(child, TRUNK)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(memory), type=Hierarchy)
    assert memory.digest() == again.digest()
    assert memory.clock == 15
    assert memory.memories[memory_id("by all")].count == 2


def test_policies_are_named_or_refused():
    """A policy that is not known is one clear line."""
    assert parse_retention("window:50") == KeepWhileUsed(50)
    assert parse_retention("none") == KeepAll()
    for wrong in ("window:0", "window:", "window:x", "lru", "", "none:1", "window:-5"):
        with pytest.raises(UsageError, match="expected"):
            parse_retention(wrong)
