"""What holds after every event of every run: named predicates over a fold.

Each has an id that tests and messages quote, looks at what one event did, and answers why it is broken, or None.
"""

from collections.abc import Callable, Iterable

from treering.events.catalogue import (
    Compacted,
    Event,
    Evicted,
    Header,
    InputAdded,
    ModelCalled,
    ModelReplied,
    Recalled,
    Refused,
    Remembered,
    RunForked,
    RunResumed,
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
from treering.events.codec import Record, decode
from treering.memory.hierarchy import TRUNK
from treering.runtime.state import RunState, evolve, new_state

__all__ = ["INVARIANTS", "InvariantBroken", "Seen", "check_log"]

OUTCOMES = (
    InputAdded,
    TaskSpawned,
    TaskJoined,
    ModelReplied,
    ToolReturned,
    Remembered,
    Recalled,
    Used,
    Sampled,
    Refused,
)
ENDS = (TaskFinished, TaskFailed, TaskCancelled)


class InvariantBroken(AssertionError):
    """An invariant does not hold: which, where, why."""

    def __init__(self, name: str, seen: "Seen", why: str) -> None:
        header = seen.header
        super().__init__(
            f"{name} is broken at event {header.seq} ({header.kind} of task {header.task or '-'} op {header.op}): {why}"
        )
        self.name = name


class Seen:
    """A fold in progress: the state after `event`, and what the predicates remember of the events before it."""

    def __init__(self) -> None:
        self.state: RunState = new_state()
        self.header = Header("", 0, "", 0, "")
        self.event: Event | None = None
        self.previous = 0
        self.ended: dict[str, str] = {}
        self.outcomes: dict[tuple[str, int], str] = {}
        self.calls: dict[tuple[str, int], ModelCalled] = {}
        self.acts: dict[tuple[str, int], ToolCalled] = {}
        self.joined: set[str] = set()
        self.windows: dict[str, int] = {}
        self.waiting: list[int] = []
        self.slack_tokens = 0
        self.tokens: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.started: dict[tuple[str, int], list[str]] = {}

    def step(self, header: Header, event: Event) -> None:
        """Fold one event and check all. Raises InvariantBroken."""
        self.previous = self.state.seq
        self.header, self.event = header, event
        self.waiting = sorted(self.state.tasks[header.task].waiting) if header.task in self.state.tasks else []
        evolve(self.state, header, event)
        if isinstance(event, TaskSpawned):
            inherited = self.windows.get(header.task, self.state.config.window_tokens)
            self.windows[event.path] = event.window_tokens or inherited
        for name, holds in INVARIANTS.items():
            why = holds(self)
            if why is not None:
                raise InvariantBroken(name, self, why)
        self._remember(header, event)

    def _remember(self, header: Header, event: Event) -> None:
        place = (header.task, header.op)
        if isinstance(event, ENDS):
            self.ended[header.task] = header.kind
        if _is_outcome(header, event):
            self.outcomes[place] = header.kind
        if isinstance(event, ModelCalled):
            self.calls[place] = event
        if isinstance(event, TaskJoined):
            self.joined.add(event.child)
        if isinstance(event, ToolCalled):
            self.acts[place] = event
        if isinstance(event, ModelReplied) and place in self.calls:
            self.slack_tokens += max(0, event.usage.generated - self.calls[place].max_tokens)


def check_log(records: Iterable[Record]) -> Seen:
    """Check every invariant after every event of a log. Raises InvariantBroken."""
    seen = Seen()
    for record in records:
        stored = decode(record)
        assert stored.event is not None
        seen.step(stored.header, stored.event)
    return seen


def _is_outcome(header: Header, event: Event) -> bool:
    if not header.op or not isinstance(event, OUTCOMES):
        return False
    return not (isinstance(event, TaskSpawned) and "~" in event.path)  # a system task is no op of its own


def gapless(seen: Seen) -> str | None:
    """L1: the log has no gap."""
    if seen.header.seq != seen.previous + 1:
        return f"expected event {seen.previous + 1}"
    return None


def children_end_first(seen: Seen) -> str | None:
    """T1: a child ends before its parent."""
    if isinstance(seen.event, ENDS):
        running = [
            task.path
            for task in seen.state.tasks.values()
            if task.parent == seen.header.task and task.status == "running"
        ]
        if running:
            return f"expected its children to have ended, found {', '.join(running)} running"
    return None


def ends_once(seen: Seen) -> str | None:
    """T2: a task ends once, and does nothing after that."""
    before = seen.ended.get(seen.header.task)
    if before is None or isinstance(seen.event, Evicted) or seen.header.kind == "Revived":
        return None
    return f"expected nothing after its {before}"


def nothing_waits(seen: Seen) -> str | None:
    """T3: a task that ends by itself has an outcome of every op: none waits for one before it."""
    if isinstance(seen.event, TaskFinished | TaskFailed) and seen.waiting:
        return f"expected every op to be applied, found the outcomes of {seen.waiting} waiting"
    return None


def joined_once(seen: Seen) -> str | None:
    """T4: a parent takes the result of its own child, once, and when it has ended."""
    if not isinstance(seen.event, TaskJoined):
        return None
    child = seen.event.child
    if child in seen.joined:
        return f"the result of {child} was taken before"
    task = seen.state.tasks[child]
    if task.parent != seen.header.task or task.status == "running":
        return f"expected a child of {seen.header.task} that has ended, found {child}, {task.status}"
    return None


def acts_once(seen: Seen) -> str | None:
    """E1: a tool that may not be repeated is called once, and one that may with the same key each time."""
    if not isinstance(seen.event, ToolCalled):
        return None
    before = seen.acts.get((seen.header.task, seen.header.op))
    if before is None:
        return None
    if not before.idempotent:
        return "it was called before, and is not idempotent"
    if (before.key == seen.event.key) != (before.request == seen.event.request):
        return f"expected the key {before.key} for its request and no other, found {seen.event.key}"
    return None


def one_outcome(seen: Seen) -> str | None:
    """J1: an op has one outcome, and nothing is called or compacted for it again after that."""
    place = (seen.header.task, seen.header.op)
    before = seen.outcomes.get(place)
    if before is None or not seen.header.op:
        return None
    if isinstance(seen.event, Refused) and before == "TaskSpawned":
        return None  # a spawn that is not allowed: the child is there, and never runs
    if isinstance(seen.event, ModelCalled | ToolCalled | Compacted) or _is_outcome(seen.header, seen.event):
        return f"its outcome, {before}, is recorded already"
    return None


def within_budget(seen: Seen) -> str | None:
    """B1: no token budget is exceeded, whoever used it: not by more than replies exceeded their max_tokens."""
    used = _used_below(seen)
    for path, pool in seen.state.pools.items():
        if pool.limit.tokens is not None and used[path] > pool.limit.tokens + seen.slack_tokens:
            return f"expected at most {pool.limit.tokens} tokens in the pool of {path}, found {used[path]} used"
        if min(pool.reserved, pool.reserved_seconds, pool.reserved_cost, pool.tokens, pool.seconds) < 0:
            return f"expected no negative sums in the pool of {path}, found {pool}"
    if isinstance(seen.event, ModelCalled):
        place, pools = (seen.header.task, seen.header.op), seen.state.pools
        seen.started[place] = [
            path
            for path in _pools_above(seen, seen.state.tasks[seen.header.task].pool)
            if pools[path].limit.seconds is not None and seen.seconds.get(path, 0.0) > pools[path].limit.seconds
        ]
    if isinstance(seen.event, ModelReplied) and seen.event.failure is None and not seen.event.edited:
        over = seen.started.get((seen.header.task, seen.header.op))
        return f"expected no call once the seconds of {over} were over" if over else None
    return None


def _pools_above(seen: Seen, path: str) -> list[str]:
    found = []
    while path:
        found.append(path)
        path = seen.state.pools[path].parent
    return found


def _used_below(seen: Seen) -> dict[str, int]:
    """The tokens that were used under each pool that is open, added up from the calls: nothing is set against it."""
    event, place = seen.event, (seen.header.task, seen.header.op)
    if isinstance(event, ModelReplied):
        call = seen.calls.get(place)
        tokens = event.usage.generated + (call.prompt_tokens if call is not None else 0)
        for path in _pools_above(seen, seen.state.tasks[seen.header.task].pool):
            seen.tokens[path] = seen.tokens.get(path, 0) + tokens
            seen.seconds[path] = seen.seconds.get(path, 0.0) + event.usage.seconds
    return {path: seen.tokens.get(path, 0) for path in seen.state.pools}


def reserved_for_calls(seen: Seen) -> str | None:
    """B2: a pool has reserved what calls in flight may use and what is set aside; nothing for a dead writer."""
    tasks = [task for task in seen.state.tasks.values() if task.status == "running"]
    pools = seen.state.pools
    reserved = dict.fromkeys(pools, (0, 0.0, 0))

    def add(path: str, tokens: int, seconds: float, cost: int) -> None:
        while path and (tokens or seconds or cost):
            limit, (a, b, c) = pools[path].limit, reserved[path]
            reserved[path] = a + tokens, b + seconds, c + cost
            tokens = tokens if limit.tokens is None else 0
            seconds = seconds if limit.seconds is None else 0.0
            cost = cost if limit.cost_micros is None else 0
            path = pools[path].parent

    for task in tasks:
        add(task.pool, sum(call.reserved for call in task.calls.values()), 0.0, 0)
    for pool in pools.values():
        limit = pool.limit
        add(pool.parent, limit.tokens or 0, limit.seconds or 0.0, limit.cost_micros or 0)
    for path, pool in pools.items():
        tokens, seconds, cost = reserved[path]
        if (pool.reserved, pool.reserved_cost) != (tokens, cost) or abs(pool.reserved_seconds - seconds) > 1e-5:
            return f"expected {reserved[path]} to be reserved in the pool of {path}, found {pool}"
    if isinstance(seen.event, RunResumed | RunForked):
        flying = [task.path for task in tasks if any(op not in task.waiting for op in task.calls)]
        return f"expected no call in flight, found those of {flying}" if flying else None
    return None


def within_window(seen: Seen) -> str | None:
    """W1: no prompt that was answered exceeds its task's window, its reply included."""
    if not isinstance(seen.event, ModelReplied) or seen.event.failure is not None:
        return None
    called = seen.calls.get((seen.header.task, seen.header.op))
    if called is None:
        return "it was never called"
    window = seen.windows[seen.header.task]
    if called.prompt_tokens + called.max_tokens > window:
        return f"expected at most {window} tokens, found {called.prompt_tokens} and {called.max_tokens} to come"
    return None


def prompt_is_window(seen: Seen) -> str | None:
    """W2: a prompt is the task's window as it was before the call's await, what the call asks, and the template."""
    called = seen.event
    if not isinstance(called, ModelCalled):
        return None
    window = seen.state.tasks[seen.header.task].window
    shown = window.entries if window is not None else []
    tokens = sum(item.entry.tokens for item in shown if not called.since or item.op < called.since)
    tokens += sum(entry.tokens for entry in called.entries) + seen.state.config.overhead_tokens
    return None if tokens == called.prompt_tokens else f"expected {tokens} tokens, found {called.prompt_tokens}"


def pinned_stay(seen: Seen) -> str | None:
    """M1: a pinned memory, or one that the live root's window holds, is never evicted."""
    if isinstance(seen.event, Evicted):
        memory = seen.state.memory.memories[seen.event.id]
        if memory.pinned:
            return f"memory {memory.id} is pinned"
        if memory.id in seen.state.memory.held:
            return f"memory {memory.id} is held by a window"
    return None


def only_the_unused_go(seen: Seen) -> str | None:
    """M2: what is evicted was unused for longer than the window, or did not fit into the size with the rest."""
    if not isinstance(seen.event, Evicted):
        return None
    name, _, size = seen.state.config.retention.partition(":")
    memory = seen.state.memory
    age = memory.clock - memory.memories[seen.event.id].accessed
    if age != seen.event.age:
        return f"expected the age {age}, found {seen.event.age}"
    if name == "none":
        return f"expected no eviction under {name}"
    if name == "window":
        return None if age > int(size) else f"unused for only {age} tokens of {size}"
    free = [id for id in memory.memories if TRUNK in memory.memories[id].placed and memory.is_hot(id)]
    free = [id for id in free if not memory.memories[id].pinned and id not in memory.held]
    tokens = sum(memory.memories[id].tokens for id in (*free, seen.event.id))
    return None if tokens > int(size) else f"expected more than {size} tokens before it, found {tokens}"


INVARIANTS: dict[str, Callable[[Seen], str | None]] = {
    "L1": gapless,
    "T1": children_end_first,
    "T2": ends_once,
    "T3": nothing_waits,
    "T4": joined_once,
    "E1": acts_once,
    "J1": one_outcome,
    "B1": within_budget,
    "B2": reserved_for_calls,
    "W1": within_window,
    "W2": prompt_is_window,
    "M1": pinned_stay,
    "M2": only_the_unused_go,
}
"""By id. Quoted in messages."""
