"""Forks: new runs that share the past of another.

Owns where a fork is cut and the first events of its own part. It copies no event and performs nothing.
Invariant: a fork's first event chains from its parent's event at the cut.
"""

from collections.abc import Sequence
from math import isfinite

from treering.events.catalogue import (
    Edit,
    Event,
    ModelReplied,
    Refused,
    RunConfig,
    RunForked,
    Sampled,
    TaskCancelled,
    TaskSpawned,
)
from treering.events.codec import Record, Stored, decode, decode_header, seal
from treering.events.errors import UsageError
from treering.events.log import LogStore, RunRow, record_at, root_of_cut
from treering.runtime.deriving import DERIVED
from treering.runtime.seams import Seams, World, new_run_id

__all__ = ["cut_before", "cut_without", "fork_run"]

_MOST_DERIVED = 1000


def fork_run(
    store: LogStore,
    parent: str,
    at: int,
    edits: Sequence[tuple[int, str]] = (),
    reuse: bool | None = None,
    config: RunConfig | None = None,
    seams: Seams | None = None,
    agent: str = "",
) -> str:
    """A new run that shares its parent's events up to `at`; its id. A pointer: no event is copied.

    Each edit is (seq of an outcome, the text that it shall have); the cut is then before the first of them.
    `config` holds for ops outside of the shared part. With `agent`, the question that event `at` belongs to is
    asked again, of that agent: the cut is before it. `reuse` takes over the parent's later outcomes where the
    request is equal; by default if there are edits or an agent.
    Raises UsageError for an event that is not there or is no outcome of a model call.
    """
    seams = seams or World()
    cut = cut_before(store, parent, at, [seq for seq, _ in edits])
    found = tuple(_edit(store, parent, seq, text) for seq, text in edits)
    asked: TaskSpawned | None = None
    if agent:
        asked, cut = _question_at(store, parent, cut)
        asked = TaskSpawned(asked.path, agent, asked.goal, asked.inputs)
    elif not edits:
        cut = _with_derived(store, parent, cut)
    at_cut = record_at(store, parent, cut)
    owner = root_of_cut(store.row, parent, cut)
    run = new_run_id(seams)
    takes_over = bool(edits or agent) if reuse is None else reuse
    now = seams.now_ms()
    records: list[Record] = []

    def record(event: Event, task: str = "") -> None:
        previous = records[-1].digest if records else at_cut.digest
        seq = cut + 1 + len(records)
        records.append(seal(event, run, seq, now, seams.entropy(16), previous, task)[1])

    record(RunForked(parent, cut, config, found, takes_over))
    if asked is not None:
        record(asked, asked.path)
    store.create(RunRow(run, now, owner, cut), records)
    return run


def cut_before(store: LogStore, parent: str, at: int, edited: Sequence[int]) -> int:
    """The last event that a fork at `at` with edits of these events shares. Raises UsageError if there is none."""
    cut = min([at, *(seq - 1 for seq in edited)])
    last, _ = store.head(parent)
    if not 1 <= cut <= last:
        raise UsageError(f"expected an event from 1 to {last} to fork at, found {cut}")
    return cut


def cut_without(store: LogStore, run: str, seq: int) -> int:
    """The last event that a fork can share which does not share event `seq`."""
    while (record := record_at(store, run, seq)).seq > 1 and _shares(store, run, record):
        seq -= 1
    return seq - 1


def _with_derived(store: LogStore, parent: str, cut: int) -> int:
    """The cut behind what its event causes: that shares its transaction, and stays with it in a fork."""
    for record in store.read(parent, after=cut, until=cut + _MOST_DERIVED):
        if not _shares(store, parent, record):
            break
        cut = record.seq
    return cut


def _shares(store: LogStore, run: str, record: Record) -> bool:
    """Whether an event shares the transaction of the one before it, and so stays with it in a fork."""
    event = decode(record).event
    if isinstance(event, TaskCancelled | Sampled):  # tasks are ended with the op that ended them
        before = record_at(store, run, record.seq - 1)
        by_an_op = isinstance(event, TaskCancelled) or event.what in ("cancel", "abandoned")
        return by_an_op and decode(before).header.kind == "TaskCancelled"
    return isinstance(event, (*DERIVED, Refused))


def _edit(store: LogStore, parent: str, seq: int, text: str) -> Edit:
    stored = _stored(store, parent, seq)
    if stored is None or stored.header.kind != "ModelReplied":
        kind = stored.header.kind if stored else "nothing"
        raise UsageError(f"expected event {seq} to be the outcome of a model call (ModelReplied), found {kind}")
    reply = stored.event
    assert isinstance(reply, ModelReplied)
    if reply.logprob is not None and not reply.usage.generated and not _is_number(text):
        raise UsageError(
            f"expected a number for event {seq}, which is how likely a model found a text (log-probability per token, "
            f"{reply.logprob:.3f}), found {text!r}"
        )
    return Edit(seq, stored.header.task, stored.header.op, text)


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _question_at(store: LogStore, parent: str, cut: int) -> tuple[TaskSpawned, int]:
    """The root that event `cut` belongs to, and the cut before it."""
    found: Record | None = None
    for record in store.read(parent, until=cut, kinds=("TaskSpawned",)):
        if decode_header(record.header).op == 0:  # of no op of a task: a root
            found = record
    asked = None if found is None else decode(found).event
    if found is None or not isinstance(asked, TaskSpawned):
        raise UsageError(f"expected a question at or before event {cut} to ask again, found none")
    return asked, found.seq - 1


def _stored(store: LogStore, run: str, seq: int) -> Stored | None:
    for record in store.read(run, after=seq - 1, until=seq):
        return decode(record)
    return None
