"""Looking at long runs from outside: diff, export and import on SQLite, in processes of their own.

`python -m benchmarks.bench_compare [--events 200000]`. Two runs of children with seven calls each, of which one reply
differs; and a fork at the end of the first. The peak of memory is that of the whole process, so that what does not
grow with the run shows.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks import row
from treering.events.catalogue import (
    Entry,
    Event,
    Limits,
    ModelCalled,
    ModelReplied,
    RunConfig,
    RunStarted,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    Usage,
)
from treering.events.codec import GENESIS, Record, seal
from treering.events.log import RunRow
from treering.events.sqlite import SQLiteStore
from treering.runtime.runner import fork_run

__all__ = ["main"]

_CALLS = 7
_EVENTS_A_CHILD = 2 * _CALLS + 3


def main(events: int = 200_000) -> None:
    """Measure and print; a rate is of events of one run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        store = SQLiteStore(path)
        for run, word in (("aaaa", "reply"), ("bbbb", "other")):
            store.create(RunRow(run, 1), _records(run, events // _EVENTS_A_CHILD, word))
        fork = fork_run(store, "aaaa", store.head("aaaa")[0] - 5)
        store.close()
        out = str(Path(folder) / "run.jsonl")
        for what, arguments, megabytes in (
            ("diff of two runs", ["diff", "aaaa", "bbbb"], 2000),
            ("diff of a run and its fork", ["diff", "aaaa", fork], 2000),
            ("export", ["export", "aaaa", "--out", out], 100),
            ("import", ["import", out, "--store", str(Path(folder) / "other.db")], 100),
        ):
            seconds, peak = _timed([*arguments, *([] if "--store" in arguments else ["--store", str(path)])])
            row(f"{what}, {events} events", f"{seconds:.1f} s, {events / seconds:.0f}/s", "peak MiB", peak, megabytes)


def _timed(arguments: list[str]) -> tuple[float, float]:
    """Seconds of CPU and MiB at the peak of one command."""
    program = "import sys, resource; from treering.cli.main import code_of; code = code_of(sys.argv[1:])\n" + (
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1024 if sys.platform == "linux" else 1024 * 1024
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, int(done.stderr.split()[-1]) / unit


def _records(run: str, children: int, word: str) -> Iterator[Record]:
    head = GENESIS
    for seq, (event, task, op) in enumerate(_events(children, word), start=1):
        _, record = seal(event, run, seq, int(time.time() * 1000) if seq > 1 else 1, bytes(16), head, task, op)
        head = record.digest
        yield record


def _events(children: int, word: str) -> Iterator[tuple[Event, str, int]]:
    limits = Limits(10, children + 1, children + 2)
    yield RunStarted(RunConfig("none", retention="none", limits=limits, weights="none")), "", 0
    yield TaskSpawned("1", "none", "all"), "1", 0
    for child in range(1, children + 1):
        path = f"1.{child}"
        yield TaskSpawned(path, "none", f"part {child}", request=f"s{child}"), "1", 2 * child - 1
        for op in range(1, _CALLS + 1):
            asked = Entry("user", (f"What stands in part {child}, place {op}? " * 4,), 30)
            yield ModelCalled(f"{child}.{op}", (asked,), 40 * op, 30), path, op
            said = word if (child, op) == (children // 2, 3) else "reply"
            yield (
                ModelReplied(f"The {said} to {child} {op}. " * 5, tokens=30, usage=Usage(40 * op, 0, 30, 0.1)),
                path,
                op,
            )
        yield TaskFinished(msgspec.Raw(b'"done"')), path, 0
        yield TaskJoined(path, f"j{child}"), "1", 2 * child
    yield TaskFinished(msgspec.Raw(b'"done"')), "1", 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=200_000)
    main(parser.parse_args().events)
