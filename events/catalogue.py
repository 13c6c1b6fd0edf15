"""The catalogue: every kind of event that a log can hold, in one file.

Owns the closed union `Event` and the small values that events are made of. It never computes anything and
no default here looks at the world. Events are past facts: what is pending is a call without its outcome.

Invariant: once stored, a kind loads for ever. A field that is added has a default; anything else is a new
version of its kind, with a step in `treering.events.codec` that lifts the old body.
"""

from typing import Any

import msgspec

__all__ = [
    "EVENT_TYPES",
    "Budget",
    "Cause",
    "Compacted",
    "Edit",
    "Entry",
    "Event",
    "Evicted",
    "Failure",
    "Header",
    "HitRecord",
    "InputAdded",
    "Limits",
    "LogSpan",
    "Loss",
    "MemoryRef",
    "MessageReceived",
    "ModelCalled",
    "ModelReplied",
    "Part",
    "Recalled",
    "Ref",
    "Refused",
    "Remembered",
    "Revived",
    "RunConfig",
    "RunForked",
    "RunResumed",
    "RunStarted",
    "Sampled",
    "SourceSpan",
    "Spill",
    "TaskCancelled",
    "TaskFailed",
    "TaskFinished",
    "TaskJoined",
    "TaskSpawned",
    "ToolCalled",
    "ToolReturned",
    "Usage",
    "Used",
]


class _Value(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of all that is stored: immutable (so it is in no cycle, and needs no garbage collector), and short in
    JSON because defaults are left out."""


class Header(_Value, frozen=True):
    """What the chain covers of an event. `body` is the salted digest of its body, in hex.

    `task` is the path of the task whose op this is ("" for the run itself), `op` its number in that task (0:
    of no op), `attempt` the try at it. `at` is milliseconds since 1970, for people; no fold reads it.
    """

    run: str
    seq: int
    kind: str
    at: int
    body: str
    task: str = ""
    op: int = 0
    attempt: int = 1
    version: int = 1


# --- values -----------------------------------------------------------------------------------------------


class SourceSpan(_Value, frozen=True, tag="source"):
    """Characters `start` to `end` of the source whose text has this digest."""

    source: str
    start: int
    end: int


class MemoryRef(_Value, frozen=True, tag="memory"):
    """A memory, by its content-derived id."""

    id: str


class LogSpan(_Value, frozen=True, tag="log"):
    """Characters `start` to `end` of a text that an op brought into the log.

    `what` is `prompt` (what was said to a model, references left out), `reply`, `summary` (of a compaction) or
    `result` (of a tool).
    """

    task: str
    op: int
    what: str
    start: int
    end: int


Ref = SourceSpan | MemoryRef | LogSpan
Part = str | SourceSpan | MemoryRef | LogSpan
"""A piece of a message: its own text, or a reference to text that the log already holds."""


class Spill(_Value, frozen=True):
    """A text too large for its window: kept whole as a blob, while the entry shows a preview."""

    blob: str
    tokens: int
    characters: int


class Entry(_Value, frozen=True):
    """One message as it enters a window. `tokens` is its size there, template included.

    `spill` names the whole text where `parts` is only its preview.
    """

    role: str
    parts: tuple[Part, ...]
    tokens: int
    pinned: bool = False
    spill: Spill | None = None


class Usage(_Value, frozen=True):
    """What one attempt cost. Tokens are the engine's own figures; `seconds` is how long the call took."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    seconds: float = 0.0
    cost_micros: int = 0


class Failure(_Value, frozen=True):
    """Why an op has no result. `kind` is a word to branch on, `message` one clear line.

    `line` is where in an agent's code it was raised, for people: no two failures differ by it alone.
    """

    kind: str
    message: str
    line: str = ""


class Budget(_Value, frozen=True):
    """What a task and all below it may use; None is no limit of its own."""

    tokens: int | None = None
    seconds: float | None = None
    cost_micros: int | None = None


class Limits(_Value, frozen=True):
    """Caps on the shape of the tree under one root."""

    depth: int = 4
    children: int = 32
    tasks: int = 500


class RunConfig(_Value, frozen=True):
    """What a run was asked to be. Windows and sizes are in tokens. `call_timeout_s` limits one attempt at a model and
    one call of a tool. `origin` names the program whose log this run was made from, "" for a run of this program:
    another's run can be looked at, not gone on with. `scoring` says whether the engine can tell how likely it finds a
    text; an engine that is not known is asked."""

    agent: str
    seed: int = 0
    window_tokens: int = 2048
    retention: str = "window:10000"
    limits: Limits = Limits()
    budget: Budget = Budget()
    concurrency: int = 8
    model: str = ""
    weights: str = ""
    template: str = ""
    context_tokens: int = 0
    overhead_tokens: int = 0
    base_url: str = ""
    call_timeout_s: float = 600.0
    origin: str = ""
    scoring: bool = True


class Edit(_Value, frozen=True):
    """An outcome to be replaced in a fork: op `op` of the parent's task `task` shall answer `text`."""

    seq: int
    task: str
    op: int
    text: str


class HitRecord(_Value, frozen=True):
    """One answer of a recall, without its text. `tier` is `hot`, `cold`, `source` or `log`.

    `task` is the path of the task that wrote it, `refs` what a memory was made from, as far as its reader knew.
    """

    ref: Ref
    score: float
    tier: str
    task: str = ""
    refs: tuple[Ref, ...] = ()


class Loss(_Value, frozen=True):
    """What a summary lacks of the span that it replaces: names, numbers, code and rare terms.

    `score` is the share of the span's salient terms that are missing, 0 to 1; `missing` lists the first of
    them in the order of the span.
    """

    score: float
    salient: int
    missing: tuple[str, ...] = ()


class Cause(_Value, frozen=True):
    """The event that made this one follow."""

    seq: int
    reason: str


# --- the run ----------------------------------------------------------------------------------------------


class RunStarted(_Value, frozen=True):
    """A run began. `code` is the version of the program, for information only."""

    config: RunConfig
    code: str = ""


class RunResumed(_Value, frozen=True):
    """A writer took the run's lease. Calls without an outcome before this event belong to a dead writer."""

    epoch: int
    config: RunConfig
    code: str = ""


class RunForked(_Value, frozen=True):
    """A run began as a fork of `parent` after its event `cut`. The first event of the fork's own part.

    `config` holds for ops outside the prefix; None keeps the parent's. With `reuse`, outcomes of the parent's
    whole log are taken over where the request is the same.
    """

    parent: str
    cut: int
    config: RunConfig | None = None
    edits: tuple[Edit, ...] = ()
    reuse: bool = False


class InputAdded(_Value, frozen=True):
    """A source was read, once. Its text is the blob `source`; `raw` is the digest of the bytes as found."""

    name: str
    source: str
    characters: int
    bytes: int
    raw: str
    media_type: str = "text/plain"
    request: str = ""


class MessageReceived(_Value, frozen=True):
    """A message from outside was taken from the inbox. `kind` is `ask` or `cancel`.

    In a run that was made from another program's log, `import` says what of it was passed over, as JSON.
    """

    inbox: int
    kind: str
    text: str = ""


# --- tasks ------------------------------------------------------------------------------------------------


class TaskSpawned(_Value, frozen=True):
    """A task began as op `op` of its parent (or as a root). `inputs` is a JSON object for its agent.

    `budget` is set aside from the parent's. `key` names the child among its siblings across runs.
    """

    path: str
    agent: str
    goal: str
    inputs: msgspec.Raw = msgspec.Raw(b"{}")
    key: str = ""
    budget: Budget | None = None
    window_tokens: int = 0
    request: str = ""


class TaskFinished(_Value, frozen=True):
    """The agent returned. `result` is JSON."""

    result: msgspec.Raw = msgspec.Raw(b"null")


class TaskFailed(_Value, frozen=True):
    """The agent raised."""

    failure: Failure


class TaskCancelled(_Value, frozen=True):
    """The task and all below it were ended from above."""

    reason: str


class TaskJoined(_Value, frozen=True):
    """The parent took a child's result: its writes, accesses and clock ticks are the parent's from here."""

    child: str
    request: str = ""


# --- models and tools -------------------------------------------------------------------------------------


class ModelCalled(_Value, frozen=True):
    """A model was asked. Its prompt is the task's window and then `entries`.

    `request` digests all that the reply may depend on. `prompt_tokens` is the size of the whole prompt as
    counted from the entries. `why` is the reason of an attempt after the first. `continuation` turns the
    call into a scoring of that text. `since` is set where calls are made side by side: what ops from this number on
    brought to the window is beside the call, and not in its prompt.
    """

    request: str
    entries: tuple[Entry, ...]
    prompt_tokens: int
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    keep: bool = True
    continuation: str | None = None
    why: str = ""
    since: int = 0


class ModelReplied(_Value, frozen=True):
    """A model answered, or failed for good. `tokens` is the reply's size as a window entry.

    `edited` is the seq of the parent's outcome that this one replaces by a person's wish; `reused` the seq
    of the one that it takes over unchanged (nothing was paid).
    """

    text: str = ""
    finish: str = "stop"
    tokens: int = 0
    usage: Usage = Usage()
    logprob: float | None = None
    failure: Failure | None = None
    edited: int = 0
    reused: int = 0


class ToolCalled(_Value, frozen=True):
    """A tool is about to act. On disk before the effect; `key` is the same in every attempt."""

    tool: str
    arguments: msgspec.Raw
    request: str
    key: str
    idempotent: bool = False
    why: str = ""


class ToolReturned(_Value, frozen=True):
    """A tool's outcome, as JSON, or why there is none."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    seconds: float = 0.0
    failure: Failure | None = None
    edited: int = 0
    reused: int = 0


class Compacted(_Value, frozen=True):
    """Entries left a task's window and a summary took their place.

    `left` names them by (op, index); they stay addressable by their events. `method` is `model` or
    `extractive`; `by` the system task that asked the model, if one did.
    """

    left: tuple[tuple[int, int], ...]
    summary: str
    tokens: int
    tokens_left: int
    method: str
    loss: Loss
    reason: str
    by: str = ""


# --- memory -----------------------------------------------------------------------------------------------


class Remembered(_Value, frozen=True):
    """An agent kept something. `id` comes from the text alone, so the same text is the same memory."""

    id: str
    text: str
    tokens: int
    refs: tuple[Ref, ...] = ()
    pinned: bool = False
    request: str = ""


class Recalled(_Value, frozen=True):
    """An agent looked something up. With `accessed`, the memories among `hits` are accessed by it, in this order;
    otherwise they were only shown, and those are accessed that enter the task's window or are `Used`.
    """

    query: str
    hits: tuple[HitRecord, ...]
    request: str = ""
    accessed: bool = True


class Used(_Value, frozen=True):
    """What an answer of the agent's rests on. The memories among `refs` are accessed by it, in this order."""

    refs: tuple[Ref, ...]
    request: str = ""


class Evicted(_Value, frozen=True):
    """A memory of the trunk went cold. `age` is in ticks of the token clock since its last access."""

    id: str
    age: int
    cause: Cause


class Revived(_Value, frozen=True):
    """A cold memory of the trunk was accessed and is hot again."""

    id: str
    cause: Cause


# --- the rest ---------------------------------------------------------------------------------------------


class Sampled(_Value, frozen=True):
    """The world was looked at: a clock, a random number, which of several came first, a deadline.

    `what` is `now`, `random`, `sleep`, `first`, `timeout`, `cancel`, `compact`, `score` (by an engine that cannot), `abandoned` (an op that was given up) or
    `unreadable` (an input, and why); `value` is JSON.
    """

    what: str
    value: msgspec.Raw
    request: str = ""


class Refused(_Value, frozen=True):
    """A budget or a cap did not allow the op; this is the op's outcome.

    `of` is the task whose own budget it was, "" for one of the run.
    """

    what: str
    limit: float
    needed: float
    cause: Cause
    of: str = ""


Event = (
    RunStarted
    | RunResumed
    | RunForked
    | InputAdded
    | MessageReceived
    | TaskSpawned
    | TaskFinished
    | TaskFailed
    | TaskCancelled
    | TaskJoined
    | ModelCalled
    | ModelReplied
    | ToolCalled
    | ToolReturned
    | Compacted
    | Remembered
    | Recalled
    | Used
    | Evicted
    | Revived
    | Sampled
    | Refused
)

EVENT_TYPES: dict[str, Any] = {kind.__name__: kind for kind in Event.__args__}
"""The union by the name under which each kind is stored."""
