"""The journal: what the log already answers.

Owns the recorded requests and outcomes by task and op, the edits of a fork, and the outcomes that a fork with
reuse may take over. It never performs anything. Invariant: an outcome is given out for one op only.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from treering.events.catalogue import (
    Compacted,
    Edit,
    Event,
    Header,
    InputAdded,
    ModelCalled,
    ModelReplied,
    Recalled,
    Refused,
    Remembered,
    Sampled,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    ToolCalled,
    ToolReturned,
    Used,
)

__all__ = ["Correspondence", "Ended", "Journal", "OpRecord", "Reuse", "Spawned"]

Ended = TaskFinished | TaskFailed | TaskCancelled
_OUTCOMES = (
    InputAdded,
    TaskSpawned,
    TaskJoined,
    ModelReplied,
    ToolReturned,
    Remembered,
    Recalled,
    Used,
    Sampled,
)


class OpRecord(msgspec.Struct):
    """What is recorded of one op. `attempts` counts the calls so far."""

    compactions: list[Compacted] = []
    called: ModelCalled | ToolCalled | None = None
    called_seq: int = 0
    attempts: int = 0
    outcome: Event | None = None
    seq: int = 0
    refused: Refused | None = None

    @property
    def request(self) -> str:
        """The digest of the recorded request, "" if none is known."""
        if self.called is not None:
            return self.called.request
        return str(getattr(self.outcome, "request", ""))


class Journal:
    """The recorded ops of a lineage."""

    def __init__(self) -> None:
        self._ops: dict[str, dict[int, OpRecord]] = {}
        self._ended: dict[str, tuple[int, Ended]] = {}
        self.edited: dict[int, int] = {}
        """The seq of each outcome that an edit replaced -> that of the event which replaced it."""
        self.reused: dict[int, int] = {}
        """The seq of each outcome of a parent that was taken over -> that of the event which took it over."""

    def add(self, header: Header, event: Event | None) -> None:
        """One more event of the lineage, in order. None: its body was destroyed."""
        kind = header.kind
        if kind in ("TaskFinished", "TaskFailed", "TaskCancelled") and header.op == 0:
            if event is not None:
                self._ended.setdefault(header.task, (header.seq, event))  # type: ignore[arg-type]
            return
        if not header.op:
            return
        if isinstance(event, ModelReplied) and event.edited:
            self.edited[event.edited] = header.seq
        if isinstance(event, ModelReplied | ToolReturned) and event.reused:
            self.reused[event.reused] = header.seq
        ops = self._ops.setdefault(header.task, {})
        record = ops.get(header.op)
        if record is None:
            record = ops[header.op] = OpRecord()
        if isinstance(event, Compacted):
            record.compactions.append(event)
        elif isinstance(event, ModelCalled | ToolCalled):
            record.called, record.called_seq = event, header.seq
            record.attempts = max(record.attempts, header.attempt)
        elif isinstance(event, Refused):
            record.refused = event
            if record.outcome is None:
                record.outcome, record.seq = event, header.seq
        elif isinstance(event, _OUTCOMES) and record.outcome is None:
            if isinstance(event, TaskSpawned) and "~" in event.path:
                return  # a system task is no op of its own
            record.outcome, record.seq = event, header.seq

    def take(self, task: str, op: int) -> OpRecord | None:
        """What is recorded of an op; it is given out once."""
        ops = self._ops.get(task)
        return ops.pop(op, None) if ops else None

    def ended(self, task: str) -> Ended | None:
        """How a task ended, if it did."""
        found = self._ended.get(task)
        return found[1] if found else None

    def ended_seq(self, task: str) -> int:
        """The seq at which a task ended, 0 if it did not."""
        found = self._ended.get(task)
        return found[0] if found else 0

    def ops(self, task: str) -> dict[int, OpRecord]:
        """The ops of a task that were not given out yet, by number."""
        return self._ops.get(task, {})

    def forget(self, task: str) -> None:
        """A task ended: nobody asks for its ops again."""
        self._ops.pop(task, None)


Spawned = tuple[str, str, str]
"""A child as its parent spawned it: its path, its key, the digest of the request."""


class Correspondence:
    """Which task of another run each task of this one continues.

    Roots correspond by path; children, under parents that correspond, by the key of their spawn, else by its
    digest and occurrence, so that one more child in front moves nothing else. `children_of` lists what a task
    of the other run spawned, in order. Invariant: a task of the other run is continued by one task only.
    """

    def __init__(self, children_of: Callable[[str], Iterable[Spawned]]) -> None:
        self._children_of = children_of
        self._theirs: dict[str, str] = {}
        self._free: dict[str, dict[tuple[str, str], Iterator[str]]] = {}

    def of(self, task: str) -> str | None:
        """The task of the other run, if there is one."""
        return self._theirs.get(task)

    def begin(self, task: str, parent: str, key: str, request: str) -> str | None:
        """A task began in this run: find the one that it continues. Tasks come in the order of their spawns."""
        above = self._theirs.get(parent) if parent else None
        if not parent:
            self._theirs[task] = task
        elif above is not None:
            if above not in self._free:
                self._free[above] = self._sorted(above)
            found = next(self._free[above].get(_kinship(key, request), iter(())), None)
            if found is not None:
                self._theirs[task] = found
        return self._theirs.get(task)

    def same(self, task: str, theirs: str) -> None:
        """Say which task another one continues, where that is known otherwise."""
        self._theirs[task] = theirs

    def _sorted(self, above: str) -> dict[tuple[str, str], Iterator[str]]:
        sorts: dict[tuple[str, str], list[str]] = {}
        for path, key, request in self._children_of(above):
            sorts.setdefault(_kinship(key, request), []).append(path)
        return {kin: iter(paths) for kin, paths in sorts.items()}


def _kinship(key: str, request: str) -> tuple[str, str]:
    return (key, "") if key else ("", request)


class Reuse:
    """Outcomes of the parent's whole log, for a fork that takes over what did not change; and its edits.

    Tools are taken over by every fork, for they touch the world; models only if `models` says so. Then tasks
    correspond as `Correspondence` says, otherwise by path; ops by number, else by digest among those not yet used.
    `load` reads the parent's journal, once it is needed. Used are from the start the outcomes up to the `cut`, which
    the fork shares, and those in `used`: what a fork took over or edited before its writer ended is not given out
    again to another op.
    """

    def __init__(
        self,
        load: Callable[[], Journal],
        edits: Iterable[Edit],
        models: bool,
        cut: int = 0,
        used: Collection[int] = (),
    ) -> None:
        self._load = load
        self._models = models
        self._cut, self._used = cut, set(used)
        self._by_request: dict[str, dict[str, deque[OpRecord]]] = {}
        self._loaded: Journal | None = None
        self._edits = {(edit.task, edit.op): edit for edit in edits}
        self._tasks = Correspondence(self._children)

    def correspond(self, task: str, parent: str, key: str, request: str) -> None:
        """A task began: find the one of the parent run that it continues."""
        if not parent or not self._models:
            self._tasks.same(task, task)
            return
        above = self._tasks.of(parent)
        if above is not None and task.startswith(parent + "~"):  # a system task, named after the op that caused it
            self._tasks.same(task, above + task[len(parent) :])
        elif above is not None:
            self._tasks.begin(task, parent, key, request)

    def _children(self, above: str) -> list[Spawned]:
        return [
            (record.outcome.path, record.outcome.key, record.outcome.request)
            for record in self._parent.ops(above).values()
            if isinstance(record.outcome, TaskSpawned)
        ]

    @property
    def unreached(self) -> list[int]:
        """The edits that were not given out: the seqs of the outcomes that they would replace."""
        return sorted(edit.seq for edit in self._edits.values())

    def edit(self, task: str, op: int) -> Edit | None:
        """The edit of this op's outcome, given out once."""
        return self._edits.pop((self._tasks.of(task) or "", op), None)

    def model(self, task: str, op: int, request: str) -> tuple[int, ModelReplied] | None:
        """A model's recorded answer to an equal request, with its seq; used up by this."""
        found = self._find(task, op, request) if self._models else None
        if found is None or not isinstance(found.outcome, ModelReplied) or found.outcome.failure is not None:
            return None
        return found.seq, found.outcome

    def tool(self, task: str, op: int, request: str) -> tuple[int, ToolReturned] | None:
        """A tool's recorded result for an equal request, with its seq; used up by this."""
        found = self._find(task, op, request)
        if found is None or not isinstance(found.outcome, ToolReturned):
            return None
        failure = found.outcome.failure
        return None if failure is not None and failure.kind == "cancelled" else (found.seq, found.outcome)

    @property
    def _parent(self) -> Journal:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def input(self, task: str, op: int, request: str) -> InputAdded | None:
        """A source as it was read by an equal request: inputs are read once."""
        found = self._find(task, op, request)
        return found.outcome if found is not None and isinstance(found.outcome, InputAdded) else None

    def _find(self, task: str, op: int, request: str) -> OpRecord | None:
        theirs = self._tasks.of(task)
        if theirs is None:
            return None
        found = self._parent.ops(theirs).get(op)
        if found is None or found.request != request or not self._free(found):
            equal = self._equal(theirs).get(request)
            while equal and not self._free(equal[0]):
                equal.popleft()
            found = equal[0] if equal else None
        if found is not None:
            self._used.add(found.seq)
        return found

    def _free(self, record: OpRecord) -> bool:
        outcome = isinstance(record.outcome, ModelReplied | ToolReturned | InputAdded)
        return outcome and record.seq > self._cut and record.seq not in self._used

    def _equal(self, theirs: str) -> dict[str, deque[OpRecord]]:
        """The outcomes of a task of the parent by request, in the order of ops: found without a walk over all of them."""
        index = self._by_request.get(theirs)
        if index is None:
            index = self._by_request[theirs] = {}
            for _, record in sorted(self._parent.ops(theirs).items()):
                if self._free(record):
                    index.setdefault(record.request, deque()).append(record)
        return index
