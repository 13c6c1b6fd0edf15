"""What an append costs beside a raw SQLite commit, and how many fsyncs it takes.

`python -m benchmarks.bench_append`. fsync is counted, and made free, by a small library that stands in for the
system's call, so that what is measured is software. CPU is that of all threads.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
import msgspec

from benchmarks import row
from treering.events.catalogue import RunConfig, Sampled, TaskSpawned
from treering.events.sqlite import SQLiteStore
from treering.runtime.runner import create_run, open_log
from treering.runtime.seams import ThreadWriter, World
from treering.runtime.sequencer import Sequencer

__all__ = ["main"]

_SHIM = """
#include <stdio.h>
#include <stdlib.h>
static long count;
int fsync(int f) { count++; return 0; }
int fdatasync(int f) { count++; return 0; }
long treering_syncs(void) { return count; }
"""
_TEXT = "x" * 904
_SINGLE, _TASKS, _EACH = 3000, 100, 100


def main() -> None:
    """Measure in a process of its own, under the counting library."""
    if shutil.which("gcc") is None:
        print("bench_append: skipped, it needs gcc to count fsyncs")
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "count.c"), Path(folder, "count.so")
        source.write_text(_SHIM)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_append", "--counted"],
            env={**os.environ, "LD_PRELOAD": str(library)},
            check=True,
        )


def _syncs() -> int:
    import ctypes

    return int(ctypes.CDLL(None).treering_syncs())


def _raw(folder: Path, each: int, total: int) -> tuple[float, float]:
    """CPU and wall seconds per row of a bare table, `each` rows a transaction."""
    connection = sqlite3.connect(folder / f"raw{each}.db", isolation_level=None)
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("CREATE TABLE rows(seq INTEGER PRIMARY KEY, header TEXT, body TEXT)")
    header = "h" * 200
    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, total, each):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO rows VALUES (?, ?, ?)", [(start + at, header, _TEXT) for at in range(each)]
        )
        connection.execute("COMMIT")
    found = (time.process_time() - cpu) / total, (time.perf_counter() - wall) / total
    connection.close()
    return found


async def _measure(folder: Path) -> None:
    store = SQLiteStore(folder / "log.db")
    run = create_run(store, RunConfig("none"))
    lease = store.acquire(run)
    state, _, head, _ = open_log(store, run)
    writer = ThreadWriter(store, run, lease.epoch)
    sequencer = Sequencer(run, state, head, writer, World())
    value = msgspec.Raw(b'"' + _TEXT.encode() + b'"')
    sequencer.append(TaskSpawned("1", "none", "none"), "1")
    await sequencer.durable()

    async def one(count: int) -> None:
        for _ in range(count):
            seq, _refused = sequencer.append(Sampled("now", value), "1", 1)
            await sequencer.durable(seq)

    await one(200)
    syncs, cpu = _syncs(), time.process_time()
    await one(_SINGLE)
    cpu_single, syncs_single = (time.process_time() - cpu) / _SINGLE, (_syncs() - syncs) / _SINGLE
    syncs, wall = _syncs(), time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(_TASKS):
            group.start_soon(one, _EACH)
    many = _TASKS * _EACH
    wall_many, syncs_many = (time.perf_counter() - wall) / many, (_syncs() - syncs) / many
    writer.close()
    lease.release()
    store.close()
    raw_cpu, _ = _raw(folder, 1, _SINGLE)
    _, raw_wall = _raw(folder, 100, many)
    over = (cpu_single - raw_cpu) * 1e6
    row("append: CPU us over a raw commit", f"{cpu_single * 1e6:.0f} us", f"{raw_cpu * 1e6:.0f} us", over, 120)
    row("append: fsyncs each", f"{syncs_single:.4f}", "1", round(syncs_single, 2), 1)
    ratio = raw_wall / wall_many
    row("100 tasks appending: rate", f"{1 / wall_many:.0f}/s", f"{1 / raw_wall:.0f}/s", ratio, 0.2, most=False)
    row("100 tasks appending: fsyncs each", f"{syncs_many:.4f}", "0.01", syncs_many, 0.05)


if __name__ == "__main__":
    if "--counted" in sys.argv:
        with tempfile.TemporaryDirectory() as where:
            anyio.run(_measure, Path(where))
    else:
        main()
