"""Listing: the runs of a store at a glance.

Owns a summary of a run that needs no fold of its log. It reads only what begins and ends tasks, and of that only
what concerns roots. It changes nothing.
"""

import msgspec

from treering.events.catalogue import RunStarted, TaskSpawned
from treering.events.codec import decode, decode_header
from treering.events.log import LogStore, RunRow, record_at

__all__ = ["Summary", "elapsed_s", "standing", "summarise"]

_STATUS = {"TaskFinished": "finished", "TaskFailed": "failed", "TaskCancelled": "cancelled"}


class Summary(msgspec.Struct, frozen=True):
    """A run, with its last question and what became of it.

    `status` is `empty`, `running`, `interrupted` (it did not end, and nobody goes on with it), `finished`, `failed`,
    `cancelled` or `imported`.
    """

    row: RunRow
    status: str
    goal: str
    events: int


def elapsed_s(store: LogStore, run: str, until: int | None = None) -> float:
    """For how long somebody went on with a run, up to event `until`: not from one's last event to the next's first."""
    last = store.head(run)[0] if until is None else until
    begins = [record.seq for record in store.read(run, until=last, kinds=("RunStarted", "RunResumed", "RunForked"))]
    ends = [*(seq - 1 for seq in begins[1:]), last]

    def at(seq: int) -> int:
        return decode_header(record_at(store, run, seq).header).at

    return sum(at(end) - at(begin) for begin, end in zip(begins, ends, strict=True)) / 1000


def standing(store: LogStore, run: str, status: str) -> str:
    """The status of a run as it stands now: what its log calls running is interrupted where nobody holds it."""
    return "interrupted" if status == "running" and not store.holder(run) else status


def summarise(store: LogStore, row: RunRow) -> Summary:
    """What a fold of the run's whole log would say of its last root, and whether somebody goes on with it."""
    path = goal = ""
    status = "empty"
    imported = False
    for record in store.read(row.run, kinds=("RunStarted", "TaskSpawned", *_STATUS)):
        header = decode_header(record.header)
        if header.kind == "RunStarted":
            started = decode(record).event
            imported = isinstance(started, RunStarted) and bool(started.config.origin)
        elif header.kind == "TaskSpawned" and header.op == 0:
            event = decode(record).event
            path, goal, status = header.task, event.goal if isinstance(event, TaskSpawned) else "", "running"
        elif header.task == path and header.op == 0 and status == "running":
            status = _STATUS.get(header.kind, status)
    status = "imported" if imported else standing(store, row.run, status)
    return Summary(row, status, goal, store.head(row.run)[0])
