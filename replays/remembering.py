"""Remembering: what a task's memory was at an event, and what a recall would find there.

Owns the picture of one view as plain values: memories with their state, age, uses and where they came from. A pure
function of the folded state; the log is only read for texts. It asks no model and writes nothing.
"""

from collections.abc import Iterator

import msgspec

from treering.events.catalogue import Ref, TaskJoined
from treering.events.codec import decode
from treering.events.errors import UsageError
from treering.events.log import LogStore
from treering.memory.hierarchy import TRUNK, View
from treering.memory.lexical import query_terms, root, terms
from treering.memory.recall import Query
from treering.replays.showing import state_at
from treering.runtime.recalling import Recaller, past_of, sources_seen
from treering.runtime.state import RunState, scope_of
from treering.runtime.texts import Texts

__all__ = ["Found", "Known", "Place", "Remembered", "memory_at"]


class Place(msgspec.Struct, frozen=True):
    """A view: a task's, at an event. `own` is the scope that it writes to, "" for the trunk."""

    run: str
    at: int
    task: str
    own: str


class Known(msgspec.Struct, frozen=True):
    """One memory in a view. `scope` holds it ("" the trunk). Ages are in ticks of the token clock as the task knows it:
    since it was written there, and since its last access. `task`, `op` and `event` wrote it first."""

    id: str
    state: str
    pinned: bool
    held: bool
    tokens: int
    characters: int
    age: int
    unused: int
    uses: int
    scope: str
    task: str
    op: int
    event: int
    refs: tuple[Ref, ...]
    text: str


class Found(msgspec.Struct, frozen=True):
    """A hit and why it is one: its tier, its score and the words of the query that stand in it."""

    tier: str
    score: float
    ref: Ref
    task: str
    name: str
    words: tuple[str, ...]
    text: str


class Remembered(msgspec.Struct, frozen=True):
    """A task's memory at an event. `digest` is the view's, `trunk` the trunk's; `sources` are (name, digest,
    characters), `hits` what a recall would find, best first in each tier, if one was asked for."""

    place: Place
    clock: int
    retention: str
    digest: str
    trunk: str
    memories: tuple[Known, ...]
    sources: tuple[tuple[str, str, int], ...]
    hits: tuple[Found, ...] | None = None

    def of(self, state: str) -> list[Known]:
        """Those that are `hot` or `cold`."""
        return [one for one in self.memories if one.state == state]


def memory_at(
    store: LogStore, run: str, at: int | None = None, task: str = "", query: Query | None = None
) -> Remembered:
    """What a task (the last root, unless `task` names one) remembered after an event (the last one of its memory).

    With `query`, also what a recall by that task would find there. Nothing is recorded.
    """
    state, place = _place(store, run, at, task)
    memory = state.memory
    view = memory.view(place.own)
    known = [_known(state, id, view) for id in memory.memories if memory.state(id, view) is not None]
    known.sort(key=lambda one: (one.state != "hot", one.unused, one.id))
    seen = sources_seen(state, past_of(state, place.task, state.tasks[place.task].next_op))
    sources = sorted((state.sources[digest].name, digest, state.sources[digest].characters) for digest in seen)
    return Remembered(
        place,
        memory.clock_of(place.own),
        state.config.retention,
        memory.view_digest(view),
        memory.digest(),
        tuple(known),
        tuple(sources),
        None if query is None else tuple(_found(store, state, place, query)),
    )


def _found(store: LogStore, state: RunState, place: Place, query: Query) -> Iterator[Found]:
    recaller = Recaller(store, place.run, Texts(store, place.run))
    wanted = {root(term): term for term in reversed(query_terms(query.text))}
    for record in recaller.recall(state, place.task, state.tasks[place.task].next_op, query):
        hit = recaller.hit(state, record)
        there = {root(term) for term in terms(f"{hit.text} {hit.heading} {hit.name}")}
        words = tuple(term for form, term in reversed(wanted.items()) if form in there)
        yield Found(hit.tier, hit.score, hit.ref, hit.task, hit.name, words, hit.text)


def _place(store: LogStore, run: str, at: int | None, task: str) -> tuple[RunState, Place]:
    state = state_at(store, run, at)
    path = task or (state.roots[-1] if state.roots else "")
    if path not in state.tasks:
        some = ", ".join(list(state.tasks)[:5]) or "none yet"
        raise UsageError(f"expected a task of the run at event {state.seq} ({some}), found {path or 'no root'!r}")
    own = scope_of(state.tasks[path])
    if own == TRUNK or own in state.memory.scopes:
        return state, Place(run, state.seq, path, own)
    joined = _joined(store, run, own)
    if at is None:
        return _place(store, run, joined - 1, path)
    raise UsageError(
        f"expected a task whose memory is its own at event {at}, found {path}, whose result was taken at event "
        f"{joined}; give --at {joined - 1}"
    )


def _joined(store: LogStore, run: str, path: str) -> int:
    """The event by which a task's memory became its parent's."""
    parent = path.rpartition(".")[0]
    for record in store.read(run, task=parent, kinds=["TaskJoined"]):
        stored = decode(record)
        if isinstance(stored.event, TaskJoined) and stored.event.child == path:
            return stored.seq
    return _joined(store, run, parent)


def _known(state: RunState, id: str, view: View) -> Known:
    hierarchy = state.memory
    memory, writes = hierarchy.memories[id], hierarchy.written(id, view)
    first = writes[0]
    in_trunk = first.scope == TRUNK
    clock = hierarchy.clock_of(view[0][0])
    waiting = hierarchy.accesses(view[0][0]).count(id)
    # What the task has accessed since its spawn is not yet on the trunk's clock.
    unused = 0 if waiting else clock - (min(memory.accessed, clock) if in_trunk else first.clock)
    return Known(
        id,
        hierarchy.state(id, view) or "",
        any(one.pinned for one in writes),
        in_trunk and id in hierarchy.held,
        memory.tokens,
        len(memory.text),
        clock - first.clock,
        unused,
        (memory.count if in_trunk else 0) + waiting,
        first.scope,
        first.task,
        first.op,
        first.seq,
        hierarchy.provenance(id, view),
        memory.text,
    )
