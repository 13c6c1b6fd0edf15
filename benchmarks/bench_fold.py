"""A fold of many events beside a bare decode and match over the same records.

`python -m benchmarks.bench_fold [--events 1000000]`. The mix is what `fan-out` runs leave: of each child a spawn,
a model call and reply of about 300 bytes, something remembered, an end and a join. The two take turns at every
20,000 events, because the machine is not ours alone.
"""

import argparse
import gc
import time

from benchmarks import row
from treering.events.catalogue import (
    Entry,
    Event,
    ModelCalled,
    ModelReplied,
    Remembered,
    RunConfig,
    RunStarted,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    Usage,
)
from treering.events.codec import Record, decode, seal
from treering.runtime.state import evolve, new_state

__all__ = ["main"]

_CHILDREN = 30
_CHUNK = 20_000


def main(events: int = 1_000_000, rounds: int = 3) -> None:
    """Print the row; the median of the rounds."""
    records = _records(events)
    gc.freeze()  # a run is read from its store row by row: no collector meets a list of all its records
    found = sorted((_round(records) for _ in range(rounds)), key=lambda one: one[1] / one[0])
    print(f"fold over bare, by round: {' '.join(f'{bare / fold:.3f}' for fold, bare in found)}")
    fold, bare = found[rounds // 2]
    figures = f"{len(records) / fold:.0f}/s", f"{len(records) / bare:.0f}/s"
    row(f"fold of {len(records)} events", *figures, bare / fold, 0.4, most=False)


def _round(records: list[Record]) -> tuple[float, float]:
    """CPU seconds of the fold and of a bare decode and match."""
    fold = bare = 0.0
    state = new_state()
    for start in range(0, len(records), _CHUNK):
        part = records[start : start + _CHUNK]
        began = time.process_time()
        for record in part:
            _match(decode(record).event)
        between = time.process_time()
        for record in part:
            stored = decode(record)
            evolve(state, stored.header, stored.event)
        fold += time.process_time() - between
        bare += between - began
    return fold, bare


def _match(event: Event | None) -> int:
    match event:
        case ModelCalled():
            return 1
        case ModelReplied():
            return 2
        case TaskSpawned():
            return 3
        case TaskFinished():
            return 4
        case TaskJoined():
            return 5
        case Remembered():
            return 6
        case _:
            return 0


def _records(count: int) -> list[Record]:
    found: list[Record] = []
    previous = bytes(32)

    def add(event: Event, task: str = "", op: int = 0) -> None:
        nonlocal previous
        _, record = seal(event, "bench", len(found) + 1, 0, b"s" * 16, previous, task, op)
        previous = record.digest
        found.append(record)

    text = "The harbour master of Split wrote that the parrot was green. " * 5
    add(RunStarted(RunConfig("bench")))
    root = 0
    while len(found) < count:
        root += 1
        path = str(root)
        add(TaskSpawned(path, "bench", "goal"), path)
        for child in range(1, _CHILDREN + 1):
            below = f"{path}.{child}"
            add(TaskSpawned(below, "leaf", "part", request="r"), path, child * 2 - 1)
            add(ModelCalled("r", (Entry("user", (text,), 60),), 62, 40), below, 1)
            add(ModelReplied(text, tokens=60, usage=Usage(62, 0, 60, 0.1)), below, 1)
            add(Remembered(f"m{len(found)}", text[:80], 15, request="r"), below, 2)
            add(TaskFinished(), below)
            add(TaskJoined(below, "r"), path, child * 2)
        add(TaskFinished(), path)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    main(parser.parse_args().events)
