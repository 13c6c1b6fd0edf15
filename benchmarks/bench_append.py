"""What an append costs beside a raw SQLite commit, and how many fsyncs it takes.

`python -m benchmarks.bench_append`. Ours and the floor take turns; a figure is the median of the rounds. CPU is that
of all threads.
"""

import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import anyio
import msgspec

from benchmarks import row
from benchmarks.counted import run_counted, syncs
from treering.events.catalogue import RunConfig, Sampled, TaskSpawned
from treering.events.sqlite import SQLiteStore
from treering.runtime.runner import create_run, open_log
from treering.runtime.seams import ThreadWriter, World
from treering.runtime.sequencer import Sequencer

__all__ = ["main"]

_TEXT = "x" * 904
_ROUNDS, _SINGLE, _TASKS, _EACH = 7, 1000, 100, 300


class Clock:
    """CPU and wall seconds per append, and fsyncs, since it was made."""

    def __init__(self) -> None:
        self._syncs, self._cpu, self._wall = syncs(), time.process_time(), time.perf_counter()

    def per(self, appends: int) -> tuple[float, float, float]:
        return (
            (time.process_time() - self._cpu) / appends,
            (time.perf_counter() - self._wall) / appends,
            (syncs() - self._syncs) / appends,
        )


def _raw(path: Path) -> Callable[[int, int], tuple[float, float, float]]:
    """A bare table; calling it inserts rows, some each transaction, and says what that cost."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("CREATE TABLE rows(seq INTEGER PRIMARY KEY, header TEXT, body TEXT)")
    header = "h" * 200
    seq = 0

    def insert(each: int, total: int) -> tuple[float, float, float]:
        nonlocal seq
        clock = Clock()
        for _ in range(0, total, each):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO rows VALUES (?, ?, ?)", [(seq + at, header, _TEXT) for at in range(each)]
            )
            connection.execute("COMMIT")
            seq += each
        return clock.per(total)

    return insert


@asynccontextmanager
async def _sequencer(path: Path) -> AsyncIterator[Sequencer]:
    store = SQLiteStore(path)
    run = create_run(store, RunConfig("none"))
    lease = store.acquire(run)
    state, _, head, _ = open_log(store, run)
    writer = ThreadWriter(store, run, lease.epoch)
    sequencer = Sequencer(run, state, head, writer, World())
    sequencer.append(TaskSpawned("1", "none", "none"), "1")
    await sequencer.durable()
    yield sequencer
    writer.close()
    lease.release()
    store.close()


async def _measure(folder: Path) -> None:
    value = msgspec.Raw(b'"' + _TEXT.encode() + b'"')
    raw = _raw(folder / "raw.db")
    costs: list[int] = []
    single, bare, many, batched = [], [], [], []
    async with _sequencer(folder / "log.db") as sequencer:

        async def one(count: int) -> None:
            for _ in range(count):
                seq, _refused = sequencer.append(Sampled("now", value), "1", 1)
                await sequencer.durable(seq)

        await one(200)
        for _ in range(_ROUNDS):
            clock = Clock()
            for _ in range(_SINGLE):
                before = syncs()
                await one(1)
                costs.append(syncs() - before)
            single.append(clock.per(_SINGLE))
            bare.append(raw(1, _SINGLE))
            clock = Clock()
            async with anyio.create_task_group() as group:
                for _ in range(_TASKS):
                    group.start_soon(one, _EACH)
            many.append(clock.per(_TASKS * _EACH))
            batched.append(raw(100, _TASKS * _EACH))
    _print_single(costs, single, bare)
    _print_many(many, batched)


Costs = list[tuple[float, float, float]]


def _print_single(costs: list[int], single: Costs, bare: Costs) -> None:
    over = [(ours[0] - floor[0]) * 1e6 for ours, floor in zip(single, bare, strict=True)]
    cpu, floor_cpu = median(cost[0] for cost in single) * 1e6, median(cost[0] for cost in bare) * 1e6
    print(f"append, CPU us over a raw commit, by round: {' '.join(f'{cost:.0f}' for cost in sorted(over))}")
    row("append: CPU us over a raw commit", f"{cpu:.0f} us", f"{floor_cpu:.0f} us", median(over), 120)
    once = costs.count(1)
    rest = f"{len(costs) - once} of {len(costs)} ran a checkpoint: {sum(costs) / len(costs):.4f} with these"
    row("append: fsyncs", f"most {median(costs)}; {rest}", "1", median(costs), 1)


def _print_many(many: Costs, batched: Costs) -> None:
    walls = [floor[1] / ours[1] for ours, floor in zip(many, batched, strict=True)]
    cpus = [floor[0] / ours[0] for ours, floor in zip(many, batched, strict=True)]
    for what, ratios in (("rate", walls), ("CPU", cpus)):
        print(f"100 tasks, {what} over a raw commit of 100, by round: {' '.join(f'{x:.3f}' for x in sorted(ratios))}")
    rate, floor_rate = 1 / median(cost[1] for cost in many), 1 / median(cost[1] for cost in batched)
    row("100 tasks appending: rate", f"{rate:.0f}/s", f"{floor_rate:.0f}/s", median(walls), 0.2, most=False)
    each = median(cost[2] for cost in many)
    row("100 tasks appending: fsyncs each", f"{each:.4f}", "0.01", each, 0.05)


def main() -> None:
    """Measure in a process of its own, under the counting library."""
    if not run_counted("benchmarks.bench_append"):
        with tempfile.TemporaryDirectory() as where:
            anyio.run(_measure, Path(where))


if __name__ == "__main__":
    main()
