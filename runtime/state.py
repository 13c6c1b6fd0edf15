"""The state of a run: a fold over its events, and nothing else.

Owns the task tree, the windows, the memory hierarchy and the budgets. It reads no clock and asks no engine.
Law: folding a prefix and then the rest equals folding all, also if the state was stored in between. `evolve`
consumes the state that it is given.

Effects of an op on window and memory are applied in the order of op numbers, whatever order the outcomes were
recorded in: an outcome that comes early waits in `TaskState.waiting` until those before it are there.
"""

from collections.abc import Callable
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
)
from treering.events.codec import decode_body, to_json
from treering.memory.hierarchy import TRUNK, Hierarchy
from treering.memory.windows import Window, memories_of
from treering.runtime.pools import Pool, charge, close_pool, open_pool, reserve

__all__ = [
    "Call",
    "RunState",
    "TaskState",
    "Totals",
    "depth_of",
    "evolve",
    "new_state",
    "parent_path",
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
    are not yet applied; `system` marks compactions and the like; `running` holds the paths of the children that did
    not end."""

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
    running: dict[str, None] | None = None
    next_op: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    window: Window | None = None
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
    """Everything that can be known of a run at one event."""

    config: RunConfig
    seq: int = 0
    epoch: int = 1
    inbox: int = 0
    tasks: dict[str, TaskState] = {}
    pools: dict[str, Pool] = {}
    roots: list[str] = []
    root_tasks: dict[str, int] = {}
    sources: dict[str, InputAdded] = {}
    memory: Hierarchy = msgspec.field(default_factory=Hierarchy)
    totals: Totals = msgspec.field(default_factory=Totals)
    asked: list[str] = []
    cancelled: bool = False

    @property
    def status(self) -> str:
        """`empty`, `running`, or what became of the last root."""
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
    state.config = event.config


def _run_resumed(state: RunState, header: Header, event: RunResumed) -> None:
    state.config = event.config
    state.epoch = event.epoch
    _release_calls(state)


def _run_forked(state: RunState, header: Header, event: RunForked) -> None:
    if event.config is not None:
        state.config = event.config
        for path in state.roots:
            if state.tasks[path].status == "running":  # a question in progress goes on under the new budget
                state.pools[path].limit = event.config.budget
    state.epoch = 1
    _release_calls(state)


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
    _end(state, header.task, "failed").failure = event.failure.message


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
        effect(state, task, op, event)
    task.next_op = op + 1
    while task.waiting and (held := task.waiting.pop(task.next_op, None)):
        for one in held:
            late = decode_body(one.header.kind, one.header.version, one.body)
            if (effect := _EFFECTS.get(type(late))) is not None:
                effect(state, task, task.next_op, late)
        task.next_op += 1


# --- what an op does to its task's window and memory, and to the clock ----------------------------------------


def _reply_enters(state: RunState, task: TaskState, op: int, event: ModelReplied) -> None:
    call = task.calls.pop(op, None)
    if call is None or event.failure is not None:
        return
    called = call.called
    memory = state.memory
    if not called.keep:
        memory.tick(scope_of(task), event.tokens + sum(entry.tokens for entry in called.entries))
        return
    window = task.window
    if window is None:
        window = task.window = Window()
    memory.tick(scope_of(task), window.enter(op, called, event))
    if task.path == task.root and (more := memories_of(called.entries)):
        memory.hold(more.union(memory.held))


def _child_joins(state: RunState, task: TaskState, op: int, event: TaskJoined) -> None:
    state.memory.join(event.child, scope_of(task))


def _memory_is_kept(state: RunState, task: TaskState, op: int, event: Remembered) -> None:
    state.memory.remember(scope_of(task), event.id, event.text, event.tokens, event.refs, event.pinned)


def _hits_are_accessed(state: RunState, task: TaskState, op: int, event: Recalled) -> None:
    for hit in event.hits:
        if isinstance(hit.ref, MemoryRef):
            state.memory.access(scope_of(task), hit.ref.id)


_EFFECTS: dict[type[Any], Callable[[RunState, TaskState, int, Any], None]] = {
    ModelReplied: _reply_enters,
    TaskJoined: _child_joins,
    Remembered: _memory_is_kept,
    Recalled: _hits_are_accessed,
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
        case Remembered() | Recalled() | Evicted() | Revived() | Sampled() | Refused():
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
    Evicted: _evicted,
    Revived: _revived,
    Sampled: _close_op,
    Refused: _refused,
}
