"""The journal: what the log already answers.

Owns the recorded requests and outcomes by task and op, the edits of a fork, and the outcomes that a fork with
reuse may take over. It never performs anything. Invariant: an outcome is given out for one op only.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable

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
)

__all__ = ["Ended", "Journal", "OpRecord", "Reuse"]

Ended = TaskFinished | TaskFailed | TaskCancelled
_OUTCOMES = (
    InputAdded,
    TaskSpawned,
    TaskJoined,
    ModelReplied,
    ToolReturned,
    Remembered,
    Recalled,
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


class Reuse:
    """Outcomes of the parent's whole log, for a fork that takes over what did not change; and its edits.

    Tools are taken over by every fork, for they touch the world; models only if `models` says so. Then tasks
    correspond by the key of their spawn, else by its digest and occurrence, otherwise by path; ops by number,
    else by digest among those not yet used. `load` reads the parent's journal, once it is needed. Used are from the
    start the outcomes up to the `cut`, which the fork shares, and those in `used`: what a fork took over or edited
    before its writer ended is not given out again to another op.
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
        self._tasks: dict[str, str] = {}
        self._spawned: dict[str, list[tuple[str, str, str]]] = {}
        self._taken: set[str] = set()

    def correspond(self, task: str, parent: str, key: str, request: str) -> None:
        """A task began: find the one of the parent run that it continues. Roots correspond by path."""
        if not parent or not self._models:
            self._tasks[task] = task
            return
        above = self._tasks.get(parent)
        if above is None:
            return
        if task.startswith(parent + "~"):  # a system task, named after the op that caused it
            self._tasks[task] = above + task[len(parent) :]
            return
        if above not in self._spawned:
            self._spawned[above] = [
                (record.outcome.path, record.outcome.key, record.outcome.request)
                for record in self._parent.ops(above).values()
                if isinstance(record.outcome, TaskSpawned)
            ]
        for path, its_key, its_request in self._spawned[above]:
            if path not in self._taken and (its_key == key if key else not its_key and its_request == request):
                self._taken.add(path)
                self._tasks[task] = path
                return

    @property
    def unreached(self) -> list[int]:
        """The edits that were not given out: the seqs of the outcomes that they would replace."""
        return sorted(edit.seq for edit in self._edits.values())

    def edit(self, task: str, op: int) -> Edit | None:
        """The edit of this op's outcome, given out once."""
        return self._edits.pop((self._tasks.get(task, ""), op), None)

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
        theirs = self._tasks.get(task)
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
