"""One long conversation on SQLite: bytes a step must not grow with its length."""

import sqlite3
import tempfile
import time
from pathlib import Path

import anyio

from benchmarks import row
from treering.events.catalogue import RunConfig
from treering.events.sqlite import SQLiteStore
from treering.runtime.runner import Runner, create_run
from treering.runtime.task import Task
from treering.runtime.testing import ScriptedEngine

_PAYLOAD = "x" * 904


async def _measure(path: Path, steps: int) -> None:
    marks: dict[int, tuple[int, float]] = {}

    def mark(step: int) -> None:
        with sqlite3.connect(path) as connection:
            query = "SELECT sum(length(header) + length(body) + length(salt) + length(digest)) FROM events"
            marks[step] = (connection.execute(query).fetchone()[0], time.process_time())

    async def talk(task: Task, goal: str) -> str:
        for step in range(steps):
            if step in (50, 150, steps - 100):
                mark(step)
            await task.generate(_PAYLOAD, max_tokens=4)
        mark(steps)
        return ""

    store = SQLiteStore(path)
    run = create_run(store, RunConfig("talk", window_tokens=1 << 30))
    engine = ScriptedEngine(lambda request: "ok", context_tokens=1 << 30)
    async with Runner(store, run, engine, agents={"talk": talk}) as runner:
        outcome = await runner.ask("")
    assert outcome.status == "finished", outcome.error
    store.close()
    early, late = (
        [(b - a) / 100 for a, b in zip(marks[x], marks[y], strict=True)] for x, y in ((50, 150), (steps - 100, steps))
    )
    row(f"bytes a step at {steps}, by 100", f"{late[0]:.0f}", f"{early[0]:.0f}", late[0] / early[0], 1.1)
    row("bytes a step over payload", f"{late[0]:.0f}", "904", late[0] / 904, 2)
    print(f"CPU ms a step: {early[1] * 1000:.2f} near 100, {late[1] * 1000:.2f} near {steps}")


def main(steps: int = 5000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(_measure, Path(folder) / "log.db", steps)


if __name__ == "__main__":
    main()
