"""The state of a run: a fold over its events, and nothing else.

Owns the task tree, the windows, the memory hierarchy and the budgets. It reads no clock and asks no engine.
Law: folding a prefix and then the rest equals folding all, also if the state was stored in between. `evolve`
consumes the state that it is given.

Effects of an op on window and memory are applied in the order of op numbers, whatever order the outcomes were
recorded in: an outcome that comes early waits in `TaskState.waiting` until those before it are there.
"""

from collections.abc import Callable, Iterable
from typing import Any, assert_never

import msgspec

from treering.events.catalogue import (
    Compacted,
    Event,
    Evicted,
    Header,
    InputAdded,
    MemoryRef,
    MessageReceived,
    ModelCalled,
    ModelReplied,
    Recalled,
    Refused,
    Remembered,
    Revived,
    RunConfig,
    RunForked,
    RunResumed,
    RunStarted,
    Sampled,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    ToolCalled,
    ToolReturned,
    Used,
)
from treering.events.codec import decode_body, to_json
from treering.memory.hierarchy import TRUNK, Hierarchy
from treering.memory.queues import from_plain, to_plain
from treering.memory.windows import Window, memories_of
from treering.runtime.errors import told
from treering.runtime.pools import Pool, charge, close_pool, open_pool, reserve

__all__ = [
    "Call",
    "RunState",
    "TaskState",
    "Totals",
    "depth_of",
    "evolve",
    "load_state",
    "new_state",
    "parent_path",
    "save_state",
    "scope_of",
]


class Call(msgspec.Struct, gc=False):
    """A model call without its outcome yet."""

    called: ModelCalled
    reserved: int


class Waiting(msgspec.Struct, gc=False):
    """An outcome that came before those of earlier ops: its header and its body."""

    header: Header
    body: bytes


class TaskState(msgspec.Struct, gc=False):
    """One task. `pool` is the path of the task whose pool it draws on; `next_op` the first op whose effects
    are not yet applied; `system` marks compactions and the like; `parent_done` are the ops of its parent, below this
    number, that were applied when it began; `joined` is the op of its parent that took its result; `offered` are
    memories that it was shown: it accesses them when they enter its window; `running` holds the paths of the
    children that did not end."""

    path: str
    parent: str
    agent: str
    goal: str
    root: str
    pool: str
    spawned: int
    op: int = 0
    depth: int = 1
    system: bool = False
    status: str = "running"
    children: int = 0
    parent_done: int = 0
    running: dict[str, None] | None = None
    next_op: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    window: Window | None = None
    joined: int = 0
    offered: tuple[str, ...] = ()  # a list for each task would be the garbage collector's to look at, for ever
    calls: dict[int, Call] = {}
    waiting: dict[int, list[Waiting]] = {}
    result: str = ""
    failure: str = ""

    def closed(self, op: int) -> bool:
        """Whether the log holds the outcome of this op."""
        return op < self.next_op or op in self.waiting


class Totals(msgspec.Struct, gc=False):
    """Sums over a run, for people."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    seconds: float = 0.0
    cost_micros: int = 0
    reused: int = 0


class RunState(msgspec.Struct):
    """Everything that can be known of a run at one event. `readers` are the ops that read each source."""

    config: RunConfig
    seq: int = 0
    epoch: int = 1
    inbox: int = 0
    tasks: dict[str, TaskState] = {}
    pools: dict[str, Pool] = {}
    roots: list[str] = []
    root_tasks: dict[str, int] = {}
    sources: dict[str, InputAdded] = {}
    readers: dict[str, list[tuple[str, int]]] = {}
    memory: Hierarchy = msgspec.field(default_factory=Hierarchy)
    totals: Totals = msgspec.field(default_factory=Totals)
    asked: list[str] = []
    cancelled: bool = False

    @property
    def status(self) -> str:
        """`empty`, `imported`, `running`, or what became of the last root."""
        if self.config.origin:
            return "imported"
        return self.tasks[self.roots[-1]].status if self.roots else "empty"


def new_state() -> RunState:
    """The state before any event."""
    return RunState(RunConfig(""))


def evolve(state: RunState, header: Header, event: Event | None) -> RunState:
    """The state after one more event; `state` itself is consumed. A destroyed body changes only `seq`."""
    state.seq = header.seq
    if event is not None:
        _APPLY[type(event)](state, header, event)
    return state


def save_state(state: RunState) -> bytes:
    """The state as bytes."""
    return msgspec.msgpack.encode(state, enc_hook=to_plain)


def load_state(state: bytes) -> RunState:
    """The state in these bytes. Raises msgspec.DecodeError if they are none."""
    return msgspec.msgpack.decode(state, type=RunState, dec_hook=from_plain)


def depth_of(path: str) -> int:
    """How deep a task stands: 1 for a root."""
    return path.count(".") + 1


def parent_path(path: str) -> str:
    """The path of the task above, "" for a root. A system task stands under the task that caused it."""
    cut = max(path.rfind("."), path.rfind("~"))
    return path[:cut] if cut > 0 else ""


def scope_of(task: TaskState) -> str:
    """The memory scope that a task writes to: roots write to the trunk."""
    if task.system:
        return TRUNK if parent_path(task.path) == task.root else parent_path(task.path)
    return TRUNK if task.path == task.root else task.path


# --- the run ----------------------------------------------------------------------------------------------


def _run_started(state: RunState, header: Header, event: RunStarted) -> None:
    _configure(state, event.config)


def _run_resumed(state: RunState, header: Header, event: RunResumed) -> None:
    _configure(state, event.config)
    state.epoch = event.epoch
    _release_calls(state)


def _run_forked(state: RunState, header: Header, event: RunForked) -> None:
    if event.config is not None:
        _configure(state, event.config)
        for path in state.roots:
            if state.tasks[path].status == "running":  # a question in progress goes on under the new budget
                state.pools[path].limit = event.config.budget
    state.epoch = 1
    _release_calls(state)


def _configure(state: RunState, config: RunConfig) -> None:
    state.config = config
    state.memory.use(config.retention, config.seed)


def _release_calls(state: RunState) -> None:
    # Calls without an outcome belong to a writer that is gone: what they had reserved is free again.
    for task in state.tasks.values():
        if task.status == "running":
            for op, call in list(task.calls.items()):
                if op not in task.waiting:
                    reserve(state.pools, task.pool, -call.reserved)
                    del task.calls[op]


def _input_added(state: RunState, header: Header, event: InputAdded) -> None:
    state.sources.setdefault(event.source, event)
    state.readers.setdefault(event.source, []).append((header.task, header.op))
    _close_op(state, header, event)


def _message_received(state: RunState, header: Header, event: MessageReceived) -> None:
    state.inbox = max(state.inbox, event.inbox)
    if event.kind == "ask":
        state.asked.append(event.text)
    elif event.kind == "cancel":
        state.cancelled = True


# --- tasks ------------------------------------------------------------------------------------------------


def _task_spawned(state: RunState, header: Header, event: TaskSpawned) -> None:
    path = event.path
    system = "~" in path
    parent = state.tasks.get(header.task) if header.op or system else None
    above, root, depth = "", path, 1
    if parent is not None:
        above, root, depth = header.task, parent.root, parent.depth + (0 if system else 1)
    task = TaskState(path, above, event.agent, event.goal, root, path, header.seq, header.op, depth, system)
    if parent is None:
        state.roots.append(path)
        open_pool(state.pools, path, event.budget or state.config.budget, "")
        state.cancelled = False
        if state.asked and state.asked[0] == event.goal:
            state.asked.pop(0)
    elif event.budget is not None:
        open_pool(state.pools, path, event.budget, parent.pool)
    else:
        task.pool = parent.pool
    state.tasks[path] = task
    if parent is not None:
        if parent.running is None:
            parent.running = {}
        parent.running[path] = None
    if parent is not None and not system:
        parent.children += 1
        task.parent_done = parent.next_op
        state.memory.open(path, scope_of(parent))
        _close_op(state, header, event)
    if not system:
        state.root_tasks[root] = state.root_tasks.get(root, 0) + 1


def _end(state: RunState, path: str, status: str) -> TaskState:
    task = state.tasks[path]
    task.status = status
    if task.parent and (running := state.tasks[task.parent].running):
        running.pop(path, None)
    if task.calls:
        for call in task.calls.values():
            reserve(state.pools, task.pool, -call.reserved)
        task.calls.clear()
    if task.window is not None:
        task.window = None
        if path == task.root:
            state.memory.hold(set())
    task.waiting.clear()
    if task.pool == path and task.parent:
        close_pool(state.pools, path)
        task.pool = state.tasks[task.parent].pool
    return task


def _task_finished(state: RunState, header: Header, event: TaskFinished) -> None:
    task = _end(state, header.task, "finished")
    if not task.parent:
        task.result = bytes(event.result).decode()


def _task_failed(state: RunState, header: Header, event: TaskFailed) -> None:
    failure = event.failure
    where = f" ({failure.line})" if failure.line else ""
    _end(state, header.task, "failed").failure = f"{told(failure, header.task)}{where}"


def _task_cancelled(state: RunState, header: Header, event: TaskCancelled) -> None:
    if state.tasks[header.task].status == "running":
        _end(state, header.task, "cancelled").failure = event.reason


# --- ops ----------------------------------------------------------------------------------------------------


def _model_called(state: RunState, header: Header, event: ModelCalled) -> None:
    task = state.tasks[header.task]
    old = task.calls.get(header.op)
    if old is not None:
        reserve(state.pools, task.pool, -old.reserved)
    reserved = event.prompt_tokens + event.max_tokens
    reserve(state.pools, task.pool, reserved)
    task.calls[header.op] = Call(event, reserved)


def _model_replied(state: RunState, header: Header, event: ModelReplied) -> None:
    task = state.tasks[header.task]
    call = task.calls.get(header.op)
    usage = event.usage
    prompt, cached, generated = usage.prompt, usage.cached, usage.generated
    tokens = 0
    if call is not None:
        reserve(state.pools, task.pool, -call.reserved)
        call.reserved = 0
        if event.failure is None or event.failure.kind != "window":  # that one was never sent
            tokens = call.called.prompt_tokens + generated
    charge(state.pools, task.pool, tokens, usage.seconds, usage.cost_micros, tokens if task.system else 0)
    task.prompt_tokens += prompt
    task.cached_tokens += cached
    task.generated_tokens += generated
    totals = state.totals
    if event.reused:
        totals.reused += 1
    else:
        totals.prompt += prompt
        totals.cached += cached
        totals.generated += generated
        totals.seconds += usage.seconds
        totals.cost_micros += usage.cost_micros
    _close_op(state, header, event)


def _tool_called(state: RunState, header: Header, event: ToolCalled) -> None:
    """Only the outcome has an effect on the state."""


def _tool_returned(state: RunState, header: Header, event: ToolReturned) -> None:
    charge(state.pools, state.tasks[header.task].pool, seconds=event.seconds)
    _close_op(state, header, event)


def _compacted(state: RunState, header: Header, event: Compacted) -> None:
    # At an op boundary: nothing of this task is open, so the window can change at once.
    task = state.tasks[header.task]
    if task.window is not None:
        task.window.compact(header.op, event)
        state.memory.tick(scope_of(task), event.tokens)
        if task.path == task.root:
            state.memory.hold(task.window.memories())


def _evicted(state: RunState, header: Header, event: Evicted) -> None:
    state.memory.evict(event.id)


def _revived(state: RunState, header: Header, event: Revived) -> None:
    state.memory.revive(event.id)


def _refused(state: RunState, header: Header, event: Refused) -> None:
    task = state.tasks[header.task]
    call = task.calls.pop(header.op, None)
    if call is not None:
        reserve(state.pools, task.pool, -call.reserved)
    last = state.tasks[next(reversed(state.tasks))]
    if last.parent == header.task and last.op == header.op:
        # A spawn that is not allowed: the child, which has just come, is there, and never runs.
        _end(state, last.path, "refused").failure = event.what
    else:
        _close_op(state, header, event)


def _close_op(state: RunState, header: Header, event: Event) -> None:
    """The outcome of an op is there: apply it, or let it wait for those before it."""
    task = state.tasks[header.task]
    op = header.op
    if op != task.next_op:
        if op > task.next_op:
            task.waiting.setdefault(op, []).append(Waiting(header, to_json(event)))
        return
    if (effect := _EFFECTS.get(type(event))) is not None:
        effect(state, task, header, event)
    task.next_op = op + 1
    while task.waiting and (held := task.waiting.pop(task.next_op, None)):
        for one in held:
            late = decode_body(one.header.kind, one.header.version, one.body)
            if (effect := _EFFECTS.get(type(late))) is not None:
                effect(state, task, one.header, late)
        task.next_op += 1


# --- what an op does to its task's window and memory, and to the clock ----------------------------------------


def _reply_enters(state: RunState, task: TaskState, header: Header, event: ModelReplied) -> None:
    call = task.calls.pop(header.op, None)
    if call is None or event.failure is not None:
        return
    called = call.called
    memory = state.memory
    if called.keep:
        if task.window is None:
            task.window = Window()
        memory.tick(scope_of(task), task.window.enter(header.op, called, event))
    else:
        memory.tick(scope_of(task), event.tokens + sum(entry.tokens for entry in called.entries))
    if task.offered:
        shown = [part for entry in called.entries for part in entry.parts if isinstance(part, MemoryRef)]
        _access(state, task, [ref for ref in shown if ref.id in task.offered])
    if called.keep and task.path == task.root and (more := memories_of(called.entries)):
        memory.hold(more.union(memory.held))


def _child_joins(state: RunState, task: TaskState, header: Header, event: TaskJoined) -> None:
    state.memory.join(event.child, scope_of(task))
    state.tasks[event.child].joined = header.op


def _memory_is_kept(state: RunState, task: TaskState, header: Header, event: Remembered) -> None:
    by = (task.path, header.op, header.seq)
    state.memory.remember(scope_of(task), event.id, event.text, event.tokens, event.refs, event.pinned, *by)


def _hits_are_shown(state: RunState, task: TaskState, header: Header, event: Recalled) -> None:
    refs = [hit.ref for hit in event.hits if isinstance(hit.ref, MemoryRef)]
    if event.accessed:
        _access(state, task, refs)
    else:
        task.offered = tuple(dict.fromkeys([*task.offered, *(ref.id for ref in refs)]))


def _found_is_used(state: RunState, task: TaskState, header: Header, event: Used) -> None:
    _access(state, task, [ref for ref in event.refs if isinstance(ref, MemoryRef)])


def _access(state: RunState, task: TaskState, refs: Iterable[MemoryRef]) -> None:
    for ref in refs:
        state.memory.access(scope_of(task), ref.id)


_EFFECTS: dict[type[Any], Callable[[RunState, TaskState, Header, Any], None]] = {
    ModelReplied: _reply_enters,
    TaskJoined: _child_joins,
    Remembered: _memory_is_kept,
    Recalled: _hits_are_shown,
    Used: _found_is_used,
}
"""Kinds without an entry here close their op, and that is all."""


def _check_union(event: Event) -> None:
    """Never called: a kind that is missing here, and so perhaps in `_APPLY`, breaks the type check."""
    match event:
        case RunStarted() | RunResumed() | RunForked() | InputAdded() | MessageReceived():
            ...
        case TaskSpawned() | TaskFinished() | TaskFailed() | TaskCancelled() | TaskJoined():
            ...
        case ModelCalled() | ModelReplied() | ToolCalled() | ToolReturned() | Compacted():
            ...
        case Remembered() | Recalled() | Used() | Evicted() | Revived() | Sampled() | Refused():
            ...
        case _:
            assert_never(event)


_APPLY: dict[type[Any], Callable[[RunState, Header, Any], None]] = {
    RunStarted: _run_started,
    RunResumed: _run_resumed,
    RunForked: _run_forked,
    InputAdded: _input_added,
    MessageReceived: _message_received,
    TaskSpawned: _task_spawned,
    TaskFinished: _task_finished,
    TaskFailed: _task_failed,
    TaskCancelled: _task_cancelled,
    TaskJoined: _close_op,
    ModelCalled: _model_called,
    ModelReplied: _model_replied,
    ToolCalled: _tool_called,
    ToolReturned: _tool_returned,
    Compacted: _compacted,
    Remembered: _close_op,
    Recalled: _close_op,
    Used: _close_op,
    Evicted: _evicted,
    Revived: _revived,
    Sampled: _close_op,
    Refused: _refused,
}
