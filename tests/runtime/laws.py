"""Builders and comparisons for the laws: how a run is made, killed, and told equal to another."""

import itertools
from typing import Any

import msgspec

from treering.events.catalogue import Header, RunConfig
from treering.events.codec import Record, decode, to_json
from treering.events.in_memory import InMemoryStore
from treering.events.log import Blob
from treering.runtime.engine import Request
from treering.runtime.runner import Outcome, Runner, create_run, open_log
from treering.runtime.seams import Commit, World
from treering.runtime.testing import ScriptedEngine, echo

__all__ = ["CrashingWriter", "Killed", "Steady", "config_for", "equal_view", "run_once", "script"]


class Killed(Exception):
    """The process died here."""


class Steady(World):
    """Chance and time that repeat: a counter."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def now_ms(self) -> int:
        return 1_700_000_000_000

    def entropy(self, size: int) -> bytes:
        return next(self._count).to_bytes(8, "big").rjust(size, b"\0")[-size:]


class CrashingWriter:
    """Commits until the log holds `last` events, and then dies; `torn` loses the batch that crosses it."""

    def __init__(self, store: InMemoryStore, run: str, epoch: int, last: int) -> None:
        self._store, self._run, self._epoch, self._last = store, run, epoch, last

    def soon(self, fly: Any) -> None:
        fly()

    def submit(self, commit: Commit, done: Any) -> None:
        records: list[Record] = list(commit[0])
        blobs: list[Blob] = list(commit[1])
        if records[-1].seq > self._last:
            done(Killed(f"after {self._last}"))
            return
        self._store.append(self._run, self._epoch, records, blobs)
        done(None)

    def close(self) -> None:
        """Nothing runs."""


def script(request: Request) -> str | Exception:
    """Echo, but for what is asked to fail."""
    from treering.runtime.engine import EngineError

    if "FAIL" in request.messages[-1].text:
        return EngineError("told to fail")
    return echo(request)


def config_for(agent: str, **changes: Any) -> RunConfig:
    """A small run of an agent of the corpus."""
    config = RunConfig(agent, window_tokens=120, weights="scripted", template="words", overhead_tokens=2)
    return msgspec.structs.replace(config, **changes)


async def run_once(
    store: InMemoryStore,
    run: str,
    agents: dict[str, Any],
    engine: ScriptedEngine,
    last: int | None = None,
    goal: str = "tower",
) -> Outcome | None:
    """Open the run, finish what is unfinished or ask its first question."""
    writer = None if last is None else lambda s, r, e: CrashingWriter(s, r, e, last)
    async with Runner(store, run, engine, agents=agents, seams=Steady(), writer=writer) as runner:  # type: ignore[arg-type]
        if runner.state.roots:
            return await runner.resume()
        return await runner.ask(goal)


def equal_view(store: InMemoryStore, run: str) -> dict[str, Any]:
    """What two equal runs have in common (R10): outcomes by task and op, results, the trunk."""
    state, _, _, _ = open_log(store, run)
    ops: dict[str, dict[int, list[Any]]] = {}
    ended: dict[str, Any] = {}
    for record in store.read(run):
        stored = decode(record)
        header: Header = stored.header
        body = msgspec.json.decode(to_json(stored.event))
        for unsteady in ("usage", "seconds", "cause", "epoch", "why", "key", "reused", "edited"):
            body.pop(unsteady, None)
        if header.kind in ("TaskFinished", "TaskFailed", "TaskCancelled"):
            ended.setdefault(header.task, (header.kind, str(body)))
        elif header.op and header.kind not in ("ModelCalled", "ToolCalled"):
            ops.setdefault(header.task, {}).setdefault(header.op, []).append((header.kind, str(body)))
    return {
        "ops": {task: dict(sorted(found.items())) for task, found in sorted(ops.items())},
        "ended": dict(sorted(ended.items())),
        "trunk": state.memory.digest(),
    }


def fresh(agent: str, **changes: Any) -> tuple[InMemoryStore, str]:
    """An empty store with a run that has not begun."""
    store = InMemoryStore()
    return store, create_run(store, config_for(agent, **changes), Steady())
