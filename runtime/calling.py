"""Model calls: from a prompt to a reply, through the window of one task.

Owns the task's window as its code sees it, what enters it and what must leave it, and the way of a call: the
recorded outcome, one that a fork takes over, or attempts at the engine. Invariant: no prompt and its reply
exceed the window.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from treering.events.catalogue import (
    Entry,
    Failure,
    ModelCalled,
    ModelReplied,
    Part,
    Refused,
    RunConfig,
    Sampled,
    Usage,
)
from treering.events.codec import text_digest, to_json
from treering.memory.windows import EMPTY_DIGEST, Window, render, roll
from treering.runtime.compacting import compact
from treering.runtime.digests import call_seed, generate_digest, plain_digest
from treering.runtime.engine import (
    ContextOverflow,
    EngineError,
    EngineTransientError,
    Message,
    Reply,
    Request,
    ScoringEngine,
)
from treering.runtime.errors import ModelFailed, OpTimeout, WindowTooSmall, refusal
from treering.runtime.journal import OpRecord
from treering.runtime.prompts import Answer, Call, Prompt, Say, called_of, ref_of
from treering.runtime.seams import current_task
from treering.runtime.spilling import Asked, fitting
from treering.runtime.state import depth_of

if TYPE_CHECKING:
    from treering.runtime.runner import Runner
    from treering.runtime.task import Task

__all__ = ["ModelCalls"]


class ModelCalls:
    """The model calls of one task, and its window."""

    def __init__(self, task: "Task", runner: "Runner", window_tokens: int, keys: str) -> None:
        self._task = task
        self._path = task.path
        self._runner = runner
        self._window_tokens = window_tokens
        self._keys = keys
        self._window = Window()
        self._rolling = EMPTY_DIGEST
        self._shown: list[Message] | None = []
        self._arrived: list[tuple[int, ModelCalled, ModelReplied]] = []
        self._equal: dict[str, int] = {}
        self._ready: list[Call] = []
        self._coroutine = current_task()

    def says(self, prompt: Prompt, system: str | None) -> list[Say]:
        """The messages of a prompt. `system` opens a window that is empty."""
        says = [Say((prompt,))] if isinstance(prompt, str) else [prompt] if isinstance(prompt, Say) else list(prompt)
        if system is not None and self._window.empty:  # whichever comes first brings it
            says.insert(0, Say((system,), "system", True))
        return says

    async def prepare(self, call: Call) -> None:
        """Make a call ready: what it asks, and room for it in the window."""
        record = self._runner.journal.take(self._path, call.number) or OpRecord()
        call.record = record
        if record.outcome is None:  # one in flight is asked anew, whatever it was
            self._runner.need_live(self._path, call.number, "generate")  # a replay has no engine that counts
            self._runner.need_known(self._path, call.number, record, "")
        if call.continuation is not None and self._cannot_score(record):
            self._prepare_unscored(call, record)
            return
        recorded = record.called if record.outcome is not None and isinstance(record.called, ModelCalled) else None
        if recorded is None and not self._runner.replaying:
            call.entries = self._fitting(call)
        else:
            call.entries = self._sized(call, recorded)
        for compaction in record.compactions:
            self._window.compact(call.number, compaction)
            self._shown = None
        if record.outcome is None:
            call.too_small = await self._make_room(call)
        self._ready.append(call)

    def _cannot_score(self, record: OpRecord) -> bool:
        if record.outcome is not None or self._runner.replaying:
            return isinstance(record.outcome, Sampled)
        return not isinstance(self._runner.engine_for(), ScoringEngine)

    def _prepare_unscored(self, call: Call, record: OpRecord) -> None:
        """A score that the engine cannot give is an outcome, and no call of a model."""
        said = [(say.role, render(tuple(map(ref_of, say.parts)), self._runner.text)) for say in call.says]
        call.unscored = plain_digest("score", said, call.continuation)
        if record.request and record.request != call.unscored and record.called is None:
            asked = "\n".join(text for _, text in said)
            raise self._runner.diverged(self._path, call.number, record, asked, self._coroutine)

    async def _sample(self, call: Call, what: str, value: str | None, request: str = "") -> None:
        event = Sampled(what, msgspec.Raw(to_json(value)), request)
        await self._runner.sequencer.record(event, self._path, call.number)

    def _finish_ready(self) -> None:
        """Fix the prompts of the calls of one await, once all are ready.

        All see the same window: what made room for one of them left for all.
        """
        since = min((call.number for call in self._ready), default=0)
        for call in self._ready:
            call.since = since if since < call.number else 0
            self._finish(call)
        self._ready.clear()

    def _finish(self, call: Call) -> None:
        record = call.record
        assert record is not None
        shown = self._show()
        asks = self._messages(call.entries)
        messages = self._digest_with(asks)
        if record.outcome is not None and isinstance(recorded := record.called, ModelCalled):
            then = self._request_digest(call, messages, self._runner.config_at(record.called_seq))
            if recorded.request != then:
                parts = [tuple(map(ref_of, say.parts)) for say in call.says]
                asked = self._asked(call.says, parts, call)
                before = self._asked(recorded.entries, [entry.parts for entry in recorded.entries], recorded)
                raise self._runner.diverged(self._path, call.number, record, asked, self._coroutine, before)
        # A call still in flight when a fork changed the model is a new request.
        config = self._runner.config_at(record.called_seq if record.outcome is not None else None)
        call.request = self._request_digest(call, messages, config)
        self._equal[call.request] = call.occurrence = self._equal.get(call.request, 0) + 1
        call.prompt = (*shown, *asks)
        call.prompt_tokens = (
            self._window.tokens + sum(entry.tokens for entry in call.entries) + config.overhead_tokens
        )

    def _asked(self, said: Sequence[Say | Entry], parts: Sequence[tuple[Part, ...]], call: Call | ModelCalled) -> str:
        """What a call asks, as text to be compared."""
        lines = [f"[{one.role}] {render(mine, self._runner.text)}" for one, mine in zip(said, parts, strict=True)]
        sampling = f"max_tokens={call.max_tokens} temperature={call.temperature:g} top_p={call.top_p:g}"
        lines.append(f"({sampling} stop={list(call.stop)} scored={call.continuation!r})")
        return "\n".join(lines)

    def _request_digest(self, call: Call, messages: str, config: RunConfig) -> str:
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

    async def perform(self, call: Call) -> Answer:
        """Answer a call that is ready. Raises ModelFailed, WindowTooSmall, BudgetExceeded."""
        self._finish_ready()
        record = call.record
        assert record is not None
        outcome = record.outcome
        if call.unscored:
            if outcome is None:
                await self._sample(call, "score", None, call.unscored)
            return Answer("")
        if isinstance(outcome, Refused):
            raise refusal(outcome, self._path)
        if isinstance(outcome, ModelReplied):
            called = record.called if isinstance(record.called, ModelCalled) else called_of(call, "")
            self._enters(call, called, outcome)
            return self._answer(outcome)
        taken = ModelReplied(failure=Failure("window", call.too_small)) if call.too_small else self._take_over(call)
        if taken is None:
            self._runner.need_live(self._path, call.number, "generate")
            async with self._runner.slots.hold(depth_of(self._path)):
                called, replied = await self._attempts(call)
            await checkpoint_if_cancelled()
        else:
            called = called_of(call, "")
            _, refused = self._runner.sequencer.append(called, self._path, call.number, 1)
            if isinstance(refused, Refused):
                await self._runner.sequencer.durable()
                raise refusal(refused, self._path)
            replied = taken
        seq, _ = self._runner.sequencer.append(replied, self._path, call.number, max(1, call.attempt))
        self._enters(call, called, replied)
        await self._runner.sequencer.durable(seq)
        return self._answer(replied)

    def _take_over(self, call: Call) -> ModelReplied | None:
        """The outcome that a fork was told to use, or may take over from its parent."""
        reuse = self._runner.reuse
        if reuse is None:
            return None
        edit = reuse.edit(self._path, call.number)
        if edit is not None and call.continuation is not None:
            return ModelReplied(logprob=float(edit.text), edited=edit.seq)
        if edit is not None:
            tokens = self._runner.count(Message("assistant", edit.text))
            return ModelReplied(edit.text, tokens=tokens, edited=edit.seq)
        found = reuse.model(self._path, call.number, call.request)
        if found is None:
            return None
        return msgspec.structs.replace(found[1], reused=found[0], edited=0)

    async def _attempts(self, call: Call) -> tuple[ModelCalled, ModelReplied]:
        assert call.record is not None
        runner = self._runner
        config = runner.state.config
        request = Request(
            call.prompt,
            call.max_tokens,
            call.temperature,
            call.top_p,
            call.stop,
            call_seed(config.seed, call.request, self._keys, call.occurrence),
        )
        why = "its writer ended before an outcome" if call.record.attempts else ""
        call.attempt = call.record.attempts
        tries = 0

        def spent(started: float) -> float:
            """The seconds of all attempts so far; waits between them are no time of an op."""
            return round(call.seconds + runner.seams.monotonic() - started, 4)

        while True:
            await checkpoint_if_cancelled()
            call.attempt += 1
            tries += 1
            called = called_of(call, why, request.seed)
            seq, refused = runner.sequencer.append(called, self._path, call.number, call.attempt)
            await runner.sequencer.durable(max(seq, runner.state.seq) if refused else seq)
            if isinstance(refused, Refused):
                raise refusal(refused, self._path)
            started = runner.seams.monotonic()
            try:
                with anyio.fail_after(runner.call_timeout_s):
                    reply, logprob = await self._ask_engine(request, call)
            except (EngineTransientError, TimeoutError) as error:
                why = str(error) or f"no answer within {runner.call_timeout_s:g} s"
                if tries >= runner.attempts:
                    failure = Failure("engine", f"{why} (after {tries} attempts)")
                    return called, ModelReplied(failure=failure, usage=Usage(seconds=spent(started)))
                call.seconds = spent(started)
                await anyio.sleep(runner.delay_s(tries, getattr(error, "retry_after_s", None)))
            except EngineError as error:
                kind = "overflow" if isinstance(error, ContextOverflow) else "engine"
                return called, ModelReplied(failure=Failure(kind, str(error)), usage=Usage(seconds=spent(started)))
            else:
                usage = Usage(
                    reply.prompt_tokens,
                    reply.cached_tokens,
                    reply.generated_tokens,
                    spent(started),
                    reply.cost_micros,
                )
                tokens = runner.count(Message("assistant", reply.text)) if call.keep else reply.generated_tokens
                return called, ModelReplied(reply.text, reply.finish, tokens, usage, logprob)

    async def _ask_engine(self, request: Request, call: Call) -> tuple[Reply, float | None]:
        engine = self._runner.engine_for()
        if call.continuation is None:
            reply = await engine.generate(request, self._runner.stream_to(self._path))
            return reply, reply.logprob
        assert isinstance(engine, ScoringEngine)  # no other is asked
        score = await engine.score(request, call.continuation)
        mean = score.logprob / score.tokens if score.tokens else None
        return Reply("", "stop", score.prompt_tokens, 0, score.cached_tokens), mean

    def _enters(self, call: Call, called: ModelCalled, replied: ModelReplied) -> None:
        """What the log holds of a call enters the window, also where the call was given up: once, when this await ends."""
        if called.keep and replied.failure is None and all(op != call.number for op, _, _ in self._arrived):
            self._arrived.append((call.number, called, replied))

    def _answer(self, replied: ModelReplied) -> Answer:
        if replied.failure is not None:
            if replied.failure.kind == "window":
                raise WindowTooSmall(f"task {self._path}: {replied.failure.message}")
            if replied.failure.kind == "cancelled":
                raise OpTimeout(f"task {self._path}: {replied.failure.message}")
            raise ModelFailed(f"task {self._path}: the model gave no answer: {replied.failure.message}")
        return Answer(replied.text, replied.finish, replied.logprob)

    async def abandon(self, call: Call, reason: str) -> None:
        """Record that a call was given up, unless the log holds its outcome."""
        self._finish_ready()
        assert call.record is not None  # prepared with the op that gives it up
        if isinstance(call.record.called, ModelCalled) and isinstance(call.record.outcome, ModelReplied):
            self._enters(call, call.record.called, call.record.outcome)
        if self._runner.state.tasks[self._path].closed(call.number):
            return
        if call.unscored:
            await self._sample(call, "abandoned", reason)
            return
        # One that never began has an outcome, and no call: nothing was sent, and nothing is charged.
        attempt = max(1, call.attempt, call.record.attempts)
        replied = ModelReplied(failure=Failure("cancelled", reason), usage=Usage(seconds=call.seconds))
        await self._runner.sequencer.record(replied, self._path, call.number, attempt)

    def settle(self) -> None:
        """What came since enters the window in the order of ops."""
        if self._arrived:
            for op, called, replied in sorted(self._arrived, key=lambda item: item[0]):
                self._window.enter(op, called, replied)
                if self._shown is not None:
                    brought = [*self._messages(called.entries), Message("assistant", replied.text)]
                    self._rolling = self._digest_with(brought)
                    self._shown += brought
            self._arrived.clear()

    def _fitting(self, call: Call) -> tuple[Entry, ...]:
        room = self._window_tokens - call.max_tokens - self._runner.state.config.overhead_tokens
        asked = []
        for say in call.says:
            parts = tuple(map(ref_of, say.parts))
            asked.append(Asked(say.role, parts, render(parts, self._runner.text), say.pinned))
        entries, blobs = fitting(asked, self._window, room, self._runner.count)
        for blob in blobs:
            self._runner.keep_blob(blob)
        return entries

    def _sized(self, call: Call, recorded: ModelCalled | None) -> tuple[Entry, ...]:
        """The entries asked for now, with the sizes that are recorded: a replay has no tokenizer.

        None are recorded of a call that was given up before it began.
        """
        if recorded is None or len(recorded.entries) != len(call.says):
            return tuple(Entry(say.role, tuple(map(ref_of, say.parts)), 0, say.pinned) for say in call.says)
        entries = []
        for say, then in zip(call.says, recorded.entries, strict=True):
            parts = tuple(map(ref_of, say.parts))
            if then.spill is not None and then.spill.blob == text_digest(render(parts, self._runner.text)):
                entries.append(then)
            else:
                entries.append(Entry(say.role, parts, then.tokens, say.pinned))
        return tuple(entries)

    async def _make_room(self, call: Call) -> str:
        """Compact the window, if the call would overflow it; why that cannot help, if so."""
        overhead = self._runner.state.config.overhead_tokens
        incoming = sum(entry.tokens for entry in call.entries) + overhead + call.max_tokens
        for _ in range(2):
            if self._window.tokens + incoming <= self._window_tokens:
                return ""
            fits = self._window_tokens - incoming
            if not await self._compact(call.number, max(0, fits // 2), fits, "the window would overflow"):
                break
        if self._window.tokens + incoming <= self._window_tokens:
            return ""
        return (
            f"expected prompt and reply to fit a window of {self._window_tokens} tokens, found "
            f"{self._window.tokens + incoming} that must stay; use a larger --window or fewer max_tokens"
        )

    async def _compact(self, number: int, target: int, fits: int, reason: str) -> bool:
        event = await compact(self._runner, self._task, self._window, number, target, fits, reason)
        if event is not None:
            self._window.compact(number, event)
            self._shown = None
        return event is not None

    async def compact(self, number: int, record: OpRecord) -> int:
        """Compact the window for its own sake; the tokens that this frees."""
        before = self._window.tokens
        for compaction in record.compactions:
            self._window.compact(number, compaction)
            self._shown = None
        if not record.compactions and record.outcome is None:
            self._runner.need_live(self._path, number, "compact")
            await self._compact(number, 0, self._window_tokens, "the agent asked for it")
        return before - self._window.tokens

    def _show(self) -> list[Message]:
        """The window as the engine sees it. Kept, so that a call costs what is new in it; made anew after a compaction."""
        if self._shown is None:
            self._rolling = EMPTY_DIGEST
            shown = self._messages(item.entry for item in self._window.entries)
            self._rolling = self._digest_with(shown)
            self._shown = shown
        return self._shown

    def _messages(self, entries: Iterable[Entry]) -> list[Message]:
        return [Message(entry.role, render(entry.parts, self._runner.text)) for entry in entries]

    def _digest_with(self, messages: Iterable[Message]) -> str:
        """The rolling digest of the window and these messages."""
        digest = self._rolling
        for message in messages:
            digest = roll(digest, message.role, message.text)
        return digest
