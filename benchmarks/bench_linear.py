"""One long conversation on SQLite, compaction off: what a step costs must not grow with its length.

`python -m benchmarks.bench_linear`. Bytes are those of the database file after a checkpoint, so that pages, indexes
and all else are in them.
"""

import sqlite3
import tempfile
import time
from pathlib import Path

import anyio

from benchmarks import row
from treering.events.catalogue import RunConfig
from treering.events.sqlite import SQLiteStore
from treering.runtime.engine import EngineInfo, Message, Reply, Request, StreamText
from treering.runtime.runner import Runner, create_run
from treering.runtime.task import Task

_PAYLOAD = "x" * 904
_SPAN = 500
_FROM = 100


class _Brief:
    """An engine whose work does not grow with the prompt."""

    info = EngineInfo("brief", "brief", "brief", "none", 1 << 30, 2)

    def count(self, message: Message) -> int:
        return len(message.text) // 4 + 1

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        return Reply("ok", "stop", len(request.messages), 1)

    async def aclose(self) -> None:
        """Nothing runs."""


def _mark(path: Path) -> tuple[int, float]:
    connection = sqlite3.connect(path)
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    connection.close()
    assert not busy, "the checkpoint did not end"
    return path.stat().st_size, time.process_time()


async def _measure(path: Path, steps: int) -> None:
    marks: dict[int, tuple[int, float]] = {}

    async def talk(task: Task, goal: str) -> str:
        for step in range(steps):
            if step in (_FROM, _FROM + _SPAN, steps - _SPAN):
                marks[step] = _mark(path)
            await task.generate(_PAYLOAD, max_tokens=4)
        marks[steps] = _mark(path)
        return ""

    store = SQLiteStore(path)
    run = create_run(store, RunConfig("talk", window_tokens=1 << 30))
    async with Runner(store, run, _Brief(), agents={"talk": talk}) as runner:
        outcome = await runner.ask("")
    assert outcome.status == "finished", outcome.error
    store.close()
    early, late = (
        [(b - a) / _SPAN for a, b in zip(marks[x], marks[y], strict=True)]
        for x, y in ((_FROM, _FROM + _SPAN), (steps - _SPAN, steps))
    )
    row(f"bytes a step at {steps}, by {_FROM}", f"{late[0]:.0f}", f"{early[0]:.0f}", late[0] / early[0], 1.1)
    row("bytes a step over payload", f"{late[0]:.0f}", f"{len(_PAYLOAD)}", late[0] / len(_PAYLOAD), 2)
    print(f"CPU ms a step: {early[1] * 1000:.3f} from {_FROM} on, {late[1] * 1000:.3f} up to {steps}")


def main(steps: int = 5000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(_measure, Path(folder) / "log.db", steps)


if __name__ == "__main__":
    main()
