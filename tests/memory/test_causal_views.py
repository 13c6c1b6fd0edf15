"""R11 as a law: hypothesis writes programs for a root and the tasks below it, and chooses how siblings interleave.

Whatever the order, each task sees the same at each of its own steps, finds the same, and the trunk goes the same way.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.events.catalogue import MemoryRef, SourceSpan
from treering.memory.finding import RecallIndex
from treering.memory.hierarchy import TRUNK, Hierarchy, memory_id
from treering.memory.queues import from_plain, to_plain
from treering.memory.recall import Query, is_under

WORDS = ["lamp", "tide", "parrot", "mill", "rope"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
REFS = st.lists(st.integers(0, 2).map(lambda at: SourceSpan("harbour", at, at + 5)), max_size=2).map(tuple)
STEPS = st.one_of(
    st.tuples(st.just("remember"), TEXTS, REFS, st.booleans()),
    st.tuples(st.just("tick"), st.integers(1, 30)),
    st.tuples(st.just("access"), TEXTS),
    st.tuples(st.just("recall"), TEXTS),
)
LEAVES = st.lists(STEPS, max_size=6)
PARENTS = st.lists(STEPS | st.tuples(st.just("child"), LEAVES), max_size=6)
ROOTS = st.lists(STEPS | st.tuples(st.just("child"), PARENTS), min_size=1, max_size=8)
POLICY = "window:40"


class Performer:
    """Performs a tree of programs on one hierarchy; `choose` picks who acts next among those that can.

    A task joins its children at its end, in the order of their spawns. `seen` is what each task saw at each step.
    """

    def __init__(self, root: list[Any], choose: Callable[[int], int], save_each: bool = False) -> None:
        self.memory = Hierarchy()
        self.memory.use(POLICY, 0)
        self.index = RecallIndex()
        self.seen: dict[tuple[str, int], Any] = {}
        self._ops: dict[str, int] = {"1": 0}
        self._save_each = save_each
        waiting = {"1": list(root)}
        children: dict[str, list[str]] = {"1": []}
        while waiting:
            ready = [path for path in sorted(waiting) if waiting[path] or not self._open(path, children, waiting)]
            path = ready[choose(len(ready)) % len(ready)]
            if waiting[path]:
                self._step(path, waiting[path].pop(0), waiting, children)
            elif children[path]:
                self._join(path, children[path].pop(0))
            else:
                del waiting[path]

    def _open(self, path: str, children: dict[str, list[str]], waiting: dict[str, Any]) -> bool:
        return bool(children[path]) and children[path][0] in waiting

    def _join(self, path: str, child: str) -> None:
        self._act(path, lambda: self.memory.join(child, self._scope(path)))

    def _scope(self, path: str) -> str:
        return TRUNK if path == "1" else path

    def _step(self, path: str, step: Any, waiting: dict[str, Any], children: dict[str, list[str]]) -> None:
        memory, scope, what = self.memory, self._scope(path), step[0]
        if what == "child":
            child = f"{path}.{sum(other.rpartition('.')[0] == path for other in self._ops) + 1}"
            waiting[child], children[child], self._ops[child] = list(step[1]), [], 0
            children[path].append(child)
            self._act(path, lambda: memory.open(child, scope))
        elif what == "remember":
            op = self._ops[path]
            id = memory_id(step[1])
            self._act(path, lambda: memory.remember(scope, id, step[1], 3, step[2], step[3], path, op))
        elif what == "tick":
            self._act(path, lambda: memory.tick(scope, step[1]))
        elif memory_id(step[1]) in memory.memories and memory.state(memory_id(step[1]), memory.view(scope)):
            self._act(path, lambda: memory.access(scope, memory_id(step[1])))
        if what == "recall":
            hits = self.index.recall(memory, memory.view(scope), Query(step[1]), set(), lambda task: 0)
            assert hits == plain_recall(memory, scope, step[1])
            self.seen[path, -self._ops[path]] = hits

    def _act(self, path: str, act: Callable[[], None]) -> None:
        others = {scope: self.memory.view_digest(self.memory.view(scope)) for scope in self.memory.scopes}
        trunk = self.memory.digest()
        act()
        while (due := self.memory.due()) is not None:
            self.memory.evict(due)
        while self.memory.revivable:
            self.memory.revive(self.memory.revivable[0])
        if self._save_each:
            self.memory = _saved_and_loaded(self.memory)
        for scope in self.memory.scopes.keys() & others.keys() - {path}:
            assert self.memory.view_digest(self.memory.view(scope)) == others[scope], (
                f"{path} changed what {scope} sees"
            )
        if path != "1":
            assert self.memory.digest() == trunk, f"{path} changed the trunk"
        self._ops[path] += 1
        view = self.memory.view(self._scope(path))
        self.seen[path, self._ops[path]] = (
            self.memory.view_digest(view),
            self.memory.digest() if path == "1" else "",
        )


def plain_recall(memory: Hierarchy, scope: str, query: str) -> list[Any]:
    """Recall as it is described: one memory at a time, with an index of only what the view holds."""
    from treering.events.catalogue import HitRecord
    from treering.memory.lexical import root
    from treering.memory.ranking import LexicalIndex

    view = memory.view(scope)
    ids = sorted(id for id in memory.memories if memory.state(id, view))
    index = LexicalIndex(0.9, 0.4, form=root)
    for id in ids:
        index.add(memory.memories[id].text)
    own = dict(zip(ids, index.scores(query).tolist(), strict=True))
    first = {id: memory.written(id, view)[0] for id in ids}
    scores = {}
    for id in ids:
        beside = sorted((one for one in ids if first[one].task == first[id].task), key=lambda one: first[one].op)
        at = beside.index(id)
        near = 0.0
        for distance, part in ((1, 0.5), (2, 0.25), (3, 0.125)):
            near += part * own[beside[at - distance]] if at >= distance else 0.0
            near += part / 2 * own[beside[at + distance]] if at + distance < len(beside) else 0.0
        scores[id] = own[id] + near
    found: list[Any] = []
    for tier in ("hot", "cold"):
        of_tier = [id for id in ids if own[id] > 0 and memory.state(id, view) == tier]
        for id in sorted(of_tier, key=lambda one: (-round(scores[one], 6), one))[: 5 - len(found)]:
            refs = memory.provenance(id, view)
            found.append(HitRecord(MemoryRef(id), pytest.approx(scores[id], abs=2e-6), tier, first[id].task, refs))
    return found


@settings(max_examples=150, deadline=None)
@given(ROOTS, st.lists(st.integers(0, 5), max_size=60), st.lists(st.integers(0, 5), max_size=60))
def test_no_interleaving_of_siblings_shows(root: list[Any], one: list[int], other: list[int]) -> None:
    """What each task sees and finds at each step, and the trunk at each step of the root, are the same."""
    performed = [
        Performer(root, lambda _, turns=list(turns): turns.pop() if turns else 0) for turns in (one, other, [])
    ]
    assert performed[0].seen == performed[1].seen == performed[2].seen
    assert performed[0].memory.digest() == performed[1].memory.digest()


@settings(max_examples=60, deadline=None)
@given(ROOTS, st.lists(st.integers(0, 5), max_size=60))
def test_a_hierarchy_that_was_saved_at_every_step_goes_on_the_same(root: list[Any], turns: list[int]) -> None:
    """A snapshot loses nothing of views, and an index that followed the one follows the other."""
    kept = Performer(root, lambda _, turns=list(turns): turns.pop() if turns else 0)
    saved = Performer(root, lambda _, turns=list(turns): turns.pop() if turns else 0, save_each=True)
    assert kept.seen == saved.seen


def test_a_child_that_pins_and_cites_does_so_for_itself_until_it_is_joined() -> None:
    """Before that neither its siblings, nor the trunk, nor the retention policy know of it."""
    memory = Hierarchy()
    memory.use("window:10", 0)
    id = memory_id("the rule")
    memory.remember(TRUNK, id, "the rule", 3, (), False, "1", 1, 1)
    for child in ("1.1", "1.2"):
        memory.open(child, TRUNK)
    span = SourceSpan("book", 0, 5)
    memory.remember("1.1", id, "the rule", 3, (span,), True, "1.1", 1, 5)
    assert memory.provenance(id, memory.view("1.1")) == (span,)
    assert memory.provenance(id, memory.view("1.2")) == memory.provenance(id, memory.view(TRUNK)) == ()
    assert not memory.memories[id].pinned
    memory.tick(TRUNK, 11)
    assert memory.due() == id
    memory.join("1.1", TRUNK)
    assert memory.provenance(id, memory.view(TRUNK)) == (span,)
    assert memory.provenance(id, memory.view("1.2")) == ()
    assert memory.memories[id].pinned
    assert memory.due() is None
    assert [(one.task, one.seq) for one in memory.written(id, memory.view(TRUNK))] == [("1", 1), ("1.1", 5)]


def test_a_path_is_under_itself_and_what_spawned_it() -> None:
    """`1.2` is above `1.2.3` and its system tasks, and not above `1.20`."""
    assert [is_under(path, "1.2") for path in ("1.2", "1.2.3", "1.2~4", "1.20", "1", "1.1")] == [True] * 3 + [
        False
    ] * 3


def _saved_and_loaded(memory: Hierarchy) -> Hierarchy:
    plain = msgspec.msgpack.encode(memory, enc_hook=to_plain)
    return msgspec.msgpack.decode(plain, type=Hierarchy, dec_hook=from_plain)
