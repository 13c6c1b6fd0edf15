"""The task as agent code sees it: everything that is not pure goes through it.

Owns the numbering of ops, the task's own window and the way from a request to its outcome: what the lineage
holds is returned, what it does not hold is performed and recorded. It never writes to a store itself.
Invariant: for the same log, the same code makes the same requests.
"""

import difflib
import json
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from treering.events.catalogue import (
    Budget,
    Compacted,
    Entry,
    Failure,
    InputAdded,
    MemoryRef,
    ModelCalled,
    ModelReplied,
    Part,
    Recalled,
    Ref,
    Refused,
    Remembered,
    RunConfig,
    Sampled,
    SourceSpan,
    Spill,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    ToolCalled,
    ToolReturned,
    Usage,
)
from treering.events.codec import text_digest, to_json
from treering.events.errors import Divergence, TreeringError, UsageError
from treering.events.log import Blob
from treering.memory.compaction import (
    SUMMARY_SYSTEM,
    choose_span,
    extract,
    measure_loss,
    summary_prompt,
)
from treering.memory.hierarchy import memory_id
from treering.memory.recall import Hit
from treering.memory.windows import EMPTY_DIGEST, Window, render, roll
from treering.runtime.digests import call_seed, generate_digest, plain_digest, spawn_digest
from treering.runtime.engine import ContextOverflow, EngineError, EngineTransientError, Message, Reply, Request
from treering.runtime.errors import (
    BudgetExceeded,
    ChildCancelled,
    ChildFailed,
    LimitReached,
    ModelFailed,
    OpMisused,
    OpTimeout,
    OutcomeUnknown,
    ReplayEnded,
    ToolFailed,
    WindowTooSmall,
)
from treering.runtime.journal import OpRecord
from treering.runtime.ops import Op, abandon_all, prepare_all, run_together, run_until_first, settled
from treering.runtime.seams import current_task
from treering.runtime.state import TaskState, depth_of, scope_of

if TYPE_CHECKING:
    from treering.runtime.runner import Runner

__all__ = ["Answer", "Child", "Prompt", "Say", "Task"]

T = TypeVar("T")
AgentFunction = Callable[..., Awaitable[Any]]


class Say(msgspec.Struct, frozen=True):
    """A message for a window. `parts` mixes text with references, hits and passages; `pinned` stays verbatim."""

    parts: tuple[str | Ref | Hit, ...]
    role: str = "user"
    pinned: bool = False


Prompt = str | Say | Sequence[Say]


class Answer(msgspec.Struct, frozen=True):
    """What a model answered. `finish` is `stop` or `length`."""

    text: str
    finish: str = "stop"
    logprob: float | None = None

    def __str__(self) -> str:
        return self.text


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
        self._window = Window()
        self._rolling: str | None = EMPTY_DIGEST
        self._arrived: list[tuple[int, ModelCalled, ModelReplied]] = []
        self._equal: dict[str, int] = {}
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
        """Called once an await is over: what came enters the window in the order of ops."""
        if self._arrived:
            for op, called, replied in sorted(self._arrived, key=lambda item: item[0]):
                self._window.enter(op, called, replied)
                self._roll_in(called.entries, replied.text)
            self._arrived.clear()

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
        if recorded and request and recorded != request:
            raise self._divergence(number, record, asked)
        return record

    def _divergence(self, number: int, record: OpRecord, asked: str | bytes) -> Divergence:
        if isinstance(asked, bytes):
            asked = json.dumps(json.loads(asked), indent=1, sort_keys=True)
        before = json.dumps(json.loads(to_json(record.called or record.outcome)), indent=1, sort_keys=True)
        diff = "\n".join(
            difflib.unified_diff(before.splitlines(), asked.splitlines(), "recorded", "asked", lineterm="", n=1)
        )
        kind = type(record.called or record.outcome).__name__
        at = max(0, record.seq - 1)
        return Divergence(
            self.path,
            number,
            kind,
            "something else",
            diff,
            _agent_line(),
            f"to go on from there: treering fork {self._runner.run} --at {at}",
        )

    def _need_live(self, number: int, what: str) -> None:
        if self._runner.replaying:
            raise ReplayEnded(f"task {self.path} op {number} ({what}) is not recorded: the log ends before it")

    def _closed(self, number: int) -> bool:
        """Whether the log holds the outcome of an op of this task."""
        state = self._state
        return number < state.next_op or number in state.waiting

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
        """An op made of others: ready when they are, given up with them."""
        return Op(self, number, what, perform, lambda: prepare_all(ops), lambda reason: abandon_all(ops, reason))

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
            self._need_live(number, "spawn")
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
                self._need_live(number, "join")
                seq, _ = self._runner.sequencer.append(TaskJoined(child.path, request), self.path, number)
                await self._runner.sequencer.durable(seq)
            return self._child_result(child, ended)

        async def abandon(reason: str) -> None:
            if not self._closed(number):
                self._runner.cancel_tree(child.path, reason)
                seq, _ = self._runner.sequencer.append(
                    Sampled("abandoned", msgspec.Raw(to_json(reason))), self.path, number
                )
                await self._runner.sequencer.durable(seq)

        return Op(self, number, "join", perform, abandon=abandon)

    def _child_result(self, child: Child, ended: Any) -> Any:
        if isinstance(ended, TaskFinished):
            return self._runner.agents.convert(ended.result, child._returns)
        if isinstance(ended, TaskFailed):
            raise ChildFailed(child.path, ended.failure.message)
        if isinstance(ended, Refused):
            raise _refusal(ended, child.path)
        raise ChildCancelled(child.path, ended.reason if isinstance(ended, TaskCancelled) else "it never ran")

    def cancel(self, child: Child) -> Op[bool]:
        """The op that ends a child and all below it; whether it was still running."""
        number = self._next()

        async def perform() -> bool:
            request = plain_digest("cancel", child.path.rsplit(".", 1)[-1])
            record = self._take(number, request, f"cancel of {child.path}")
            if isinstance(record.outcome, Sampled):
                return bool(msgspec.json.decode(record.outcome.value))
            self._need_live(number, "cancel")
            running = self._runner.cancel_tree(child.path, "its parent cancelled it")
            await self._sample(number, "cancel", running, request)
            return running

        return Op(self, number, "cancel", perform)

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
        return self._model_op(prompt, system, max_tokens, temperature, top_p, tuple(stop), keep, None)

    def score(self, prompt: Prompt, continuation: str, *, system: str | None = None) -> Op[float | None]:
        """Mean log-probability per token of `continuation` as the answer; None if the engine cannot tell."""
        inner = self._model_op(prompt, system, 0, 0.0, 1.0, (), False, continuation)
        perform = inner.perform

        async def mean() -> float | None:
            return (await perform()).logprob

        inner.perform = mean  # type: ignore[assignment]
        return inner  # type: ignore[return-value]

    def _model_op(
        self,
        prompt: Prompt,
        system: str | None,
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop: tuple[str, ...],
        keep: bool,
        continuation: str | None,
    ) -> Op[Answer]:
        number = self._next()
        says = [Say((prompt,))] if isinstance(prompt, str) else [prompt] if isinstance(prompt, Say) else list(prompt)
        if system is not None and not self._window.entries:  # whichever comes first brings it
            says.insert(0, Say((system,), "system", True))
        call = _Call(number, says, max_tokens, temperature, top_p, stop, keep, continuation)

        async def prepare() -> None:
            await self._prepare(call)

        async def perform() -> Answer:
            return await self._perform(call)

        async def abandon(reason: str) -> None:
            await self._abandon_call(call, reason)

        return Op(self, number, "generate" if continuation is None else "score", perform, prepare, abandon)

    async def _prepare(self, call: "_Call") -> None:
        record = self._runner.journal.take(self.path, call.number) or OpRecord()
        call.record = record
        recorded = record.called if isinstance(record.called, ModelCalled) else None
        call.entries = (
            tuple(self._entry(say, call) for say in call.says) if recorded is None else self._sized(call, recorded)
        )
        for compaction in record.compactions:
            self._window.compact(call.number, compaction)
            self._rolling = None
        if recorded is None:
            call.too_small = await self._make_room(call)
        messages = self._digest_with(call.entries)
        if recorded is not None:
            then = self._request_digest(call, messages, self._runner.config_at(record.called_seq))
            if recorded.request != then:
                asked = "\n".join(render(tuple(map(_ref_of, say.parts)), self.text) for say in call.says)
                raise self._divergence(call.number, record, asked)
        # A call still in flight when a fork changed the model is a new request.
        config = self._runner.config_at(record.called_seq if record.outcome is not None else None)
        call.request = self._request_digest(call, messages, config)
        self._equal[call.request] = call.occurrence = self._equal.get(call.request, 0) + 1
        call.prompt = [
            Message(item.entry.role, render(item.entry.parts, self.text)) for item in self._window.entries
        ] + [Message(entry.role, render(entry.parts, self.text)) for entry in call.entries]
        call.prompt_tokens = (
            self._window.tokens + sum(entry.tokens for entry in call.entries) + config.overhead_tokens
        )

    def _request_digest(self, call: "_Call", messages: str, config: RunConfig) -> str:
        return generate_digest(
            config.weights,
            config.template,
            messages,
            call.max_tokens,
            call.temperature,
            call.top_p,
            call.stop,
            config.seed,
            call.continuation,
        )

    async def _perform(self, call: "_Call") -> Answer:
        record = call.record
        assert record is not None
        outcome = record.outcome
        if isinstance(outcome, Refused):
            raise _refusal(outcome, self.path)
        if isinstance(outcome, ModelReplied):
            assert isinstance(record.called, ModelCalled)
            return self._arrive(call, record.called, outcome)
        taken = ModelReplied(failure=Failure("window", call.too_small)) if call.too_small else self._take_over(call)
        if taken is None:
            self._need_live(call.number, "generate")
            async with self._runner.slots.hold(depth_of(self.path)):
                called, replied = await self._attempts(call)
            await checkpoint_if_cancelled()
        else:
            called = self._called(call, "")
            _, refused = self._runner.sequencer.append(called, self.path, call.number, 1)
            if isinstance(refused, Refused):
                await self._runner.sequencer.durable()
                raise _refusal(refused, self.path)
            replied = taken
        seq, _ = self._runner.sequencer.append(replied, self.path, call.number, max(1, call.attempt))
        await self._runner.sequencer.durable(seq)
        return self._arrive(call, called, replied)

    def _take_over(self, call: "_Call") -> ModelReplied | None:
        """The outcome that a fork was told to use, or may take over from its parent."""
        reuse = self._runner.reuse
        if reuse is None:
            return None
        edit = reuse.edit(self.path, call.number)
        if edit is not None:
            tokens = self._runner.count(Message("assistant", edit.text))
            return ModelReplied(edit.text, tokens=tokens, edited=edit.seq)
        found = reuse.model(self.path, call.number, call.request)
        if found is None:
            return None
        return msgspec.structs.replace(found[1], reused=found[0], edited=0)

    async def _attempts(self, call: "_Call") -> tuple[ModelCalled, ModelReplied]:
        assert call.record is not None
        runner = self._runner
        config = runner.state.config
        request = Request(
            tuple(call.prompt),
            call.max_tokens,
            call.temperature,
            call.top_p,
            call.stop,
            call_seed(config.seed, call.request, self._keys, call.occurrence),
        )
        why = "its writer ended before an outcome" if call.record.attempts else ""
        call.attempt = call.record.attempts
        tries = 0
        while True:
            await checkpoint_if_cancelled()
            call.attempt += 1
            tries += 1
            called = self._called(call, why, request.seed)
            seq, refused = runner.sequencer.append(called, self.path, call.number, call.attempt)
            await runner.sequencer.durable(max(seq, runner.state.seq) if refused else seq)
            if isinstance(refused, Refused):
                raise _refusal(refused, self.path)
            started = runner.seams.monotonic()
            try:
                with anyio.fail_after(runner.call_timeout_s):
                    reply, logprob = await self._ask_engine(request, call)
            except (EngineTransientError, TimeoutError) as error:
                why = str(error) or f"no answer within {runner.call_timeout_s:.0f} s"
                if tries >= runner.attempts:
                    seconds = runner.seams.monotonic() - started
                    return called, ModelReplied(
                        failure=Failure("engine", f"{why} (after {tries} attempts)"), usage=Usage(seconds=seconds)
                    )
                await anyio.sleep(runner.delay_s(tries, getattr(error, "retry_after_s", None)))
            except EngineError as error:
                kind = "overflow" if isinstance(error, ContextOverflow) else "engine"
                return called, ModelReplied(failure=Failure(kind, str(error)))
            else:
                usage = Usage(
                    reply.prompt_tokens,
                    reply.cached_tokens,
                    reply.generated_tokens,
                    round(runner.seams.monotonic() - started, 4),
                    reply.cost_micros,
                )
                tokens = runner.count(Message("assistant", reply.text)) if call.keep else reply.generated_tokens
                return called, ModelReplied(reply.text, reply.finish, tokens, usage, logprob)

    async def _ask_engine(self, request: Request, call: "_Call") -> tuple[Reply, float | None]:
        runner = self._runner
        if call.continuation is None:
            reply = await runner.engine_for().generate(request, runner.stream_to(self.path))
            return reply, reply.logprob
        score_of = getattr(runner.engine_for(), "score", None)
        if score_of is None:
            return Reply("", "stop", 0, 0), None
        score = await score_of(request, call.continuation)
        mean = score.logprob / score.tokens if score.tokens else None
        return Reply("", "stop", score.prompt_tokens, 0, score.cached_tokens), mean

    def _called(self, call: "_Call", why: str, seed: int = 0) -> ModelCalled:
        return ModelCalled(
            call.request,
            call.entries,
            call.prompt_tokens,
            call.max_tokens,
            call.temperature,
            call.top_p,
            call.stop,
            seed if call.temperature else 0,
            call.keep,
            call.continuation,
            why,
        )

    def _arrive(self, call: "_Call", called: ModelCalled, replied: ModelReplied) -> Answer:
        if replied.failure is not None:
            if replied.failure.kind == "window":
                raise WindowTooSmall(f"task {self.path}: {replied.failure.message}")
            if replied.failure.kind == "cancelled":
                raise OpTimeout(f"task {self.path}: {replied.failure.message}")
            raise ModelFailed(f"task {self.path}: the model gave no answer: {replied.failure.message}")
        if called.keep:
            self._arrived.append((call.number, called, replied))
        return Answer(replied.text, replied.finish, replied.logprob)

    async def _abandon_call(self, call: "_Call", reason: str) -> None:
        assert call.record is not None  # prepared with the op that gives it up
        self._arrived = [item for item in self._arrived if item[0] != call.number]
        if self._closed(call.number):
            return
        runner = self._runner
        if call.record.called is None and call.attempt == 0:
            runner.sequencer.append(self._called(call, ""), self.path, call.number, 1)
        seq, _ = runner.sequencer.append(
            ModelReplied(failure=Failure("cancelled", reason)), self.path, call.number, max(1, call.attempt)
        )
        await runner.sequencer.durable(seq)

    # --- the window -------------------------------------------------------------------------------------

    def text(self, ref: Ref) -> str:
        """The text that a reference stands for. Pure: the log holds it."""
        return self._runner.text(ref)

    def _entry(self, say: Say, call: "_Call") -> Entry:
        parts = tuple(_ref_of(part) for part in say.parts)
        text = render(parts, self.text)
        tokens = self._runner.count(Message(say.role, text))
        room = self.window_tokens - call.max_tokens - self._runner.state.config.overhead_tokens
        if tokens <= room or say.pinned:
            return Entry(say.role, parts, tokens, say.pinned)
        return self._spill(say, text, tokens, max(16, room // 2))

    def _sized(self, call: "_Call", recorded: ModelCalled) -> tuple[Entry, ...]:
        """The entries asked for now, with the sizes that are recorded: a replay has no tokenizer."""
        if len(recorded.entries) != len(call.says):
            return tuple(Entry(say.role, tuple(map(_ref_of, say.parts)), 0, say.pinned) for say in call.says)
        return tuple(
            then
            if then.spill is not None
            else Entry(say.role, tuple(map(_ref_of, say.parts)), then.tokens, say.pinned)
            for say, then in zip(call.says, recorded.entries, strict=True)
        )

    def _spill(self, say: Say, text: str, tokens: int, room: int) -> Entry:
        digest = text_digest(text)
        self._runner.keep_blob(Blob(digest, text))
        keep = len(text) * room // max(1, tokens)
        while True:
            preview = f"{text[:keep]}\n[cut: {len(text) - keep} of {len(text)} characters are not shown]"
            size = self._runner.count(Message(say.role, preview))
            if size <= room or keep < 8:
                return Entry(say.role, (preview,), size, say.pinned, Spill(digest, tokens, len(text)))
            keep = keep * 3 // 4

    async def _make_room(self, call: "_Call") -> str:
        """Compact the window, if the call would overflow it; why that cannot help, if so."""
        overhead = self._runner.state.config.overhead_tokens
        incoming = sum(entry.tokens for entry in call.entries) + overhead + call.max_tokens
        for _ in range(2):
            if self._window.tokens + incoming <= self.window_tokens:
                return ""
            target = max(0, (self.window_tokens - incoming) // 2)
            if not await self._compact(call.number, target, "the window would overflow"):
                break
        if self._window.tokens + incoming <= self.window_tokens:
            return ""
        return (
            f"expected prompt and reply to fit a window of {self.window_tokens} tokens, found "
            f"{self._window.tokens + incoming} that must stay; use a larger --window or fewer max_tokens"
        )

    async def _compact(self, number: int, target: int, reason: str) -> bool:
        span = choose_span(self._window.entries, target)
        if span is None:
            return False
        lines = [f"{item.entry.role}: {render(item.entry.parts, self.text)}" for item in span.entries]
        text = "\n".join(lines)
        kept = self._window.tokens - span.tokens
        room = max(24, min(span.tokens // 3, self.window_tokens // 4, max(24, target - kept)))
        prefix = "Earlier, in short: "
        summary, by = await self._runner.summarise(self, number, text, room, SUMMARY_SYSTEM, summary_prompt)
        method = "model"
        while not summary or self._runner.count(Message("user", prefix + summary)) > room + 8:
            method = "extractive"
            characters = min(room * 3, len(summary) * 3 // 4 if summary else room * 3)
            if characters < 24:
                summary = summary[:24] or text[:24]
                break
            summary = extract(text, characters)
        event = Compacted(
            tuple((item.op, item.index) for item in span.entries),
            prefix + summary,
            self._runner.count(Message("user", prefix + summary)),
            span.tokens,
            method,
            measure_loss(text, summary),
            reason,
            by,
        )
        seq, _ = self._runner.sequencer.append(event, self.path, number)
        await self._runner.sequencer.durable(seq)
        self._window.compact(number, event)
        self._rolling = None
        return True

    def _digest_with(self, entries: Sequence[Entry]) -> str:
        digest = self._rolling
        if digest is None:
            digest = EMPTY_DIGEST
            for item in self._window.entries:
                digest = roll(digest, item.entry.role, render(item.entry.parts, self.text))
            self._rolling = digest
        for entry in entries:
            digest = roll(digest, entry.role, render(entry.parts, self.text))
        return digest

    def _roll_in(self, entries: Sequence[Entry], reply: str) -> None:
        if self._rolling is not None:
            self._rolling = roll(self._digest_with(entries), "assistant", reply)

    # --- memory and inputs --------------------------------------------------------------------------------

    def remember(self, text: str, *, sources: Sequence[Ref | Hit] = (), pinned: bool = False) -> Op[MemoryRef]:
        """Keep `text`, with where it came from. The same text kept twice is one memory, used again."""
        number = self._next()
        refs = tuple(ref for ref in map(_ref_of, sources) if not isinstance(ref, str))

        async def perform() -> MemoryRef:
            request = plain_digest("remember", text, msgspec.to_builtins(refs), pinned)
            record = self._take(number, request, text)
            if isinstance(record.outcome, Remembered):
                return MemoryRef(record.outcome.id)
            self._need_live(number, "remember")
            tokens = self._runner.count(Message("user", text))
            event = Remembered(memory_id(text), text, tokens, refs, pinned, request)
            seq, _ = self._runner.sequencer.append(event, self.path, number)
            await self._runner.sequencer.durable(seq)
            return MemoryRef(event.id)

        return Op(self, number, "remember", perform)

    def recall(self, query: str, k: int = 5, *, over: str = "all") -> Op[list[Hit]]:
        """What memory and sources hold about `query`: at most `k` memories (hot, then cold) and `k` passages.

        `over` is `memory`, `sources` or `all`. The memories among the hits are accessed by this.
        """
        number = self._next()
        if over not in ("memory", "sources", "all"):
            raise UsageError(f"expected over to be memory, sources or all, found {over!r}")

        async def perform() -> list[Hit]:
            request = plain_digest("recall", query, k, over)
            record = self._take(number, request, query)
            if isinstance(record.outcome, Recalled):
                return [self._runner.hit(hit) for hit in record.outcome.hits]
            self._need_live(number, "recall")
            state = self._runner.state
            index = self._runner.index()
            view = state.memory.view(scope_of(self._state))
            hits = tuple(index.recall(state.memory, view, query, k, over))
            seq, _ = self._runner.sequencer.append(Recalled(query[:2000], hits, request), self.path, number)
            await self._runner.sequencer.durable(seq)
            return [self._runner.hit(hit) for hit in hits]

        return Op(self, number, "recall", perform)

    def add_input(self, path: str, root: str | None = None) -> Op[InputAdded]:
        """Read a file as text, once; from then on it is a source of the run. Raises InputError."""
        number = self._next()

        async def perform() -> InputAdded:
            request = plain_digest("input", path)
            record = self._take(number, request, path)
            if isinstance(record.outcome, InputAdded):
                return record.outcome
            self._need_live(number, "input")
            found = await self._runner.read_input(path, root)
            digest = text_digest(found.text)
            event = InputAdded(
                found.name, digest, len(found.text), found.bytes, found.digest, found.media_type, request
            )
            self._runner.texts.keep(digest, found.text)
            seq, _ = self._runner.sequencer.append(event, self.path, number, blobs=(Blob(digest, found.text),))
            await self._runner.sequencer.durable(seq)
            return event

        return Op(self, number, "input", perform)

    @property
    def sources(self) -> list[InputAdded]:
        """The sources of the run, by the order of their names."""
        return sorted(self._runner.state.sources.values(), key=lambda source: (source.name, source.source))

    def passages(self, source: str) -> list[SourceSpan]:
        """The passages of a source, in order. Pure: a function of its text."""
        return self._runner.index().passages(source)

    # --- the world ----------------------------------------------------------------------------------------

    def call(self, tool: Callable[..., Awaitable[Any]], *, idempotent: bool = False, **arguments: Any) -> Op[Any]:
        """Call a tool that touches the world: on disk before it acts.

        After a crash an `idempotent` one is called again; of another it is not known whether it acted, and
        the run stops with OutcomeUnknown. Raises ToolFailed if it raises.
        """
        number = self._next()
        name = f"{tool.__module__}:{tool.__qualname__}"
        encoded = to_json(arguments)

        async def perform() -> Any:
            request = plain_digest("tool", name, encoded.decode())
            record = self._take(number, request, f"{name}({encoded.decode()})")
            outcome = record.outcome
            if outcome is None:
                outcome = await self._call_tool(number, tool, name, encoded, request, idempotent, record, arguments)
            assert isinstance(outcome, ToolReturned)
            if outcome.failure is not None:
                raise ToolFailed(f"task {self.path}: {name} failed: {outcome.failure.message}")
            return msgspec.json.decode(outcome.result)

        async def abandon(reason: str) -> None:
            if not self._closed(number):
                seq, _ = self._runner.sequencer.append(
                    ToolReturned(failure=Failure("cancelled", reason)), self.path, number
                )
                await self._runner.sequencer.durable(seq)

        return Op(self, number, "call", perform, abandon=abandon)

    async def _call_tool(
        self,
        number: int,
        tool: Callable[..., Awaitable[Any]],
        name: str,
        encoded: bytes,
        request: str,
        idempotent: bool,
        record: OpRecord,
        arguments: dict[str, Any],
    ) -> ToolReturned:
        runner = self._runner
        returned: ToolReturned | None = None
        if runner.reuse is not None and (found := runner.reuse.tool(self.path, number, request)) is not None:
            returned = msgspec.structs.replace(found[1], reused=found[0])
        else:
            self._need_live(number, "call")
            if record.attempts and not idempotent:
                raise OutcomeUnknown(
                    f"task {self.path} op {number}: {name} was called before the last writer ended and may have "
                    "acted; it is not idempotent, so a person must settle it"
                )
        attempt = record.attempts + 1
        called = ToolCalled(name, msgspec.Raw(encoded), request, f"{runner.run}/{self.path}/{number}", idempotent)
        seq, _ = runner.sequencer.append(called, self.path, number, attempt)
        if returned is None:
            await runner.sequencer.durable(seq)
            started = runner.seams.monotonic()
            try:
                result = to_json(await tool(**arguments))
                returned = ToolReturned(msgspec.Raw(result), round(runner.seams.monotonic() - started, 4))
            except Exception as error:
                failure = Failure(type(error).__name__, f"{type(error).__name__}: {error}")
                returned = ToolReturned(seconds=round(runner.seams.monotonic() - started, 4), failure=failure)
        if self._state.status != "running":
            await checkpoint_if_cancelled()  # ended from above: nothing may follow its end
        # Otherwise it is recorded even if a cancellation waits: the tool has acted.
        seq, _ = runner.sequencer.append(returned, self.path, number, attempt)
        await runner.sequencer.durable(seq)
        return returned

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
            self._need_live(number, what)
            if wait_s > 0:
                await anyio.sleep(wait_s)
                await checkpoint_if_cancelled()
            value = look()
            await self._sample(number, what, value, request)
            return value

        async def abandon(reason: str) -> None:
            if not self._closed(number):
                await self._sample(number, "abandoned", reason, "")

        return Op(self, number, what, perform, abandon=abandon)

    async def _sample(self, number: int, what: str, value: Any, request: str) -> None:
        self._need_live(number, what)
        seq, _ = self._runner.sequencer.append(Sampled(what, msgspec.Raw(to_json(value)), request), self.path, number)
        await self._runner.sequencer.durable(seq)

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


class _Call(msgspec.Struct):
    """A model call on its way."""

    number: int
    says: list[Say]
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    keep: bool
    continuation: str | None
    record: OpRecord | None = None
    entries: tuple[Entry, ...] = ()
    request: str = ""
    occurrence: int = 0
    prompt: list[Message] = []
    prompt_tokens: int = 0
    attempt: int = 0
    too_small: str = ""


def _ref_of(part: str | Ref | Hit) -> Part:
    return part.ref if isinstance(part, Hit) else part


def _refusal(refused: Refused, path: str) -> TreeringError:
    text = f"task {path}: {refused.what} allows {refused.limit:g}, {refused.needed:g} would be needed"
    return BudgetExceeded(text) if refused.what.startswith("budget") else LimitReached(text)


def _agent_line() -> str:
    """The line of agent code that is being run: the innermost frame outside of this package."""
    for frame in reversed(traceback.extract_stack()):
        if "/runtime/task.py" not in frame.filename and "/runtime/ops.py" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}"
    return "unknown"
