"""Telling: another program's log as the events of a run.

Owns how messages, replies, tool calls, compactions and sub-agents of others become events that fold, and how a run
made of them enters a store. It never performs anything and invents no outcome: sizes that a log does not give are
estimated, and a call without a result says so. Invariant: what is told verifies; what fails to be told leaves
nothing behind.
"""

import calendar
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from treering.events.catalogue import (
    Compacted,
    Entry,
    Event,
    Failure,
    Limits,
    MemoryRef,
    MessageReceived,
    ModelCalled,
    ModelReplied,
    Remembered,
    RunConfig,
    RunStarted,
    TaskFailed,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    ToolCalled,
    ToolReturned,
    Usage,
)
from treering.events.codec import GENESIS, Record, seal, to_json
from treering.events.errors import UsageError
from treering.events.log import LogStore, RunRow
from treering.memory.compaction import measure_loss
from treering.memory.hierarchy import memory_id
from treering.memory.passages import estimate_tokens
from treering.memory.windows import EMPTY_DIGEST, roll
from treering.runtime.deriving import derive
from treering.runtime.digests import generate_digest, plain_digest, spawn_digest
from treering.runtime.runner import CODE_VERSION
from treering.runtime.seams import Seams, new_run_id
from treering.runtime.state import evolve, new_state

__all__ = [
    "Fact",
    "Heard",
    "Teller",
    "as_dict",
    "as_int",
    "as_list",
    "as_text",
    "began",
    "parse_json",
    "passed_over",
    "spawned",
    "tell",
    "when_ms",
]

_UNBOUNDED = Limits(1_000_000, 1_000_000, 100_000_000)
_GOAL_CHARACTERS = 4000
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?$")


class Fact(NamedTuple):
    """One event of an imported run, where it belongs and when it was (milliseconds)."""

    event: Event
    task: str
    op: int
    at: int


class Heard(NamedTuple):
    """A message that will be shown to the model by the next call."""

    role: str
    text: str


def began(origin: str, model: str, agent: str, at: int, version: str = "") -> Fact:
    """The first event of an imported run."""
    config = RunConfig(agent, retention="none", limits=_UNBOUNDED, model=model, weights=model, origin=origin)
    return Fact(RunStarted(config, version or CODE_VERSION), "", 0, at)


def passed_over(kinds: Mapping[str, int], at: int) -> Iterator[Fact]:
    """The last event: what of another's log has no place in this one, by kind. None if there is nothing."""
    if kinds:
        yield Fact(MessageReceived(0, "import", to_json(dict(sorted(kinds.items()))).decode()), "", 0, at)


def tell(store: LogStore, facts: Iterable[Fact], seams: Seams) -> tuple[str, int]:
    """A new run made of these events, in one transaction; its id and the number of events.

    An error while the facts are made leaves nothing in the store.
    """
    run, source = new_run_id(seams), iter(facts)
    first = next(source)
    count = 0

    def records() -> Iterator[Record]:
        nonlocal count
        for record in _sealed(run, first, source, seams):
            count += 1
            yield record

    store.create(RunRow(run, first.at), records())
    return run, count


def _sealed(run: str, first: Fact, rest: Iterator[Fact], seams: Seams) -> Iterator[Record]:
    assert isinstance(first.event, RunStarted)
    state, head, seq = new_state(), GENESIS, 0
    fact: Fact | None = first
    while fact is not None:
        seq += 1
        header, record = seal(fact.event, run, seq, fact.at, seams.entropy(16), head, fact.task, fact.op)
        head = record.digest
        evolve(state, header, fact.event)
        follows = derive(state, header, fact.event)
        assert follows is None, "no limit, no budget and no retention: nothing follows"
        yield record
        fact = next(rest, None)


class Teller:
    """What one agent of another program said and did, as ops of one task."""

    def __init__(self, path: str, model: str, at: int) -> None:
        self.path = path
        self.at = at
        self.last_reply = ""
        self.children = 0
        self._model = model
        self._op = 0
        self._heard: list[tuple[Heard, MemoryRef | None]] = []
        self._window: list[tuple[int, int, str, str]] = []
        self._tokens = 0
        self._rolling = EMPTY_DIGEST
        self._kept: dict[str, str] = {}
        self._tools: dict[str, int] = {}

    # --- what it was shown ------------------------------------------------------------------------------------

    def hear(self, role: str, text: str) -> None:
        """A message for the next call. One that was remembered word for word is shown by reference."""
        id = memory_id(text)
        self._heard.append((Heard(role, text), MemoryRef(id) if self._kept.get(id) == text else None))

    def window(self) -> list[Heard]:
        """What the next call shows beyond what was heard since the last."""
        return [Heard(role, text) for _, _, role, text in self._window]

    # --- what it did ------------------------------------------------------------------------------------------

    def call(
        self,
        reply: str,
        usage: Usage,
        at: int,
        *,
        model: str = "",
        finish: str = "stop",
        max_tokens: int = 0,
        temperature: float = 0.0,
        keep: bool = True,
        failure: Failure | None = None,
        seconds: Any = None,
    ) -> Iterator[Fact]:
        """A model call: what was heard, and what was answered. It took `seconds`, or the time in between."""
        yield from self._close_tools(self.at)
        op = self._next()
        entries = tuple(
            Entry(heard.role, (heard.text if ref is None else ref,), estimate_tokens(heard.text))
            for heard, ref in self._heard
        )
        rolling = self._rolling
        for heard, _ in self._heard:
            rolling = roll(rolling, heard.role, heard.text)
        request = generate_digest(model or self._model, "", rolling, max_tokens, temperature, 1.0, (), 0, None)
        prompt = usage.prompt or self._tokens + sum(entry.tokens for entry in entries)
        called = ModelCalled(request, entries, prompt, max_tokens, temperature, keep=keep)
        yield Fact(called, self.path, op, self.at)
        tokens = estimate_tokens(reply)
        took = seconds if isinstance(seconds, float) and 0 <= seconds < 1e9 else max(0, at - self.at) / 1000
        usage = msgspec.structs.replace(usage, seconds=round(took, 4))
        yield Fact(ModelReplied(reply, finish, tokens, usage, failure=failure), self.path, op, at)
        self.at = at
        if failure is not None:
            self._heard.clear()
            return
        self.last_reply = reply
        if keep:
            for index, (heard, _) in enumerate(self._heard):
                self._window.append((op, index, heard.role, heard.text))
            self._window.append((op, len(entries), "assistant", reply))
            self._tokens += tokens + sum(entry.tokens for entry in entries)
            self._rolling = roll(rolling, "assistant", reply)
        self._heard.clear()

    def use_tool(self, name: str, arguments: Any, key: str, at: int) -> Iterator[Fact]:
        """A tool is called; `key` is how its result names it."""
        self._tools[key] = op = self._next()
        encoded = to_json(arguments)
        request = plain_digest("tool", name, encoded.decode())
        yield Fact(ToolCalled(name, msgspec.Raw(encoded), request, key), self.path, op, at)

    def tool_answered(self, key: str, text: str, at: int, failure: Failure | None = None) -> Iterator[Fact]:
        """A tool's result, which is remembered: a file that is read again is a memory that is used again."""
        op = self._tools.pop(key, 0)
        if not op:
            return  # a result of a call that the log does not hold
        result = msgspec.Raw(to_json(text if failure is None else None))
        yield Fact(ToolReturned(result, failure=failure), self.path, op, at)
        self.at = max(self.at, at)
        if failure is None and text.strip():
            yield from self.remember(text, at)

    def remember(self, text: str, at: int) -> Iterator[Fact]:
        """A text that the agent was given is kept, by its content."""
        id = memory_id(text)
        self._kept.setdefault(id, text)
        request = plain_digest("remember", text)
        yield Fact(Remembered(id, text, estimate_tokens(text), request=request), self.path, self._next(), at)

    def compact(self, summary: str, reason: str, at: int) -> Iterator[Fact]:
        """The window was replaced by a summary. Before the next call, as the first part of its op."""
        if not self._window:
            self.hear("user", summary)
            return
        left = tuple((op, index) for op, index, *_ in self._window)
        span = "\n".join(text for *_, text in self._window)
        tokens, gone = estimate_tokens(summary), self._tokens
        loss = measure_loss(span, summary)
        yield Fact(Compacted(left, summary, tokens, gone, "model", loss, reason), self.path, self._op + 1, at)
        # The window itself is in the log's order: the summary stands where the first entry stood.
        self._window, self._tokens = [(*left[0], "user", summary)], tokens
        self._rolling = roll(EMPTY_DIGEST, "user", summary)

    def spawn(self, agent: str, goal: str, at: int, key: str = "", inputs: Any = None) -> tuple[str, Fact]:
        """A child began; its path, and the event."""
        self.children += 1
        path = f"{self.path}.{self.children}"
        return path, Fact(spawned(path, agent, goal, key, inputs), self.path, self._next(), at)

    def join(self, path: str, at: int) -> Fact:
        """The child's result was taken."""
        return Fact(TaskJoined(path, plain_digest("join", path.rsplit(".", 1)[-1])), self.path, self._next(), at)

    def end(self, result: Any, at: int, failure: Failure | None = None) -> Iterator[Fact]:
        """It ended."""
        yield from self._close_tools(at)
        event = TaskFinished(msgspec.Raw(to_json(result))) if failure is None else TaskFailed(failure)
        yield Fact(event, self.path, 0, at)

    def _close_tools(self, at: int) -> Iterator[Fact]:
        """Calls that never got an answer get one that says so: what comes after them does not wait for it."""
        for key in list(self._tools):
            yield from self.tool_answered(key, "", at, Failure("unknown", "the log holds no result of this call"))

    def _next(self) -> int:
        self._op += 1
        return self._op


def spawned(path: str, agent: str, goal: str, key: str = "", inputs: Any = None) -> TaskSpawned:
    """The event of a task that began."""
    goal, encoded = goal[:_GOAL_CHARACTERS], to_json(inputs or {})
    request = spawn_digest(agent, goal, encoded, key, None, 0)
    return TaskSpawned(path, agent, goal, msgspec.Raw(encoded), key, request=request)


# --- what others write --------------------------------------------------------------------------------------


def parse_json(line: bytes | str, where: str) -> Any:
    """A JSON value, with what cannot be stored (halves of surrogate pairs) replaced. Raises UsageError, in one line."""
    try:
        return msgspec.json.decode(line)
    except RecursionError as error:
        raise UsageError(f"expected JSON in {where}, found it nested too deep") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        try:
            text = line if isinstance(line, str) else line.decode("utf-8", "replace")
            value = json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False)
            return msgspec.json.decode(value.encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            raise UsageError(f"expected JSON in {where}, found it cut off or damaged ({error})") from error


def as_dict(value: Any) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """`value` if it is a text, "" for nothing, else as JSON."""
    return value if isinstance(value, str) else "" if value is None else to_json(value).decode()


def as_int(value: Any) -> int:
    """`value` if it is a count that a log can hold, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else 0


def when_ms(value: Any, otherwise: int) -> int:
    """An ISO 8601 time as milliseconds since 1970, `otherwise` if it is none. Times without a zone are UTC."""
    found = _TIME.match(value) if isinstance(value, str) else None
    if found is None:
        return otherwise
    *parts, fraction, zone = found.groups()
    seconds = calendar.timegm((*map(int, parts), 0, 0, 0))
    if zone and zone != "Z":
        shift = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
        seconds -= shift if zone[0] == "+" else -shift
    return seconds * 1000 + int((fraction or "0").ljust(3, "0")[:3])
