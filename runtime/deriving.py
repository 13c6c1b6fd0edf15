"""What follows from an event: the refusals and evictions that are computed, never decided.

Owns `derive`, a pure function of the state just after an event. The sequencer appends what it returns in the
same transaction; `verify` computes it again and compares. Invariant: the same prefix of a log always derives
the same events.
"""

from treering.events.catalogue import (
    Cause,
    Event,
    Evicted,
    Header,
    ModelCalled,
    Refused,
    Revived,
    TaskSpawned,
    ToolCalled,
)
from treering.runtime.pools import over_limit
from treering.runtime.state import RunState, TaskState

__all__ = ["DERIVED", "derive"]

DERIVED = (Evicted, Revived)
"""Kinds that are only ever derived. (A `Refused` is too, and it is the outcome of the op that caused it.)"""

SYSTEM_SHARE = 0.25
"""The part of a token budget that compactions may use; beyond it they do without a model."""


def derive(state: RunState, header: Header, event: Event) -> tuple[Header, Event] | None:
    """The next event that `event`, just folded, makes follow, with the task and op it belongs to; or None."""
    if isinstance(event, ModelCalled):
        return _refuse_call(state, header, event)
    if isinstance(event, TaskSpawned):
        refused = _refuse_spawn(state, header, event)
        if refused is not None:
            return refused
    if isinstance(event, ToolCalled):
        late = over_limit(state.pools, state.tasks[header.task].pool, spends=True, paid=False)
        if late is not None:
            return _outcome(header, *late)
    memory = state.memory
    if memory.revivable:
        return _about(header, Revived(memory.revivable[0], Cause(header.seq, "accessed")))
    victim = memory.due()
    if victim is None:
        return None
    age = memory.clock - memory.memories[victim].accessed
    return _about(header, Evicted(victim, age, Cause(header.seq, memory.policy.reason(victim, age))))


def _about(header: Header, event: Event) -> tuple[Header, Event]:
    """A header that names only the task: a derived event of memory belongs to no op."""
    return Header(header.run, 0, type(event).__name__, 0, "", header.task), event


def _refuse_call(state: RunState, header: Header, event: ModelCalled) -> tuple[Header, Event] | None:
    task = state.tasks[header.task]
    found = over_limit(state.pools, task.pool, spends=True)
    if found is None and task.system:
        found = _over_share(state, task.pool, event.prompt_tokens + event.max_tokens)
    return None if found is None else _outcome(header, *found)


def _over_share(state: RunState, path: str, needed: int) -> tuple[str, str, float, float] | None:
    """Whether a compaction would use more than its share of a budget."""
    while path:
        pool = state.pools[path]
        if pool.limit.tokens is not None:
            share = pool.limit.tokens * SYSTEM_SHARE
            over = pool.system + needed > share
            return (path, "budget_system", share, pool.system + needed) if over else None
        path = pool.parent
    return None


def _refuse_spawn(state: RunState, header: Header, event: TaskSpawned) -> tuple[Header, Event] | None:
    task = state.tasks[event.path]
    if not task.parent or task.system:
        return None
    parent = state.tasks[task.parent]
    cap = _over_caps(state, task, parent)
    if cap is not None:
        return _outcome(header, "", *cap)
    if event.budget is None:
        return None
    found = over_limit(state.pools, parent.pool, spends=False)
    return None if found is None else _outcome(header, *found)


def _over_caps(state: RunState, task: TaskState, parent: TaskState) -> tuple[str, float, float] | None:
    limits = state.config.limits
    if task.depth > limits.depth:
        return "max_depth", limits.depth, task.depth
    if parent.children > limits.children:
        return "max_children", limits.children, parent.children
    if state.root_tasks[task.root] > limits.tasks:
        return "max_tasks", limits.tasks, state.root_tasks[task.root]
    return None


def _outcome(header: Header, pool: str, what: str, limit: float, needed: float) -> tuple[Header, Event]:
    of = pool if "." in pool else ""  # a root's budget is the run's
    refused = Refused(what, float(limit), float(needed), Cause(header.seq, what), of)
    return Header(header.run, 0, "Refused", 0, "", header.task, header.op, header.attempt), refused
