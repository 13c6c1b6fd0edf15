"""Explain: why two tasks parted, and what their calls saw.

Owns the cause of each parting (the joined child, the recalled memory, the goal, the edit, the world), the text
diffs of events and prompts, and what is side by side. It reads two logs and states, and asks no model.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from treering.events.catalogue import (
    Event,
    MemoryRef,
    ModelCalled,
    ModelReplied,
    Recalled,
    Refused,
    Sampled,
    TaskFinished,
    TaskSpawned,
    ToolReturned,
)
from treering.events.codec import decode, to_json
from treering.events.log import LogStore, record_at
from treering.memory.hierarchy import TRUNK
from treering.replays.comparing import Alignment, Parting, Recorded, TaskLog, align, partings
from treering.replays.showing import messages_of, state_at
from treering.replays.text_diffs import text_diff
from treering.runtime.state import RunState, evolve, new_state
from treering.runtime.texts import Texts

__all__ = ["CallSeen", "Comparison", "Difference", "MemoryChange", "Side", "compare"]


class Side(msgspec.Struct, frozen=True):
    """What became of one run. Tokens, seconds and money are what was paid; `reused` counts replies taken over."""

    run: str
    status: str
    result: Any
    events: int
    tasks: int
    prompt: int
    cached: int
    generated: int
    seconds: float
    cost_micros: int
    reused: int
    hot: int
    cold: int


class MemoryChange(msgspec.Struct, frozen=True):
    """A memory of the trunk that is not the same in both: `a` and `b` are `hot`, `cold` or `` for absent."""

    id: str
    text: str
    a: str
    b: str


class CallSeen(msgspec.Struct, frozen=True):
    """The first model call of a task that saw something else, what brought it there, and the diff of prompts."""

    op: int
    a: int
    b: int
    because: tuple[str, ...]
    diff: str


class Difference(msgspec.Struct, frozen=True):
    """The first event that differs in a task. `a` and `b` are the seqs of it, 0 where it is not there.

    `cause` says why in one line; `upstream` is the (task of B, op) that the difference came from, if it came
    from another task. `diff` is the text of both events. `others` counts the later ops that differ.
    """

    task_a: str
    task_b: str
    op: int
    what: str
    kind: str
    a: int
    b: int
    cause: str
    upstream: tuple[str, int] | None
    others: int
    diff: str
    call: CallSeen | None = None


class Comparison(msgspec.Struct, frozen=True):
    """Two runs compared. `equal`: the same outcomes by task and op, results and trunk."""

    equal: bool
    shared: int
    a: Side
    b: Side
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    memory: tuple[MemoryChange, ...]


def compare(store: LogStore, run_a: str, run_b: str, texts: int | None = None) -> Comparison:
    """Compare two runs of a store; tasks where a difference began come first. Text diffs are made for the first `texts` differences; None: for all."""
    aligned = align(store, run_a, run_b)
    states = (state_at(store, run_a), state_at(store, run_b))
    found = list(partings(aligned))
    explained = _Explainer(store, aligned, states, found).explain(len(found) if texts is None else texts)
    memory = tuple(_memory_changes(*states))
    equal = not (explained or aligned.only_a or aligned.only_b or memory)
    return Comparison(
        equal,
        aligned.shared,
        _side(run_a, states[0]),
        _side(run_b, states[1]),
        explained,
        tuple(aligned.only_a),
        tuple(aligned.only_b),
        memory,
    )


class _Explainer:
    """The causes of all partings of two runs."""

    def __init__(
        self, store: LogStore, aligned: Alignment, states: tuple[RunState, RunState], found: list[Parting]
    ) -> None:
        self._store = store
        self._aligned = aligned
        self._states = states
        self._at = {parting.b: parting for parting in found}
        causes = [self._cause(parting, *(event for _, event in self._events(parting))) for parting in found]
        self._causes = {parting.b: cause for parting, cause in zip(found, causes, strict=True)}
        # Where it began comes before what followed from it.
        self._partings = sorted(found, key=lambda parting: self._causes[parting.b][1] is not None)

    def explain(self, texts: int) -> tuple[Difference, ...]:
        first = self._partings[:texts]
        calls = {parting.b: call for parting in first if (call := self._first_call(parting)) is not None}
        prompts_a = _prompts(self._store, self._aligned.run_a, {a.called for _, a, _ in calls.values()})
        prompts_b = _prompts(self._store, self._aligned.run_b, {b.called for _, _, b in calls.values()})
        found: list[Difference] = []
        for number, parting in enumerate(self._partings):
            seen: CallSeen | None = None
            if number < texts and parting.b in calls:
                op, a, b = calls[parting.b]
                diff = text_diff(prompts_a[a.called], prompts_b[b.called], f"event {a.called}", f"event {b.called}")
                seen = CallSeen(op, a.called, b.called, self._because(parting, op), diff)
            found.append(self._difference(parting, number < texts, seen))
        return tuple(found)

    def _difference(self, parting: Parting, with_text: bool, seen: CallSeen | None) -> Difference:
        (a_seq, a_event), (b_seq, b_event) = self._events(parting)
        cause, upstream = self._causes[parting.b]
        diff = ""
        if with_text and parting.what == "joined":
            diff = self._results(parting)
        elif with_text and not (seen is not None and seen.op == parting.op and parting.what == "asked"):
            diff = text_diff(_words(a_event), _words(b_event), f"event {a_seq}", f"event {b_seq}")
        kind = type(b_event if b_event is not None else a_event).__name__
        return Difference(
            parting.a,
            parting.b,
            parting.op,
            parting.what,
            kind,
            a_seq,
            b_seq,
            cause,
            upstream,
            len(parting.others),
            diff,
            seen,
        )

    def _results(self, parting: Parting) -> str:
        """The ends of both children that were joined, as a text diff."""
        found: list[str] = []
        for run, logs, log in (
            (self._aligned.run_a, self._aligned.a, self._log_a(parting)),
            (self._aligned.run_b, self._aligned.b, self._log_b(parting)),
        ):
            child = logs.get(log.ops[parting.op].about)
            end = None if child is None or child.end is None else _read_one(self._store, run, child.end[2])
            found.append(_words(end))
        return text_diff(found[0], found[1])

    def _log_a(self, parting: Parting) -> TaskLog:
        return self._aligned.a.get(parting.a, TaskLog())

    def _log_b(self, parting: Parting) -> TaskLog:
        return self._aligned.b.get(parting.b, TaskLog())

    def _events(self, parting: Parting) -> list[tuple[int, Event | None]]:
        return [
            self._event(self._aligned.run_a, self._log_a(parting), parting),
            self._event(self._aligned.run_b, self._log_b(parting), parting),
        ]

    def _event(self, run: str, log: TaskLog, parting: Parting) -> tuple[int, Event | None]:
        """The event of one side that differs, and its seq."""
        if not parting.op:
            seq = log.end[2] if log.end is not None else 0
        else:
            op = log.ops.get(parting.op, Recorded())
            if parting.what == "compacted":
                seq = op.compacted_seq or op.called or op.seq
            else:
                seq = (op.called if parting.what == "asked" else op.seq) or op.seq or op.called
        return seq, _read_one(self._store, run, seq)

    # --- why ------------------------------------------------------------------------------------------------

    def _cause(self, parting: Parting, a: Event | None, b: Event | None) -> tuple[str, tuple[str, int] | None]:
        if parting.what in ("only a", "only b"):
            return self._missing(parting, "A" if parting.what == "only b" else "B"), self._from_parent(parting)
        if parting.what == "joined":
            child = self._log_b(parting).ops[parting.op].about
            return f"child {child} ended otherwise", self._upstream(child)
        if parting.what == "compacted":
            return self._compaction(parting)
        if parting.what == "answered":
            return self._answer(parting, a, b)
        return self._request(parting)

    def _missing(self, parting: Parting, run: str) -> str:
        log = self._log_a(parting) if run == "A" else self._log_b(parting)
        if log.end is not None:
            return f"task {parting.a if run == 'A' else parting.b} ended before it in {run} ({log.end[0]})"
        return f"the log of {run} ends before it"

    def _request(self, parting: Parting) -> tuple[str, tuple[str, int] | None]:
        """Nothing before it in the task differs: what came from outside of the task does, or its code."""
        spawns = (self._log_a(parting).spawn, self._log_b(parting).spawn)
        if spawns[0] is not None and spawns[1] is not None and spawns[0].request != spawns[1].request:
            return "its goal or inputs differ", self._from_parent(parting)
        goals = [state.tasks[path].goal for state, path in zip(self._states, (parting.a, parting.b), strict=True)]
        if goals[0] != goals[1]:
            return "another question was asked", None
        configs = [state.config for state in self._states]
        for name in ("weights", "template", "seed", "agent"):
            one, other = (getattr(config, name) for config in configs)
            if one != other:
                return f"the configuration differs: {name} {one or '-'} and {other or '-'}", None
        verb = "returned something else" if not parting.op else "asked for something else"
        return f"the agent's code {verb} after equal outcomes", None

    def _compaction(self, parting: Parting) -> tuple[str, tuple[str, int] | None]:
        sizes = [state.config.window_tokens for state in self._states]
        if sizes[0] != sizes[1]:
            return f"windows of {sizes[0]} and {sizes[1]} tokens", None
        system = f"{parting.b}~{parting.op}"
        if system in self._at:
            return f"the summary by {system} differs", self._upstream(system)
        return "another summary, or other entries left the window", None

    def _answer(self, parting: Parting, a: Event | None, b: Event | None) -> tuple[str, tuple[str, int] | None]:
        for side, event in (("A", a), ("B", b)):
            if isinstance(event, ModelReplied | ToolReturned) and event.edited:
                return f"a person set this outcome in {side} (in place of event {event.edited})", None
            if isinstance(event, Refused):
                return f"refused in {side}: {event.what}, {event.needed:g} over {event.limit:g}", None
            if isinstance(event, ModelReplied | ToolReturned) and event.failure is not None:
                return f"failed in {side}: {event.failure.message}", None
        if a is None or b is None:
            return "an outcome is not there: in flight, or destroyed", None
        if isinstance(a, Recalled) and isinstance(b, Recalled):
            return self._recall(a, b)
        if isinstance(a, ModelReplied):
            return "the model answered the same request otherwise", None
        if isinstance(a, ToolReturned):
            return "the tool returned something else for the same request", None
        if isinstance(a, Sampled):
            return f"the world was different: {a.what}", None
        return "another outcome of the same request", None

    def _recall(self, a: Recalled, b: Recalled) -> tuple[str, tuple[str, int] | None]:
        if a.query != b.query:
            return "another query", None
        tiers: list[dict[str, str]] = [
            {hit.ref.id: hit.tier for hit in event.hits if isinstance(hit.ref, MemoryRef)} for event in (a, b)
        ]
        for side, logs, ours, other in (
            ("B", self._aligned.b, tiers[1], tiers[0]),
            ("A", self._aligned.a, tiers[0], tiers[1]),
        ):
            for id in ours.keys() - other.keys():
                for path, log in logs.items():
                    for number, op in log.ops.items():
                        if op.kind == "Remembered" and op.about == id:
                            where = f"memory {id}, remembered by {path} op {number} in {side}"
                            return where, self._upstream(path) if side == "B" else None
                return f"memory {id} is found in {side} alone", None
        for id in tiers[0]:
            if tiers[0][id] != tiers[1].get(id):
                return f"memory {id} is {tiers[0][id]} in A and {tiers[1].get(id)} in B", None
        return "the same memories with other scores or passages", None

    def _from_parent(self, parting: Parting) -> tuple[str, int] | None:
        spawn = self._log_b(parting).spawn
        return self._upstream(spawn.parent) if spawn is not None and spawn.parent else None

    def _upstream(self, task: str) -> tuple[str, int] | None:
        found = self._at.get(task)
        return None if found is None else (found.b, found.op)

    # --- what calls saw ---------------------------------------------------------------------------------------

    def _first_call(self, parting: Parting) -> tuple[int, Recorded, Recorded] | None:
        """The first op from here on that is a model call in both and asked for something else."""
        ours, theirs = self._log_a(parting).ops, self._log_b(parting).ops
        for op in (parting.op, *parting.others):
            a, b = ours.get(op), theirs.get(op)
            if a is not None and b is not None and a.called and b.called and a.request != b.request:
                kinds = {"ModelReplied", "Refused", ""}
                if {a.kind, b.kind} <= kinds:
                    return op, a, b
        return None

    def _because(self, parting: Parting, op: int) -> tuple[str, ...]:
        """What differs in the task before the call, and so may stand in its prompt."""
        found: list[str] = []
        log = self._log_b(parting)
        for number in (parting.op, *parting.others):
            if number >= op or not number:
                break
            before = log.ops.get(number)
            if before is not None and before.kind in _BROUGHT:
                found.append(_BROUGHT[before.kind].format(op=number, about=before.about))
        return tuple(found)


_BROUGHT = {
    "ModelReplied": "the reply of op {op} in its window",
    "TaskJoined": "child {about}, joined by op {op}",
    "Recalled": "what op {op} recalled",
    "ToolReturned": "what the tool of op {op} returned",
    "Remembered": "memory {about} of op {op}",
}


def _read_one(store: LogStore, run: str, seq: int) -> Event | None:
    return decode(record_at(store, run, seq)).event if seq else None


def _prompts(store: LogStore, run: str, wanted: set[int]) -> dict[int, str]:
    """What the model calls at these seqs saw, in one pass over the log."""
    found: dict[int, str] = {}
    if not wanted:
        return found
    state, texts = new_state(), Texts(store, run)
    for record in store.read(run, until=max(wanted)):
        stored = decode(record)
        if stored.seq in wanted:
            event = stored.event
            found[stored.seq] = "(its body was destroyed)"
            if isinstance(event, ModelCalled):
                said = messages_of(state, texts, stored.header.task, event)
                found[stored.seq] = "\n".join(f"[{message.role}] {message.text}" for message in said)
                if event.continuation is not None:
                    found[stored.seq] += f"\n[scored] {event.continuation}"
        evolve(state, stored.header, stored.event)
    return found


def _words(event: Event | None) -> str:
    """An event as text to be compared: what it says, then the rest of it."""
    if event is None:
        return ""
    if isinstance(event, ModelReplied) and event.failure is None and event.logprob is None:
        return event.text
    if isinstance(event, TaskFinished):
        result = msgspec.json.decode(event.result)
        return result if isinstance(result, str) else json.dumps(result, indent=1, ensure_ascii=False)
    if isinstance(event, TaskSpawned):
        return f"{event.goal}\n{json.dumps(msgspec.json.decode(event.inputs), indent=1, ensure_ascii=False)}"
    body = msgspec.json.decode(to_json(event))
    for name in ("usage", "seconds", "cause", "request", "reused", "edited"):
        body.pop(name, None)
    return json.dumps(body, indent=1, ensure_ascii=False)


# --- side by side -------------------------------------------------------------------------------------------


def _side(run: str, state: RunState) -> Side:
    root = state.tasks[state.roots[-1]] if state.roots else None
    totals = state.totals
    states = _trunk(state).values()
    return Side(
        run,
        state.status,
        msgspec.json.decode(root.result) if root is not None and root.result else None,
        state.seq,
        len(state.tasks),
        totals.prompt,
        totals.cached,
        totals.generated,
        round(totals.seconds, 3),
        totals.cost_micros,
        totals.reused,
        sum(one == "hot" for one in states),
        sum(one == "cold" for one in states),
    )


def _trunk(state: RunState) -> dict[str, str]:
    memory = state.memory
    return {
        id: "hot" if memory.is_hot(id) else "cold" for id, item in memory.memories.items() if TRUNK in item.placed
    }


def _memory_changes(a: RunState, b: RunState) -> Iterable[MemoryChange]:
    ours, theirs = _trunk(a), _trunk(b)
    for id in dict.fromkeys([*ours, *theirs]):
        if ours.get(id) != theirs.get(id):
            where: Sequence[RunState] = (a,) if id in ours else (b,)
            yield MemoryChange(id, where[0].memory.memories[id].text, ours.get(id, ""), theirs.get(id, ""))
