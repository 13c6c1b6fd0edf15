"""Listing: the runs of a store at a glance.

Owns a summary of a run that needs no fold of its log. It reads only what begins and ends tasks, and of that only
what concerns roots. It changes nothing.
"""

import msgspec

from treering.events.catalogue import RunStarted, TaskSpawned
from treering.events.codec import decode, decode_header
from treering.events.log import LogStore, RunRow

__all__ = ["Summary", "summarise"]

_STATUS = {"TaskFinished": "finished", "TaskFailed": "failed", "TaskCancelled": "cancelled"}


class Summary(msgspec.Struct, frozen=True):
    """A run, with its last question and what became of it: `empty`, `running`, `finished`, `failed`, `cancelled`,
    `imported`."""

    row: RunRow
    status: str
    goal: str
    events: int


def summarise(store: LogStore, row: RunRow) -> Summary:
    """What a fold of the run's whole log would say of its last root."""
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
    return Summary(row, "imported" if imported else status, goal, store.head(row.run)[0])
