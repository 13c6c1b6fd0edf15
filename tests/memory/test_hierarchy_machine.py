"""Memory against a model that is plain: each task has a set of its own, copied at its spawn and merged at its join."""

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from treering.memory.hierarchy import TRUNK, Hierarchy, View, memory_id
from treering.memory.queues import from_plain, to_plain

NAMES = st.sampled_from([f"fact {number}" for number in range(6)])
UNUSED_TOKENS = 40


class MemoryMachine(RuleBasedStateMachine):
    """Tasks write, use, spawn, join and grow old in any order; nobody sees what its own past does not hold."""

    @initialize()
    def begin(self) -> None:
        self.memory = Hierarchy()
        self.memory.use(f"window:{UNUSED_TOKENS}", 0)
        self.knows: dict[str, set[str]] = {TRUNK: set()}
        self.parents: dict[str, str] = {}
        self.clocks = {TRUNK: 0}
        self.pinned: dict[str, set[str]] = {TRUNK: set()}
        self.views: dict[str, tuple[View, dict[str, str | None]]] = {}
        self.number = 0

    def scope(self, draw: Any) -> str:
        return draw.draw(st.sampled_from(sorted(self.knows)))

    @rule(draw=st.data(), name=NAMES, pinned=st.booleans())
    def remember(self, draw, name, pinned):
        scope = self.scope(draw)
        self.memory.remember(scope, memory_id(name), name, 5, (), pinned)
        self.knows[scope].add(memory_id(name))
        if pinned:
            self.pinned[scope].add(memory_id(name))
        self.settle()

    @rule(draw=st.data())
    def use(self, draw):
        scope = self.scope(draw)
        if self.knows[scope]:
            self.memory.access(scope, draw.draw(st.sampled_from(sorted(self.knows[scope]))))
        self.settle()

    @rule(draw=st.data(), tokens=st.integers(1, 30))
    def tick(self, draw, tokens):
        scope = self.scope(draw)
        self.memory.tick(scope, tokens)
        self.clocks[scope] += tokens
        self.settle()

    @precondition(lambda self: len(self.knows) < 8)
    @rule(draw=st.data())
    def spawn(self, draw):
        parent = self.scope(draw)
        self.number += 1
        child = f"1.{self.number}"
        self.memory.open(child, parent)
        self.knows[child] = set(self.knows[parent])
        self.parents[child], self.clocks[child], self.pinned[child] = parent, 0, set()
        view = self.memory.view(child)
        self.views[child] = view, {id: self.memory.state(id, view) for id in self.memory.memories}

    @precondition(lambda self: self.parents)
    @rule(draw=st.data())
    def join(self, draw):
        leaves = sorted(child for child in self.parents if child not in self.parents.values())
        child = draw.draw(st.sampled_from(leaves))
        parent = self.parents.pop(child)
        self.memory.join(child, parent)
        self.knows[parent] |= self.knows.pop(child)
        self.clocks[parent] += self.clocks.pop(child)
        self.pinned[parent] |= self.pinned.pop(child)
        del self.views[child]
        self.settle()

    @rule()
    def go_on_from_a_snapshot(self):
        plain = msgspec.msgpack.encode(self.memory, enc_hook=to_plain)
        self.memory = msgspec.msgpack.decode(plain, type=Hierarchy, dec_hook=from_plain)

    @rule(draw=st.data())
    def hold(self, draw):
        known = sorted(self.knows[TRUNK])
        self.memory.hold(set(draw.draw(st.lists(st.sampled_from(known), max_size=2))) if known else set())
        self.settle()

    def settle(self) -> None:
        """What the sequencer derives after an event."""
        while self.memory.revivable:
            self.memory.revive(self.memory.revivable[0])
        while (id := self.memory.due()) is not None:
            memory = self.memory.memories[id]
            assert not memory.pinned
            assert id not in self.memory.held
            assert self.memory.clock - memory.accessed > UNUSED_TOKENS
            self.memory.evict(id)

    @invariant()
    def a_task_sees_what_is_in_its_past(self):
        for scope, knows in self.knows.items():
            view = self.memory.view(scope)
            assert {id for id in self.memory.memories if self.memory.state(id, view) is not None} == knows

    @invariant()
    def what_a_task_saw_at_its_spawn_stays_as_it_was(self):
        for view, states in self.views.values():
            assert {id: self.memory.state(id, view) for id in states} == states

    @invariant()
    def the_clock_is_that_of_what_was_joined(self):
        assert self.memory.clock == self.clocks[TRUNK]

    @invariant()
    def pins_of_the_trunk_are_hot(self):
        found = {id for id in self.knows[TRUNK] if self.memory.memories[id].pinned}
        assert found == self.pinned[TRUNK]
        assert all(self.memory.is_hot(id) for id in found)


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
