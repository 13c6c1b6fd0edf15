"""Builders and comparisons for the laws: how a run is made, killed, and told equal to another."""

import ast
import itertools
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import anyio
import msgspec

from treering.events.catalogue import Header, RunConfig, TaskSpawned
from treering.events.codec import Record, Stored, decode, to_json
from treering.events.errors import StoreError
from treering.events.in_memory import InMemoryStore
from treering.events.log import Blob
from treering.runtime.engine import EngineError, Reply, Request
from treering.runtime.runner import Outcome, Runner, create_run, open_log
from treering.runtime.seams import Commit, World
from treering.runtime.state import evolve, load_state, new_state, save_state
from treering.runtime.testing import ScriptedEngine, echo

__all__ = [
    "CrashingWriter",
    "Killed",
    "PacedEngine",
    "Steady",
    "answered",
    "assert_equal",
    "assert_folds_from",
    "assert_parts_at_choices",
    "called_in",
    "cone_of",
    "config_for",
    "equal_view",
    "fresh",
    "headers",
    "run_once",
    "script",
]


RUN_ID_BYTES = 10


class Killed(StoreError):
    """The process died here."""


class Steady(World):
    """Chance and time that repeat: what agents draw is the same each time, and other for another `draw`."""

    def __init__(self, draw: int = 42) -> None:
        self._draw = draw
        self._runs = itertools.count(1)

    def now_ms(self) -> int:
        return 1_700_000_000_000 + self._draw

    def entropy(self, size: int) -> bytes:
        if size == RUN_ID_BYTES:
            return next(self._runs).to_bytes(size, "big")
        return bytes([self._draw]) * size


class PacedEngine(ScriptedEngine):
    """The scripted engine, at its own pace: up to `most_s` per call, by the request alone."""

    def __init__(self, most_s: float) -> None:
        super().__init__(script)
        self._most_s = most_s

    async def generate(self, request: Request, on_text: Any = None) -> Reply:
        pace = blake2b(to_json(request), digest_size=2).digest()
        await anyio.sleep(self._most_s * int.from_bytes(pace, "big") / 65536)
        return await super().generate(request, on_text)


class CrashingWriter:
    """Commits until the log holds `last` events, and dies at the batch that would cross it, which is lost whole."""

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
    if "FAIL" in request.messages[-1].text:
        return EngineError("told to fail")
    return echo(request)


def assert_folds_from(stored: Sequence[Stored], cut: int, whole: bytes) -> None:
    """A state saved after `cut` of these events and loaded goes on to the state `whole`."""
    state = new_state()
    for one in stored[:cut]:
        evolve(state, one.header, one.event)
    state = load_state(save_state(state))
    for one in stored[cut:]:
        evolve(state, one.header, one.event)
    assert save_state(state) == whole


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
    """What two equal runs have in common (R10): requests and outcomes by task and op, results, the trunk."""
    state, _, _, _ = open_log(store, run)
    asked: dict[tuple[str, int], str] = {}
    ops: dict[str, dict[int, list[Any]]] = {}
    ended: dict[str, Any] = {}
    for record in store.read(run):
        stored = decode(record)
        header: Header = stored.header
        body = msgspec.json.decode(to_json(stored.event))
        for unsteady in ("usage", "seconds", "cause", "reused", "edited"):
            body.pop(unsteady, None)
        if header.kind == "TaskFailed":
            body["failure"].pop("line", None)
        if header.kind in ("TaskFinished", "TaskFailed", "TaskCancelled"):
            ended.setdefault(header.task, (header.kind, str(body)))
        elif header.kind in ("ModelCalled", "ToolCalled"):
            asked[header.task, header.op] = body["request"]  # of the last attempt
        elif header.op:
            ops.setdefault(header.task, {}).setdefault(header.op, []).append((header.kind, str(body)))
    for (task, op), request in asked.items():
        if op in ops.get(task, {}):
            ops[task][op].append(("request", request))
    return {
        "ops": {task: dict(sorted(found.items())) for task, found in sorted(ops.items())},
        "ended": dict(sorted(ended.items())),
        "trunk": state.memory.digest(),
    }


def assert_equal(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Two views are equal (R10).

    Of tasks that were ended from above in both, what both did before that is: how far they came, timing decided.
    """
    ended = {
        task
        for task, how in expected["ended"].items()
        if how[0] == "TaskCancelled" and found["ended"].get(task) == how
    }
    for part in ("ops", "ended"):
        ones, others = expected.get(part, {}), found.get(part, {})
        for task in sorted({*ones, *others}):
            if not any(task == above or task.startswith((above + ".", above + "~")) for above in ended):
                assert others.get(task) == ones.get(task), f"{part} of task {task}"
            elif part == "ops":
                for op in ones.get(task, {}).keys() & others.get(task, {}).keys():
                    assert others[task][op] == ones[task][op], f"op {op} of task {task}, which was ended"
    assert found["trunk"] == expected["trunk"], "the trunk"


CHOICES = {"first", "timeout", "cancel", "abandoned", "now", "random"}
"""Samples whose outcome is a matter of time or chance."""


def assert_parts_at_choices(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Two runs in which timing decides are equal up to what it decided otherwise.

    A task parts at its first op that differs. That op is a choice of time or chance, or one given up or refused;
    or else the task had joined a child that parts, and saw something else. The children that both runs spawned
    before they parted are held to the same.
    """
    if not _parts(expected, found, "1"):
        assert found["trunk"] == expected["trunk"], "the trunk"


def _parts(expected: dict[str, Any], found: dict[str, Any], task: str) -> bool:
    ones, others = (view["ops"].get(task, {}) for view in (expected, found))
    ends = [view["ended"].get(task) for view in (expected, found)]
    from_above = any(end and end[0] == "TaskCancelled" for end in ends)
    parted = False
    for op in sorted({*ones, *others}):
        one, other = ones.get(op), others.get(op)
        if one == other:
            for kind, body in one or ():
                if kind == "TaskSpawned" and "~" not in ast.literal_eval(body)["path"]:
                    parted |= _parts(expected, found, ast.literal_eval(body)["path"])
            continue
        assert parted or from_above or _is_choice(one) or _is_choice(other), f"op {op} of task {task}: {one}, {other}"
        return True
    assert parted or from_above or ends[0] == ends[1], f"the end of task {task}: {ends}"
    return parted or ends[0] != ends[1]


def _is_choice(events: list[Any] | None) -> bool:
    for kind, body in events or ():
        if kind == "Refused" or "'kind': 'cancelled'" in body:
            return True
        if kind == "Sampled" and ast.literal_eval(body)["what"] in CHOICES:
            return True
    return False


Place = tuple[str, int]


def answered(store: InMemoryStore, run: str) -> set[Place]:
    """Where a model answered, by task and op."""
    stored = [decode(record) for record in store.read(run, kinds=["ModelReplied"])]
    return {(one.header.task, one.header.op) for one in stored if one.event.failure is None}


def called_in(store: InMemoryStore, run: str, after: int) -> set[Place]:
    """The calls that really reached a model after event `after`: not those that were edited or taken over.

    Nor those that were given up: how far a task came that was ended from above, timing decided.
    """
    called = {(at.task, at.op) for at in headers(store.read(run, after=after, kinds=["ModelCalled"]))}
    for record in store.read(run, after=after, kinds=["ModelReplied"]):
        stored = decode(record)
        failure = stored.event.failure
        if stored.event.reused or stored.event.edited or (failure is not None and failure.kind == "cancelled"):
            called.discard((stored.header.task, stored.header.op))
    ended = {at.task for at in headers(store.read(run, kinds=["TaskCancelled"]))}
    return {place for place in called if place[0] not in ended}


def cone_of(store: InMemoryStore, run: str, edited: Header) -> set[Place]:
    """The model calls that may depend on an outcome: later ones of its task, and of whom that task tells.

    A task tells its parent when it is joined, and the children that it spawns after it was told.
    """
    spawned: dict[str, Place] = {}
    joined: dict[str, int] = {}
    for record in store.read(run, kinds=["TaskSpawned", "TaskJoined"]):
        stored = decode(record)
        if isinstance(stored.event, TaskSpawned):
            if stored.header.op:  # a root is of no op
                spawned[stored.event.path] = (stored.header.task, stored.header.op)
        else:
            joined[stored.event.child] = stored.header.op
    told = {edited.task: edited.op}
    child = edited.task
    while child in joined and child in spawned:
        parent = spawned[child][0]
        told[parent] = joined[child]
        child = parent

    def reaches(task: str, op: int) -> bool:
        if task in told:
            return op > told[task]
        return task in spawned and reaches(*spawned[task])

    return {place for place in answered(store, run) if reaches(*place)}


def headers(records: Iterable[Record]) -> list[Header]:
    """The headers of these records."""
    return [decode(record).header for record in records]


def fresh(agent: str, **changes: Any) -> tuple[InMemoryStore, str]:
    """An empty store with a run that has not begun."""
    store = InMemoryStore()
    return store, create_run(store, config_for(agent, **changes), Steady())
