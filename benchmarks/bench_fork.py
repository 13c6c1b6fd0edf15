"""Forks at the end of a long run on SQLite: fsyncs, CPU time and growth of the database.

`python -m benchmarks.bench_fork`.
"""

import sqlite3
import tempfile
import time
from pathlib import Path

from benchmarks import row
from benchmarks.counted import run_counted, syncs
from treering.events.catalogue import Header, RunConfig, Sampled, TaskSpawned
from treering.events.codec import body_digest, encode, to_json
from treering.events.sqlite import SQLiteStore
from treering.runtime.runner import create_run, fork_run


def _pages(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size


def main() -> None:
    """Measure in a process of its own, under the counting library."""
    if not run_counted("benchmarks.bench_fork"):
        _measure()


def _measure(events: int = 100_000, forks: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        store = SQLiteStore(path)
        run = create_run(store, RunConfig("none"))
        lease = store.acquire(run)
        seq, head = store.head(run)
        records = []
        for number in range(events - seq):
            event = Sampled("now", b"1") if number else TaskSpawned("1", "none", "")
            body, salt = to_json(event), bytes(16)
            kind = type(event).__name__
            header = Header(run, seq + 1 + number, kind, 0, body_digest(salt, body), "1", number)
            records.append(encode(header, body, salt, head))
            head = records[-1].digest
        store.append(run, lease.epoch, records)
        before, costs, start = _pages(path), [], time.process_time()
        for _ in range(forks):
            already = syncs()
            fork_run(store, run, events)
            costs.append(syncs() - already)
        used = (time.process_time() - start) / forks * 1000
        grown = (_pages(path) - before) / forks
        row(f"fork at {events} events, CPU ms", f"{used:.3f}", "none", used, 2)
        most = sorted(costs)[forks // 2]
        rest = f"most {most}; {forks - costs.count(1)} of {forks} took others, {sum(costs) / forks:.3f} with these"
        row("fork: fsyncs", rest, "1", most, 1)
        row("fork, bytes of growth", f"{grown:.0f}", "none", grown, 1024)
        lease.release()
        store.close()


if __name__ == "__main__":
    main()
