"""The task as agent code sees it: everything that is not pure goes through it.

Owns the numbering of ops, the task's own window and the way from a request to its outcome: what the lineage
holds is returned, what it does not hold is performed and recorded. It never writes to a store itself.
Invariant: for the same log, the same code makes the same requests.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from treering.events.catalogue import (
    Budget,
    Failure,
    InputAdded,
    MemoryRef,
    Recalled,
    Ref,
    Refused,
    Remembered,
    Sampled,
    SourceSpan,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    ToolReturned,
    Used,
)
from treering.events.codec import text_digest, to_json
from treering.events.errors import InputError
from treering.events.log import Blob
from treering.memory.hierarchy import memory_id, normalise
from treering.memory.recall import Hit, Query, check_unicode
from treering.runtime.acting import Act, current_call_key, perform_act
from treering.runtime.calling import ModelCalls
from treering.runtime.digests import plain_digest, spawn_digest
from treering.runtime.engine import Message
from treering.runtime.errors import (
    BudgetExceeded,
    ChildCancelled,
    ChildFailed,
    LimitReached,
    OpMisused,
    OpTimeout,
    ToolFailed,
    refusal,
)
from treering.runtime.journal import OpRecord
from treering.runtime.ops import Op, abandon_all, prepare_all, run_together, run_until_first, settled
from treering.runtime.prompts import Answer, Call, Prompt, Say, ref_of
from treering.runtime.recalling import past_of, sources_seen
from treering.runtime.registry import AgentFunction
from treering.runtime.seams import current_task
from treering.runtime.spilling import shortened
from treering.runtime.state import TaskState

if TYPE_CHECKING:
    from treering.runtime.runner import Runner

__all__ = ["Answer", "Child", "Prompt", "Say", "Task", "TaskLimits", "current_call_key"]

T = TypeVar("T")
E = TypeVar("E", Remembered, Recalled, Used)

_QUERY_CHARACTERS = 2000


class TaskLimits(msgspec.Struct, frozen=True):
    """What a task may use, as the run was configured when it began.

    `window_tokens` is the size of a window, `own_depth` the task's level (1 for a root), `depth` the levels that may
    stand below it, `children` how many it may have, `tasks` how many its root may have in all, itself included.
    """

    window_tokens: int
    own_depth: int
    depth: int
    children: int
    tasks: int


class Child:
    """A task below this one. Await it (or hand it to `gather`) to take its result, once."""

    def __init__(self, task: "Task", path: str, returns: Any) -> None:
        self.path = path
        self._task = task
        self._returns = returns
        self.joined = False

    def join(self) -> Op[Any]:
        """The op that takes the result. Raises ChildFailed, ChildCancelled, LimitReached, BudgetExceeded."""
        return self._task.join(self)

    def cancel(self) -> Op[bool]:
        """The op that ends the child and all below it; whether it was still running."""
        return self._task.cancel(self)

    def __await__(self) -> Any:
        return self.join().__await__()


class Task:
    """One task. Made by the runner; agent code only uses its public methods."""

    def __init__(self, runner: "Runner", path: str, goal: str, window_tokens: int, keys: str) -> None:
        self.path = path
        self.goal = goal
        self.window_tokens = window_tokens
        self._runner = runner
        self._keys = keys
        self._op = 0
        self._spawned = 0
        self._open: dict[int, Op[Any]] = {}
        self._children: list[Child] = []
        self._told: dict[str, tuple[Ref, ...]] = {}
        self._calls = ModelCalls(self, runner, window_tokens, keys)
        self._coroutine = current_task()
        self._deadline = anyio.current_effective_deadline()

    # --- the order of ops -------------------------------------------------------------------------------

    def add_open(self, op: Op[Any]) -> None:
        """Called by an op as it is made."""
        self._open[id(op)] = op

    def begin(self, op: Op[Any]) -> None:
        """Called by an op as it is awaited by agent code."""
        if current_task() is not self._coroutine:
            raise self._misused("an op was awaited by another coroutine than the agent's own; use spawn and gather")
        if anyio.current_effective_deadline() < self._deadline:
            raise self._misused("an op was awaited under a deadline of the agent's own; use task.timeout")
        if self._open.get(id(op)) is not op:
            raise self._misused(f"a {op.what} was awaited twice, or is part of a gather")
        if next(iter(self._open.values())) is not op:
            raise self._misused(f"a {op.what} was awaited before an op made earlier; await in order or use gather")
        del self._open[id(op)]

    def settle(self) -> None:
        """Called once an await is over: the replies that came enter the window."""
        self._calls.settle()

    def _misused(self, why: str) -> OpMisused:
        return OpMisused(f"task {self.path}: {why}")

    def _next(self) -> int:
        if current_task() is not self._coroutine:
            raise self._misused("an op was made by another coroutine than the agent's own; use spawn and gather")
        self._op += 1
        return self._op

    def _take(self, number: int, request: str, asked: str | bytes) -> OpRecord:
        """What is recorded of an op. Raises Divergence where that was another request."""
        record = self._runner.journal.take(self.path, number)
        if record is None:
            return OpRecord()
        recorded = record.request
        if record.outcome is None:  # one in flight is performed anew, whatever it was
            self._runner.need_known(self.path, number, record, request)
        elif recorded and request and recorded != request:
            raise self._runner.diverged(self.path, number, record, asked, self._coroutine)
        return record

    def _done(self) -> int:
        """The number below which ops are done: one that is made and not awaited is not, whatever the log holds."""
        return min((op.number for op in self._open.values()), default=self._op + 1)

    @property
    def _state(self) -> TaskState:
        return self._runner.state.tasks[self.path]

    # --- several at once --------------------------------------------------------------------------------

    def gather(self, *awaitables: "Op[Any] | Child", return_failures: bool = False) -> Op[list[Any]]:
        """Perform all side by side and wait for all; results by position.

        A failure is raised after all have settled (the first by position), or stands in its place with
        `return_failures`.
        """
        ops = self._consume(awaitables)

        async def perform() -> list[Any]:
            results = await run_together(ops)
            if not return_failures:
                for result in results:
                    if isinstance(result, Exception):
                        raise result
            return results

        return self._op_of("gather", 0, ops, perform)

    def first(self, *awaitables: "Op[Any] | Child") -> Op[tuple[int, Any]]:
        """Perform all side by side; the position and result of the one that came first. The rest is ended."""
        ops = self._consume(awaitables)
        if not ops:
            raise self._misused("first needs at least one op")
        number = self._next()

        async def perform() -> tuple[int, Any]:
            request = plain_digest("first", len(ops))
            record = self._take(number, request, "first")
            if isinstance(record.outcome, Sampled):
                winner: int = msgspec.json.decode(record.outcome.value)
                result = await settled(ops[winner])
            else:
                winner, result = await run_until_first(ops)
            if record.outcome is None:
                # Before the others are given up: on disk, none is given up for a winner that is not known.
                await self._sample(number, "first", winner, request)
            await abandon_all([*ops[:winner], *ops[winner + 1 :]], "another came first")
            if isinstance(result, Exception):
                raise result
            return winner, result

        return self._op_of("first", number, ops, perform)

    def timeout(self, seconds: float, awaitable: "Op[T] | Child") -> Op[T]:
        """Perform an op within `seconds`, counted from when it is ready. Raises OpTimeout after giving it up."""
        (op,) = self._consume((awaitable,))
        number = self._next()

        async def perform() -> T:
            request = plain_digest("timeout", seconds)
            record = self._take(number, request, "timeout")
            result: Any = None
            if isinstance(record.outcome, Sampled):
                expired = bool(msgspec.json.decode(record.outcome.value))
                if not expired:
                    result = await settled(op)
            else:
                with anyio.move_on_after(seconds) as scope:
                    result = await settled(op)
                expired = scope.cancelled_caught
            if record.outcome is None:
                await self._sample(number, "timeout", expired, request)
            if expired:
                await abandon_all([op], "the deadline passed")
                raise OpTimeout(f"task {self.path}: {op.what} took longer than {seconds} s")
            if isinstance(result, Exception):
                raise result
            return result  # type: ignore[no-any-return]

        return self._op_of("timeout", number, [op], perform)

    def _op_of(self, what: str, number: int, ops: list[Op[Any]], perform: Callable[[], Awaitable[T]]) -> Op[T]:
        """An op made of others: ready when they are, given up with them (number 0: it has no outcome of its own)."""

        async def abandon(reason: str) -> None:
            await abandon_all(ops, reason)
            if number:
                await self._give_up(number, reason)

        first = min((op.number for op in ops), default=self._op + 1)
        return Op(self, first, what, perform, lambda: prepare_all(ops), abandon)

    async def _give_up(self, number: int, reason: str) -> None:
        """Record that an op was given up, unless the log holds its outcome: those after it wait for one."""
        if not self._state.closed(number):
            await self._sample(number, "abandoned", reason, "")

    def _consume(self, awaitables: Sequence["Op[Any] | Child"]) -> list[Op[Any]]:
        ops: list[Op[Any]] = []
        for awaitable in awaitables:
            op = awaitable.join() if isinstance(awaitable, Child) else awaitable
            if not isinstance(op, Op) or self._open.pop(id(op), None) is None:
                raise self._misused("gather, first and timeout take ops and children of this task, each once")
            ops.append(op)
        return ops

    # --- children ---------------------------------------------------------------------------------------

    def spawn(
        self,
        agent: AgentFunction | str,
        goal: str,
        *,
        key: str = "",
        budget: Budget | None = None,
        window_tokens: int | None = None,
        **inputs: Any,
    ) -> Child:
        """Begin a child that runs beside this task. `inputs` are JSON values for its agent.

        `key` names the child among its siblings: twins that should differ get distinct keys. `budget` is set
        aside from this task's. What is not allowed (depth, children, tasks, budget) is raised by the join.
        """
        number = self._next()
        name, function = self._runner.agents.resolve(agent)
        encoded = to_json(inputs)
        window = window_tokens or 0
        request = spawn_digest(name, goal, encoded, key, budget, window)
        self._spawned += 1
        record = self._take(number, request, encoded)
        if isinstance(record.outcome, TaskSpawned):
            path = record.outcome.path
        else:
            self._runner.need_live(self.path, number, "spawn")
            path = f"{self.path}.{self._spawned}"
            event = TaskSpawned(path, name, goal, msgspec.Raw(encoded), key, budget, window, request)
            _, refused = self._runner.sequencer.append(event, self.path, number)
            record.refused = refused if isinstance(refused, Refused) else None
        child = Child(self, path, self._runner.agents.returns(function))
        self._children.append(child)
        if self._runner.reuse is not None:
            self._runner.reuse.correspond(path, self.path, key, request)
        keys = f"{self._keys}/{key}"
        self._runner.start_task(path, function, goal, encoded, window or self.window_tokens, keys, record.refused)
        return child

    def join(self, child: Child) -> Op[Any]:
        """The op that takes a child's result."""
        if child.joined:
            raise self._misused(f"the result of task {child.path} was taken already")
        child.joined = True
        number = self._next()

        async def perform() -> Any:
            request = plain_digest("join", child.path.rsplit(".", 1)[-1])
            record = self._take(number, request, f"join of {child.path}")
            ended = await self._runner.wait_child(child.path)
            if record.outcome is None:
                self._runner.need_live(self.path, number, "join")
                await self._runner.sequencer.record(TaskJoined(child.path, request), self.path, number)
            return self._child_result(child, ended)

        async def abandon(reason: str) -> None:
            if not self._state.closed(number):
                self._runner.cancel_tree(child.path, reason, more=True)
                await self._runner.sequencer.record(
                    Sampled("abandoned", msgspec.Raw(to_json(reason))), self.path, number
                )

        return Op(self, number, "join", perform, abandon=abandon)

    def _child_result(self, child: Child, ended: Any) -> Any:
        if isinstance(ended, TaskFinished):
            return self._runner.agents.convert(ended.result, child._returns)
        if isinstance(ended, TaskFailed):
            raise ChildFailed(child.path, ended.failure)
        if isinstance(ended, Refused):
            raise refusal(ended, child.path)
        raise ChildCancelled(child.path, ended.reason if isinstance(ended, TaskCancelled) else "it never ran")

    def cancel(self, child: Child) -> Op[bool]:
        """The op that ends a child and all below it; whether it was still running."""
        number = self._next()

        async def perform() -> bool:
            request = plain_digest("cancel", child.path.rsplit(".", 1)[-1])
            record = self._take(number, request, f"cancel of {child.path}")
            if isinstance(record.outcome, Sampled):
                return bool(msgspec.json.decode(record.outcome.value))
            self._runner.need_live(self.path, number, "cancel")
            running = self._runner.cancel_tree(child.path, "its parent cancelled it", more=True)
            await self._sample(number, "cancel", running, request)
            return running

        return Op(self, number, "cancel", perform, abandon=lambda reason: self._give_up(number, reason))

    # --- models -----------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        keep: bool = True,
    ) -> Op[Answer]:
        """Ask the model: the window so far, then `prompt`. Both enter the window, unless `keep` is False.

        `system` opens an empty window and stays verbatim. Raises ModelFailed, BudgetExceeded, WindowTooSmall.
        """
        says = self._calls.says(prompt, system)
        call = Call(self._next(), says, max_tokens, temperature, top_p, tuple(stop), keep, None)
        return self._model_op("generate", call, lambda: self._calls.perform(call))

    @property
    def can_score(self) -> bool:
        """Whether the model can tell how likely it finds a text: as it is recorded where the next op stands."""
        journal = self._runner.journal
        coming = journal.ops(self.path).get(self._op + 1)
        seq = coming.seq if coming is not None and coming.outcome is not None else journal.ended_seq(self.path)
        return self._runner.config_at(seq).scoring

    def score(self, prompt: Prompt, continuation: str, *, system: str | None = None) -> Op[float | None]:
        """Mean log-probability per token of `continuation` as the answer; None if the engine cannot tell.

        Such an engine is not called; see `can_score`.
        """
        call = Call(self._next(), self._calls.says(prompt, system), 0, 0.0, 1.0, (), False, continuation)

        async def mean() -> float | None:
            return (await self._calls.perform(call)).logprob

        return self._model_op("score", call, mean)

    def _model_op(self, what: str, call: Call, perform: Callable[[], Awaitable[T]]) -> Op[T]:
        calls = self._calls
        return Op(
            self, call.number, what, perform, lambda: calls.prepare(call), lambda reason: calls.abandon(call, reason)
        )

    def compact(self) -> Op[int]:
        """Put a summary in the place of all that the window holds but pins and the newest exchange; tokens freed."""
        number, record, freed = self._next(), OpRecord(), 0
        request = plain_digest("compact")

        async def prepare() -> None:
            nonlocal record, freed
            record = self._take(number, request, "compact")
            freed = await self._calls.compact(number, record)

        async def perform() -> int:
            if record.outcome is None:
                await self._sample(number, "compact", freed, request)
            return freed

        return Op(self, number, "compact", perform, prepare, lambda reason: self._give_up(number, reason))

    def text(self, ref: Ref) -> str:
        """The text that a reference stands for. Pure: the log holds it."""
        return self._runner.text(ref)

    def provenance(self, memory: MemoryRef) -> tuple[Ref, ...]:
        """What a memory was made from, as far as this task was told: by a recall, or as it wrote it itself."""
        return self._told.get(memory.id, ())

    @property
    def limits(self) -> TaskLimits:
        """What this task may use, so that it can plan ahead. Pure: what held when it began, which the log holds."""
        config = self._runner.config_at(self._state.spawned)
        depth = self._state.depth
        limits = config.limits
        return TaskLimits(config.window_tokens, depth, max(0, limits.depth - depth), limits.children, limits.tasks)

    # --- memory and inputs --------------------------------------------------------------------------------

    def remember(self, text: str, *, sources: Sequence[Ref | Hit] = (), pinned: bool = False) -> Op[MemoryRef]:
        """Keep `text`, with where it came from. The same text kept twice is one memory, used again."""
        check_unicode(text)
        refs = _refs(sources)
        request = plain_digest("remember", text, msgspec.to_builtins(refs), pinned)

        def make(number: int) -> Remembered:
            plain = normalise(text)
            tokens = self._runner.count(Message("user", plain))
            return Remembered(memory_id(plain), plain, tokens, refs, pinned, request)

        def give(kept: Remembered) -> MemoryRef:
            self._told[kept.id] = tuple(dict.fromkeys((*self._told.get(kept.id, ()), *refs)))
            return MemoryRef(kept.id)

        return self._noted("remember", Remembered, request, text, make, give)

    def recall(
        self,
        query: str,
        k: int = 5,
        *,
        over: str = "all",
        task: str = "",
        source: str = "",
        min_age_tokens: int = 0,
        max_age_tokens: int | None = None,
        deep: bool = False,
        access: bool = True,
    ) -> Op[list[Hit]]:
        """What memory and sources hold about `query`: at most `k` memories (hot, then cold) and `k` passages.

        `Query` says what each filter means; `deep` looks through the log itself too. The memories among the hits
        are accessed by this. With `access=False` they are only shown, and those are accessed that then enter
        this task's window by reference or are named by `use`.
        """
        asked = Query(query, k, over, task, source, min_age_tokens, max_age_tokens, deep)
        request = _recall_digest(asked, access)  # of all of the query, of which the log may keep the beginning
        kept = query if len(query) <= _QUERY_CHARACTERS else shortened(query, _QUERY_CHARACTERS)

        def make(number: int) -> Recalled:
            hits = self._runner.recaller.recall(self._runner.state, self.path, number, asked)
            return Recalled(kept, hits, request, access)

        def give(recalled: Recalled) -> list[Hit]:
            hits = [self._runner.recaller.hit(self._runner.state, hit) for hit in recalled.hits]
            self._told.update({hit.ref.id: hit.refs for hit in hits if isinstance(hit.ref, MemoryRef)})
            return hits

        return self._noted("recall", Recalled, request, query, make, give)

    def use(self, *found: Ref | Hit) -> Op[None]:
        """Record what an answer rests on. The memories among `found` are accessed by this."""
        refs = _refs(found)
        request = plain_digest("use", msgspec.to_builtins(refs))
        return self._noted(
            "use", Used, request, f"use of {len(refs)}", lambda number: Used(refs, request), lambda used: None
        )

    def _noted(
        self,
        what: str,
        kind: type[E],
        request: str,
        asked: str,
        make: Callable[[int], E],
        give: Callable[[E], T],
    ) -> Op[T]:
        """An op whose outcome is made at once, of what the task knows.

        Before anything beside it is performed: what it finds must not depend on which of them is quicker.
        """
        number = self._next()
        outcome: tuple[int, E] | None = None

        async def prepare() -> None:
            nonlocal outcome
            record = self._take(number, request, asked)
            if isinstance(record.outcome, kind):
                outcome = record.seq, record.outcome
                return
            self._runner.need_live(self.path, number, what)
            made = make(number)
            outcome = self._runner.sequencer.append(made, self.path, number)[0], made

        async def perform() -> T:
            assert outcome is not None  # prepared before
            seq, event = outcome
            await self._runner.sequencer.durable(seq)
            return give(event)

        return Op(self, number, what, perform, prepare)

    def add_input(self, path: str, root: str | None = None) -> Op[InputAdded]:
        """Read a file as text, once; from then on it is a source of the run. Raises InputError."""
        number = self._next()

        async def perform() -> InputAdded:
            request = plain_digest("input", path)
            record = self._take(number, request, path)
            if isinstance(record.outcome, InputAdded):
                return record.outcome
            if isinstance(record.outcome, Sampled):
                raise InputError(msgspec.json.decode(record.outcome.value))
            self._runner.need_live(self.path, number, "input")
            reuse = self._runner.reuse
            event = None if reuse is None else reuse.input(self.path, number, request)
            blobs: tuple[Blob, ...] = ()
            if event is None:
                try:
                    found = await self._runner.read_input(path, root)
                except InputError as error:
                    # An outcome too: later ones wait for it, and a replay does not look at the disk.
                    await self._sample(number, "unreadable", str(error), request)
                    raise
                digest = text_digest(found.text)
                event = InputAdded(
                    found.name, digest, len(found.text), found.bytes, found.digest, found.media_type, request
                )
                self._runner.texts.keep(digest, found.text)
                blobs = (Blob(digest, found.text),)
            await self._runner.sequencer.record(event, self.path, number, blobs=blobs)
            return event

        return Op(self, number, "input", perform, abandon=lambda reason: self._give_up(number, reason))

    @property
    def sources(self) -> list[InputAdded]:
        """The sources that this task sees by now, by the order of their names."""
        state = self._runner.state
        seen = sources_seen(state, past_of(state, self.path, self._done()))
        return sorted((state.sources[source] for source in seen), key=lambda source: (source.name, source.source))

    def passages(self, source: str) -> list[SourceSpan]:
        """The passages of a source, in order. Pure: a function of its text."""
        return self._runner.recaller.index(self._runner.state).passages(source)

    # --- the world ----------------------------------------------------------------------------------------

    def call(self, tool: Callable[..., Awaitable[Any]], *, idempotent: bool = False, **arguments: Any) -> Op[Any]:
        """Call a tool that touches the world: on disk before it acts.

        After a crash an `idempotent` one is called again, with the same `current_call_key()`; of another it is not
        known whether it acted, and the run stops with OutcomeUnknown. Raises ToolFailed if it raises, or gives nothing
        in the time that the run allows one call, and BudgetExceeded.
        """
        number = self._next()
        name = f"{tool.__module__}:{tool.__qualname__}"
        encoded = to_json(arguments)

        async def perform() -> Any:
            request = plain_digest("tool", name, encoded.decode())
            record = self._take(number, request, f"{name}({encoded.decode()})")
            outcome = record.outcome
            if outcome is None:
                act = Act(number, tool, name, arguments, encoded, request, idempotent)
                outcome = await perform_act(self._runner, self.path, act, record)
            if isinstance(outcome, Refused):
                raise refusal(outcome, self.path)
            assert isinstance(outcome, ToolReturned)
            if outcome.failure is not None:
                raise ToolFailed(f"task {self.path}: {name} failed: {outcome.failure.message}")
            return msgspec.json.decode(outcome.result)

        async def abandon(reason: str) -> None:
            if not self._state.closed(number):
                await self._runner.sequencer.record(
                    ToolReturned(failure=Failure("cancelled", reason)), self.path, number
                )

        return Op(self, number, "call", perform, abandon=abandon)

    def now(self) -> Op[int]:
        """The time, in milliseconds since 1970."""
        return self._sampled("now", lambda: self._runner.seams.now_ms())

    def random(self) -> Op[float]:
        """A random number from 0 up to 1."""
        return self._sampled("random", lambda: int.from_bytes(self._runner.seams.entropy(6), "big") / (1 << 48))

    def sleep(self, seconds: float) -> Op[float]:
        """Wait, once: a run that is resumed after it does not wait again."""
        return self._sampled("sleep", lambda: seconds, seconds)

    def _sampled(self, what: str, look: Callable[[], T], wait_s: float = 0.0) -> Op[T]:
        number = self._next()

        async def perform() -> T:
            request = plain_digest(what, wait_s)
            record = self._take(number, request, what)
            if isinstance(record.outcome, Sampled):
                return msgspec.json.decode(record.outcome.value)  # type: ignore[no-any-return]
            self._runner.need_live(self.path, number, what)
            if wait_s > 0:
                await anyio.sleep(wait_s)
                await checkpoint_if_cancelled()
            value = look()
            await self._sample(number, what, value, request)
            return value

        return Op(self, number, what, perform, abandon=lambda reason: self._give_up(number, reason))

    async def _sample(self, number: int, what: str, value: Any, request: str) -> None:
        self._runner.need_live(self.path, number, what)
        await self._runner.sequencer.record(Sampled(what, msgspec.Raw(to_json(value)), request), self.path, number)

    # --- the end --------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Called by the runner when the agent returned: nothing may be open, and all children are awaited."""
        if self._open:
            op = next(iter(self._open.values()))
            raise self._misused(f"a {op.what} was made and never awaited")
        for child in self._children:
            if not child.joined:
                try:
                    await child
                except (ChildFailed, ChildCancelled, BudgetExceeded, LimitReached):
                    continue


def _refs(parts: Sequence[Ref | Hit]) -> tuple[Ref, ...]:
    return tuple(ref for ref in map(ref_of, parts) if not isinstance(ref, str))


def _recall_digest(query: Query, access: bool) -> str:
    """The digest of a recall. One without filters has that of the days before there were any."""
    plain = Query(query.text, query.k, query.over)
    filters = {} if query == plain else msgspec.to_builtins(query)
    if not access:
        filters["access"] = False
    return plain_digest("recall", query.text, query.k, query.over, *([filters] if filters else []))
