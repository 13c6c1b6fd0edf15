"""Causal views, the token clock and retention, as plain values."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from treering.memory.hierarchy import TRUNK, Hierarchy, memory_id
from treering.memory.queues import from_plain, to_plain
from treering.memory.retention import KeepWhileUsed


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
    memory = Hierarchy(policy=KeepWhileUsed(10))
    id = _remember(memory, TRUNK, "a rule")
    memory.open("1.1", TRUNK)
    _remember(memory, "1.1", "a rule", pinned=True)
    memory.tick(TRUNK, 11)
    assert memory.due() == id
    memory.join("1.1", TRUNK)
    memory.tick(TRUNK, 11)
    assert memory.due() is None
    assert memory.memories[id].pinned


def test_the_same_text_is_one_memory_and_is_used_again():
    """Recalled text that is stored again is an access, not a new memory."""
    memory = Hierarchy()
    id = _remember(memory, TRUNK, "a fact")
    memory.tick(TRUNK, 10)
    assert _remember(memory, TRUNK, " a fact ") == id
    assert len(memory.memories) == 1
    assert memory.memories[id].accessed == 10


def test_blanks_inside_a_text_are_kept():
    """Texts that differ in them are two memories, each verbatim: code may mean something else."""
    memory = Hierarchy()
    texts = ["if a:\n  b\nc", "if a:\n  b\n  c", "say('a  b')", "say('a b')"]
    assert [memory.memories[_remember(memory, TRUNK, text)].text for text in texts] == texts


def test_use_it_or_lose_it():
    """A memory goes cold once the window has passed since its last access, and is revived by one."""
    memory = Hierarchy(policy=KeepWhileUsed(100))
    id = _remember(memory, TRUNK, "old")
    pinned = _remember(memory, TRUNK, "rule", pinned=True)
    memory.tick(TRUNK, 100)
    assert memory.due() is None
    memory.tick(TRUNK, 1)
    assert memory.due() == id
    memory.evict(id)
    assert memory.state(id, memory.view(TRUNK)) == "cold"
    assert memory.due() is None
    assert memory.state(pinned, memory.view(TRUNK)) == "hot"
    memory.access(TRUNK, id)
    assert memory.revivable == [id]
    memory.revive(id)
    assert memory.state(id, memory.view(TRUNK)) == "hot"


def test_what_the_root_window_points_at_is_held():
    """A memory in the live root's window never goes cold; its age counts from when it left."""
    memory = Hierarchy(policy=KeepWhileUsed(100))
    id = _remember(memory, TRUNK, "in use")
    memory.hold({id})
    memory.tick(TRUNK, 1000)
    assert memory.due() is None
    memory.hold(set())
    assert memory.due() is None
    memory.tick(TRUNK, 101)
    assert memory.due() == id


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
    again = msgspec.msgpack.decode(
        msgspec.msgpack.encode(memory, enc_hook=to_plain), type=Hierarchy, dec_hook=from_plain
    )
    assert memory.digest() == again.digest()
    assert memory.clock == 15
    assert memory.memories[memory_id("by all")].count == 2


@given(st.integers(0, 2**32), st.sampled_from(["window:30", "lru:20", "sieve:20", "s3fifo:20", "actr:20", "none"]))
def test_another_policy_begins_with_what_is_hot(chance, rule):
    """Whatever was decided before, pins and what a window holds stay out of its hands, and all else is in them."""
    memory = Hierarchy()
    memory.use("lru:20", 1)
    ids = [_remember(memory, TRUNK, f"text {number}", pinned=number == 3) for number in range(8)]
    for number in range(12):
        memory.tick(TRUNK, 1 + number)
        memory.access(TRUNK, ids[(chance >> number) % 8])
        while memory.revivable:
            memory.revive(memory.revivable[0])
        memory.hold({ids[chance % 8]})
        while (victim := memory.due()) is not None:
            memory.evict(victim)
    memory.use(rule, 1)
    gone = set()
    while (victim := memory.due()) is not None:
        memory.evict(victim)
        gone.add(victim)
    assert not gone & {ids[3], ids[chance % 8]}
    free = [id for id in ids if memory.is_hot(id) and id not in (ids[3], *memory.held)]
    if rule == "none":
        assert not gone
    elif rule == "window:30":
        assert all(memory.clock - memory.memories[id].accessed <= 30 for id in free)
    else:
        assert sum(memory.memories[id].tokens for id in free) <= 20
        assert not gone or len(free) == 4
