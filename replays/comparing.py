"""Compare: where two runs parted.

Owns the alignment of two logs (tasks by correspondence, ops by number) and the first op that differs in each
task. It changes nothing and asks no model. Invariant: runs that are equal (outcomes by task and op, and
results) have no partings; what a fork shares with its parent is not read again.
"""

from collections.abc import Iterator
from hashlib import blake2b

import msgspec

from treering.events.catalogue import (
    Compacted,
    Event,
    Header,
    ModelCalled,
    Recalled,
    Refused,
    Remembered,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    ToolCalled,
)
from treering.events.codec import decode, to_json
from treering.events.log import LogStore, lineage
from treering.runtime.journal import Correspondence
from treering.runtime.state import parent_path

__all__ = ["Alignment", "Parting", "Recorded", "Spawn", "TaskLog", "align", "partings"]

_UNSTEADY = frozenset(("usage", "seconds", "reused", "edited", "cause", "path", "child", "by"))
"""What equal outcomes may differ in: time, cost, whose they were first, and how tasks are called."""


class Recorded(msgspec.Struct, gc=False):
    """One op: the digest of its request ("" if not known), the kind and digest of its outcome, and their seqs.

    `about` is the task that it spawned or joined, or the memory that it wrote.
    """

    request: str = ""
    called: int = 0
    kind: str = ""
    digest: str = ""
    seq: int = 0
    compacted: str = ""
    compacted_seq: int = 0
    about: str = ""


class Spawn(msgspec.Struct, frozen=True, gc=False):
    """How a task began: op `op` of `parent` ("" for a root), at event `seq`."""

    parent: str
    op: int
    key: str
    request: str
    agent: str
    seq: int


class TaskLog(msgspec.Struct):
    """What one task did in a part of a log. `spawn` is None for a task that is older than that part."""

    ops: dict[int, Recorded] = {}
    children: list[str] = []
    spawn: Spawn | None = None
    end: tuple[str, str, int] | None = None


class Alignment(msgspec.Struct):
    """Two logs side by side. They share the events up to `shared`; `a` and `b` are what comes after, by task.

    `pairs` leads from each task of B to the one of A that it continues; `only_a` and `only_b` are the tasks
    that have no counterpart, without those below them.
    """

    run_a: str
    run_b: str
    shared: int
    a: dict[str, TaskLog]
    b: dict[str, TaskLog]
    pairs: dict[str, str]
    only_a: list[str]
    only_b: list[str]


class Parting(msgspec.Struct, frozen=True):
    """The first op at which two tasks that correspond differ; 0 is the task's end.

    `what` is `asked` (another request), `answered` (another outcome), `joined` (a child with another result),
    `compacted`, `ended`, `only a` or `only b`. `others` are the later ops that differ.
    """

    a: str
    b: str
    op: int
    what: str
    others: tuple[int, ...] = ()


def align(store: LogStore, run_a: str, run_b: str) -> Alignment:
    """Lay two runs side by side. It takes a few hundred bytes for each op that they do not share."""
    shared = _shared(store, run_a, run_b)
    a, b = _read(store, run_a, shared), _read(store, run_b, shared)
    pairs = _pair(a, b)
    taken = set(pairs.values())
    return Alignment(
        run_a,
        run_b,
        shared,
        a,
        b,
        pairs,
        [path for path in a if path not in taken and (parent_path(path) in taken or not parent_path(path))],
        [path for path in b if path not in pairs and (parent_path(path) in pairs or not parent_path(path))],
    )


def partings(aligned: Alignment) -> Iterator[Parting]:
    """The tasks that differ, in the order in which B began them."""
    nothing = TaskLog()
    for b, a in aligned.pairs.items():
        ours, theirs = aligned.a.get(a, nothing), aligned.b.get(b, nothing)
        found = [
            (op, what)
            for op in sorted(ours.ops.keys() | theirs.ops.keys())
            if (what := _difference(aligned, ours.ops.get(op), theirs.ops.get(op)))
        ]
        if not found and _end(ours) != _end(theirs):
            found = [(0, "ended")]
        if found:
            op, what = found[0]
            yield Parting(a, b, op, what, tuple(op for op, _ in found[1:]))


def _difference(aligned: Alignment, a: Recorded | None, b: Recorded | None) -> str:
    """How one op differs, "" if it does not."""
    if a is None or b is None:
        return "only b" if a is None else "only a"
    if a.compacted != b.compacted:
        return "compacted"
    if a.kind == b.kind == "TaskJoined":
        ours, theirs = aligned.a.get(a.about), aligned.b.get(b.about)
        same = aligned.pairs.get(b.about, b.about) == a.about
        return "" if same and _end(ours) == _end(theirs) else "joined"
    if a.request != b.request and a.request and b.request:
        return "asked"
    return "" if (a.kind, a.digest) == (b.kind, b.digest) else "answered"


def _end(log: TaskLog | None) -> tuple[str, str]:
    return log.end[:2] if log is not None and log.end is not None else ("", "")


# --- reading ------------------------------------------------------------------------------------------------


def _shared(store: LogStore, run_a: str, run_b: str) -> int:
    """The last event that both lineages hold."""
    last = 0
    for one, other in zip(lineage(store.row, run_a), lineage(store.row, run_b), strict=False):
        if one.run != other.run:
            break
        ends = [segment.until for segment in (one, other) if segment.until is not None]
        last = min(ends) if ends else store.head(one.run)[0]
        if one.until != other.until:
            break
    return last


def _read(store: LogStore, run: str, after: int) -> dict[str, TaskLog]:
    logs: dict[str, TaskLog] = {}
    for record in store.read(run, after=after):
        stored = decode(record)
        if stored.header.task:
            _note(logs, stored.header, stored.event)
    return logs


def _note(logs: dict[str, TaskLog], header: Header, event: Event | None) -> None:
    if isinstance(event, TaskSpawned):
        child = logs.setdefault(event.path, TaskLog())
        is_root = event.path == header.task
        parent = "" if is_root else header.task
        child.spawn = Spawn(parent, header.op, event.key, event.request, event.agent, header.seq)
        if is_root:
            return
        logs.setdefault(parent, TaskLog()).children.append(event.path)
        if "~" in event.path:
            return  # a system task is no op of its own
    log = logs.setdefault(header.task, TaskLog())
    if not header.op:
        if isinstance(event, TaskFinished | TaskFailed | TaskCancelled) and log.end is None:
            log.end = (header.kind, _digest(header, event), header.seq)
        return
    op = log.ops.setdefault(header.op, Recorded())
    if isinstance(event, ModelCalled | ToolCalled):
        op.request, op.called = event.request, header.seq
    elif isinstance(event, Compacted):
        op.compacted = _digest(header, event, op.compacted)
        op.compacted_seq = op.compacted_seq or header.seq
    elif isinstance(event, Refused) and op.kind:
        op.digest = _digest(header, event, op.digest)  # a spawn that is not allowed
    elif not op.kind:
        op.kind, op.seq, op.digest = header.kind, header.seq, _digest(header, event)
        op.request = op.request or getattr(event, "request", "")
        if isinstance(event, TaskSpawned):
            op.about = event.path
        elif isinstance(event, TaskJoined):
            op.about = event.child
        elif isinstance(event, Remembered):
            op.about = event.id
        elif isinstance(event, Recalled):
            op.request = ""  # what it asked for is in its digest


def _digest(header: Header, event: Event | None, before: str = "") -> str:
    if event is None:
        return header.body  # destroyed: equal to itself alone
    steady = [getattr(event, name) for name in event.__struct_fields__ if name not in _UNSTEADY]
    return blake2b(before.encode() + to_json(steady), digest_size=12).hexdigest()


# --- who continues whom -------------------------------------------------------------------------------------


def _pair(a: dict[str, TaskLog], b: dict[str, TaskLog]) -> dict[str, str]:
    theirs = Correspondence(
        lambda path: [
            (child, spawn.key, spawn.request)
            for child in (a[path].children if path in a else ())
            if (spawn := a[child].spawn) is not None and "~" not in child
        ]
    )
    pairs: dict[str, str] = {}
    for path in sorted(a.keys() | b.keys(), key=_by_place):
        old = all(logs[path].spawn is None for logs in (a, b) if path in logs)
        if old or (not parent_path(path) and path in a and path in b):
            theirs.same(path, path)
            pairs[path] = path
    waiting = list(pairs)
    for path in waiting:  # grows as tasks are found
        found = _pair_children(a, b, theirs, path, pairs[path])
        pairs.update(found)
        waiting.extend(found)
    return {path: pairs[path] for path in sorted(pairs, key=_by_place)}


def _pair_children(
    a: dict[str, TaskLog], b: dict[str, TaskLog], theirs: Correspondence, path: str, above: str
) -> dict[str, str]:
    """The children of one task and whom they continue: by correspondence, else by op if the agent is the same."""
    if path not in b:
        return {}
    found: dict[str, str] = {}
    left: list[tuple[str, Spawn]] = []
    for child in b[path].children:
        spawn = b[child].spawn
        assert spawn is not None
        if "~" in child:
            match = above + child[len(path) :]
            match = match if match in a else ""
        else:
            match = theirs.begin(child, path, spawn.key, spawn.request) or ""
        if match:
            found[child] = match
        else:
            left.append((child, spawn))
    if left and above in a:
        taken = set(found.values())
        free = {spawn.op: (child, spawn) for child in a[above].children if (spawn := a[child].spawn) is not None}
        for child, spawn in left:
            other, its = free.get(spawn.op, ("", None))
            if its is not None and other not in taken and its.agent == spawn.agent and "~" not in child + other:
                found[child] = other
                theirs.same(child, other)
    return found


def _by_place(path: str) -> list[tuple[int, int]]:
    """Tasks in the order of their paths, system tasks after the children."""
    parts = path.replace("~", ".~").split(".")
    return [(part.startswith("~"), int(part.lstrip("~"))) for part in parts]
