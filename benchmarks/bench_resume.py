"""Resuming a run of many recorded ops on SQLite, beside a bare read and decode of the same log.

`python -m benchmarks.bench_resume [--ops 100000]`. One root that has not ended made all the ops: of four, a model
call out of the window, something remembered, a look at the clock and a random number. Resuming reads the log, folds
it, enters the agent again and takes every outcome from the journal, until it comes to its first new op.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import anyio

from benchmarks import row
from treering.events.catalogue import RunConfig
from treering.events.codec import decode
from treering.events.in_memory import InMemoryStore
from treering.events.sqlite import SQLiteStore
from treering.runtime.runner import Runner, create_run, open_log
from treering.runtime.task import Task
from treering.runtime.testing import ScriptedEngine


async def _until_new(store: InMemoryStore | SQLiteStore, run: str, ops: int, ask: bool) -> list[float]:
    """Run until the first new op; CPU and wall seconds, and the CPU seconds of them that opening took."""
    reached = anyio.Event()
    ended: list[float] = []

    async def job(task: Task, goal: str) -> str:
        for number in range(ops // 4):
            await task.generate(f"Who kept parrot {number}?", max_tokens=8, keep=False)
            await task.remember(f"Parrot {number} is green.")
            await task.now()
            await task.random()
        ended.extend((time.process_time(), time.perf_counter()))
        reached.set()
        await task.sleep(3600)
        return ""

    async def go(runner: Runner) -> None:
        raise AssertionError(await (runner.ask("") if ask else runner.resume()))

    began = [time.process_time(), time.perf_counter()]
    async with Runner(store, run, ScriptedEngine(lambda request: "Nobody."), agents={"job": job}) as runner:
        opened = time.process_time()
        async with anyio.create_task_group() as group:
            group.start_soon(go, runner)
            await reached.wait()
            group.cancel_scope.cancel()
    return [*(b - a for a, b in zip(began, ended, strict=True)), opened - began[0]]


async def _measure(path: Path, ops: int, rounds: int) -> None:
    memory = InMemoryStore()
    run = create_run(memory, RunConfig("job", retention="none", window_tokens=4096))
    await _until_new(memory, run, ops, ask=True)
    store = SQLiteStore(path)
    store.create(memory.row(run), list(memory.read(run)))
    del memory
    store.acquire(run).release()  # the writer that made the run
    resumed, floors, folds = [], [], []
    for _ in range(rounds):
        began = time.process_time()
        events = sum(1 for _ in map(decode, store.read(run)))
        floors.append(time.process_time() - began)
        began = time.process_time()
        open_log(store, run)
        folds.append(time.process_time() - began)
        resumed.append(await _until_new(store, run, ops, ask=False))
    store.close()
    cpu, wall, opening = (median(one[at] for one in resumed) for at in range(3))
    floor = median(floors)
    print(
        f"resuming {ops} ops, {events} events: {cpu:.2f} s CPU ({wall:.2f} s), {ops / cpu:.0f} ops/s; opening takes "
        f"{opening:.2f} s of it (read, fold and journal: {median(folds):.2f} s); a bare read and decode {floor:.2f} s"
    )
    row(f"resuming {ops} ops", f"{cpu:.2f} s CPU", f"{floor:.2f} s CPU", cpu / floor)


def main(ops: int = 100_000, rounds: int = 3) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(_measure, Path(folder) / "log.db", ops, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", type=int, default=100_000)
    main(parser.parse_args().ops)
