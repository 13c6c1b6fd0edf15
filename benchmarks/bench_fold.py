"""A fold of many events beside a bare decode and match over the same records.

`python -m benchmarks.bench_fold [--events 200000]`. The mix is what `fan-out` runs leave: of each child a spawn,
a model call and reply of about 300 bytes, something remembered, an end and a join.
"""

import argparse
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


def main(events: int = 200_000) -> None:
    """Print the row; the median of three rounds, interleaved."""
    records = _records(events)
    ratios, folds, bares = [], [], []
    for _ in range(3):
        started = time.process_time()
        for record in records:
            _match(decode(record).event)
        bare = time.process_time() - started
        started = time.process_time()
        state = new_state()
        for record in records:
            stored = decode(record)
            evolve(state, stored.header, stored.event)
        fold = time.process_time() - started
        ratios.append(bare / fold)
        folds.append(len(records) / fold)
        bares.append(len(records) / bare)
    middle = sorted(ratios)[1]
    row("fold of events", f"{sorted(folds)[1]:.0f}/s", f"{sorted(bares)[1]:.0f}/s", middle, 0.4, most=False)


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
    parser.add_argument("--events", type=int, default=200_000)
    main(parser.parse_args().events)
