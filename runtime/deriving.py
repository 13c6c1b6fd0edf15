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
)
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
    pool = state.pools[task.pool]
    limit = pool.limit
    needed = event.prompt_tokens + event.max_tokens
    what: tuple[str, float, float] | None = None
    if limit.tokens is not None and pool.tokens + pool.reserved > limit.tokens:
        what = ("budget_tokens", limit.tokens, pool.tokens + pool.reserved)
    elif limit.seconds is not None and pool.seconds >= limit.seconds:
        what = ("budget_seconds", limit.seconds, pool.seconds)
    elif limit.cost_micros is not None and pool.cost_micros >= limit.cost_micros:
        what = ("budget_cost", limit.cost_micros, pool.cost_micros)
    elif task.system and limit.tokens is not None and pool.system + needed > limit.tokens * SYSTEM_SHARE:
        what = ("budget_system", limit.tokens * SYSTEM_SHARE, pool.system + needed)
    return None if what is None else _outcome(header, *what)


def _refuse_spawn(state: RunState, header: Header, event: TaskSpawned) -> tuple[Header, Event] | None:
    task = state.tasks[event.path]
    if not task.parent or task.system:
        return None
    parent = state.tasks[task.parent]
    found = _over_limits(state, task, parent)
    if found is not None:
        return _outcome(header, *found)
    if event.budget is not None and event.budget.tokens is not None:
        pool = state.pools[parent.pool]
        if pool.limit.tokens is not None and pool.tokens + pool.reserved > pool.limit.tokens:
            return _outcome(header, "budget_tokens", pool.limit.tokens, pool.tokens + pool.reserved)
    return None


def _over_limits(state: RunState, task: TaskState, parent: TaskState) -> tuple[str, float, float] | None:
    limits = state.config.limits
    if task.depth > limits.depth:
        return "max_depth", limits.depth, task.depth
    if parent.children > limits.children:
        return "max_children", limits.children, parent.children
    if state.root_tasks[task.root] > limits.tasks:
        return "max_tasks", limits.tasks, state.root_tasks[task.root]
    return None


def _outcome(header: Header, what: str, limit: float, needed: float) -> tuple[Header, Event]:
    refused = Refused(what, float(limit), float(needed), Cause(header.seq, what))
    return Header(header.run, 0, "Refused", 0, "", header.task, header.op, header.attempt), refused
