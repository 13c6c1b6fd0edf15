"""Recalling: what a task finds when it looks something up.

Owns the run's recall index, as it follows the folded state and the log, and what a task may see of the log itself.
It reads the store and writes nothing. Invariant: what an op finds is a function of its task's own past, and of that
of the children that were joined: never of what siblings are doing.
"""

from itertools import islice
from typing import TYPE_CHECKING

from treering.events.catalogue import HitRecord
from treering.events.codec import decode
from treering.events.log import LogStore
from treering.memory.recall import Hit, Past, Query
from treering.runtime.state import RunState, scope_of
from treering.runtime.texts import LOG_KINDS, Texts, log_texts

if TYPE_CHECKING:
    from treering.memory.finding import RecallIndex

__all__ = ["Recaller", "past_of", "sources_seen"]

_ALL = 1 << 31


class Recaller:
    """Finds, for one run. A cache: it can be thrown away at any time."""

    def __init__(self, store: LogStore, run: str, texts: Texts) -> None:
        self._store = store
        self._run = run
        self._texts = texts
        self._index: RecallIndex | None = None
        self._log_seq = 0
        self._in_log: set[tuple[str, int, str]] = set()

    def recall(self, state: RunState, path: str, op: int, query: Query) -> tuple[HitRecord, ...]:
        """What the task `path` finds at its op number `op`."""
        if query.deep:
            self._follow_log(state.seq)
        memory = state.memory
        view = memory.view(scope_of(state.tasks[path]))
        past = past_of(state, path, op)
        return tuple(self.index(state).recall(memory, view, query, sources_seen(state, past), past))

    def index(self, state: RunState) -> "RecallIndex":
        """The index, with all sources so far."""
        index = self._open()
        for source in islice(state.sources.values(), index.sources, None):
            index.add_source(source.source, source.name, self._texts.source(source.source))
        return index

    def _open(self) -> "RecallIndex":
        if self._index is None:
            # Here, because numpy takes a third of the time in which a command starts, and most never recall.
            from treering.memory.finding import RecallIndex

            self._index = RecallIndex()
        return self._index

    def hit(self, state: RunState, record: HitRecord) -> Hit:
        """A recorded hit, with its text."""
        ref = record.ref
        name, heading = self.index(state).describe(ref)
        text = self._texts.of(ref, state.memory)
        return Hit(ref, text, record.score, record.tier, name, heading, record.task, record.refs)

    def _follow_log(self, until: int) -> None:
        # What is not yet on disk is of a task that is still waiting for it, and so in nobody's past.
        for record in self._store.read(self._run, after=self._log_seq, until=until, kinds=LOG_KINDS):
            stored = decode(record)
            self._log_seq = stored.seq
            header = stored.header
            for what, text in log_texts(header, stored.event):
                if (header.task, header.op, what) not in self._in_log:
                    self._in_log.add((header.task, header.op, what))
                    self._open().add_log_text(header.task, header.op, what, text)


def past_of(state: RunState, path: str, op: int) -> Past:
    """What is in the past of task `path` at its op number `op`: for each task, the number below which its ops are.

    Its own ops, those of the tasks above it that were done when they spawned it, and all of those whose result was taken by
    then: below it, beside it, or under an earlier root. By numbers of ops, so that it is the same in a replay.
    """
    bounds: dict[str, int] = {}
    at, bound = path, op
    while at:
        bounds[at] = bound
        at, bound = state.tasks[at].parent, state.tasks[at].parent_done
    began = state.tasks[state.tasks[path].root].spawned

    def past(other: str) -> int:
        if other in bounds:
            return bounds[other]
        task = state.tasks.get(other)
        while task is not None and task.parent and task.joined:
            if task.parent in bounds:
                return _ALL if task.joined < bounds[task.parent] else 0
            task = state.tasks.get(task.parent)
        return _ALL if task is not None and not task.parent and task.spawned < began else 0

    return past


def sources_seen(state: RunState, past: Past) -> set[str]:
    """Digests of the sources that were read in that past."""
    return {source for source, readers in state.readers.items() if any(op < past(task) for task, op in readers)}
