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
    Compacted,
    Entry,
    Failure,
    ModelCalled,
    ModelReplied,
    Part,
    Ref,
    Refused,
    RunConfig,
    Spill,
    Usage,
)
from treering.events.codec import text_digest
from treering.events.log import Blob
from treering.memory.compaction import SUMMARY_SYSTEM, choose_span, extract, measure_loss, summary_prompt
from treering.memory.recall import Hit
from treering.memory.windows import EMPTY_DIGEST, Window, render, roll
from treering.runtime.digests import call_seed, generate_digest
from treering.runtime.engine import ContextOverflow, EngineError, EngineTransientError, Message, Reply, Request
from treering.runtime.errors import ModelFailed, OpTimeout, WindowTooSmall, refusal
from treering.runtime.journal import OpRecord
from treering.runtime.seams import current_task
from treering.runtime.state import depth_of

if TYPE_CHECKING:
    from treering.runtime.runner import Runner
    from treering.runtime.task import Task

__all__ = ["Answer", "Call", "ModelCalls", "Prompt", "Say", "ref_of"]


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


class Call(msgspec.Struct):
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
    prompt: tuple[Message, ...] = ()
    prompt_tokens: int = 0
    attempt: int = 0
    too_small: str = ""
    seconds: float = 0.0


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

    def call(
        self,
        number: int,
        prompt: Prompt,
        system: str | None,
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop: tuple[str, ...],
        keep: bool,
        continuation: str | None,
    ) -> Call:
        """A call that is not yet ready. `system` opens a window that is empty."""
        says = [Say((prompt,))] if isinstance(prompt, str) else [prompt] if isinstance(prompt, Say) else list(prompt)
        if system is not None and self._window.empty:  # whichever comes first brings it
            says.insert(0, Say((system,), "system", True))
        return Call(number, says, max_tokens, temperature, top_p, stop, keep, continuation)

    async def prepare(self, call: Call) -> None:
        """Make a call ready: what it asks, with the window as it is now, and room for it."""
        record = self._runner.journal.take(self._path, call.number) or OpRecord()
        call.record = record
        if record.outcome is None:  # one in flight is asked anew, whatever it was
            self._runner.need_live(self._path, call.number, "generate")
            self._runner.need_known(self._path, call.number, record, "")
        recorded = record.called if record.outcome is not None and isinstance(record.called, ModelCalled) else None
        call.entries = (
            tuple(self._entry(say, call) for say in call.says)
            if recorded is None and not self._runner.replaying
            else self._sized(call, recorded)
        )
        for compaction in record.compactions:
            self._window.compact(call.number, compaction)
            self._shown = None
        if record.outcome is None:
            call.too_small = await self._make_room(call)
        shown = self._show()
        asks = self._messages(call.entries)
        messages = self._digest_with(asks)
        if recorded is not None:
            then = self._request_digest(call, messages, self._runner.config_at(record.called_seq))
            if recorded.request != then:
                asked = "\n".join(render(tuple(map(ref_of, say.parts)), self._runner.text) for say in call.says)
                raise self._runner.diverged(self._path, call.number, record, asked, current_task())
        # A call still in flight when a fork changed the model is a new request.
        config = self._runner.config_at(record.called_seq if record.outcome is not None else None)
        call.request = self._request_digest(call, messages, config)
        self._equal[call.request] = call.occurrence = self._equal.get(call.request, 0) + 1
        call.prompt = (*shown, *asks)
        call.prompt_tokens = (
            self._window.tokens + sum(entry.tokens for entry in call.entries) + config.overhead_tokens
        )

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
        record = call.record
        assert record is not None
        outcome = record.outcome
        if isinstance(outcome, Refused):
            raise refusal(outcome, self._path)
        if isinstance(outcome, ModelReplied):
            called = record.called if isinstance(record.called, ModelCalled) else self._called(call, "")
            return self._arrive(call, called, outcome)
        taken = ModelReplied(failure=Failure("window", call.too_small)) if call.too_small else self._take_over(call)
        if taken is None:
            self._runner.need_live(self._path, call.number, "generate")
            async with self._runner.slots.hold(depth_of(self._path)):
                called, replied = await self._attempts(call)
            await checkpoint_if_cancelled()
        else:
            called = self._called(call, "")
            _, refused = self._runner.sequencer.append(called, self._path, call.number, 1)
            if isinstance(refused, Refused):
                await self._runner.sequencer.durable()
                raise refusal(refused, self._path)
            replied = taken
        seq, _ = self._runner.sequencer.append(replied, self._path, call.number, max(1, call.attempt))
        await self._runner.sequencer.durable(seq)
        return self._arrive(call, called, replied)

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
            called = self._called(call, why, request.seed)
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
        runner = self._runner
        if call.continuation is None:
            reply = await runner.engine_for().generate(request, runner.stream_to(self._path))
            return reply, reply.logprob
        score_of = getattr(runner.engine_for(), "score", None)
        if score_of is None:
            return Reply("", "stop", 0, 0), None
        score = await score_of(request, call.continuation)
        mean = score.logprob / score.tokens if score.tokens else None
        return Reply("", "stop", score.prompt_tokens, 0, score.cached_tokens), mean

    def _called(self, call: Call, why: str, seed: int = 0) -> ModelCalled:
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

    def _arrive(self, call: Call, called: ModelCalled, replied: ModelReplied) -> Answer:
        if replied.failure is not None:
            if replied.failure.kind == "window":
                raise WindowTooSmall(f"task {self._path}: {replied.failure.message}")
            if replied.failure.kind == "cancelled":
                raise OpTimeout(f"task {self._path}: {replied.failure.message}")
            raise ModelFailed(f"task {self._path}: the model gave no answer: {replied.failure.message}")
        if called.keep:
            self._arrived.append((call.number, called, replied))
        return Answer(replied.text, replied.finish, replied.logprob)

    async def abandon(self, call: Call, reason: str) -> None:
        """Record that a call was given up, unless the log holds its outcome."""
        assert call.record is not None  # prepared with the op that gives it up
        self._arrived = [item for item in self._arrived if item[0] != call.number]
        if self._runner.state.tasks[self._path].closed(call.number):
            return
        # One that never began has an outcome, and no call: nothing was sent, and nothing is charged.
        attempt = max(1, call.attempt, call.record.attempts)
        replied = ModelReplied(failure=Failure("cancelled", reason), usage=Usage(seconds=call.seconds))
        seq, _ = self._runner.sequencer.append(replied, self._path, call.number, attempt)
        await self._runner.sequencer.durable(seq)

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

    def _entry(self, say: Say, call: Call) -> Entry:
        parts = tuple(ref_of(part) for part in say.parts)
        text = render(parts, self._runner.text)
        tokens = self._runner.count(Message(say.role, text))
        room = self._window_tokens - call.max_tokens - self._runner.state.config.overhead_tokens
        if tokens <= room or say.pinned:
            return Entry(say.role, parts, tokens, say.pinned)
        return self._spill(say, text, tokens, max(16, room // 2))

    def _sized(self, call: Call, recorded: ModelCalled | None) -> tuple[Entry, ...]:
        """The entries asked for now, with the sizes that are recorded: a replay has no tokenizer.

        None are recorded of a call that was given up before it began.
        """
        if recorded is None or len(recorded.entries) != len(call.says):
            return tuple(Entry(say.role, tuple(map(ref_of, say.parts)), 0, say.pinned) for say in call.says)
        return tuple(
            then
            if then.spill is not None
            else Entry(say.role, tuple(map(ref_of, say.parts)), then.tokens, say.pinned)
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

    async def _make_room(self, call: Call) -> str:
        """Compact the window, if the call would overflow it; why that cannot help, if so."""
        overhead = self._runner.state.config.overhead_tokens
        incoming = sum(entry.tokens for entry in call.entries) + overhead + call.max_tokens
        for _ in range(2):
            if self._window.tokens + incoming <= self._window_tokens:
                return ""
            target = max(0, (self._window_tokens - incoming) // 2)
            if not await self._compact(call.number, target, "the window would overflow"):
                break
        if self._window.tokens + incoming <= self._window_tokens:
            return ""
        return (
            f"expected prompt and reply to fit a window of {self._window_tokens} tokens, found "
            f"{self._window.tokens + incoming} that must stay; use a larger --window or fewer max_tokens"
        )

    async def _compact(self, number: int, target: int, reason: str) -> bool:
        span = choose_span(self._window.entries, target)
        if span is None:
            return False
        lines = [f"{item.entry.role}: {render(item.entry.parts, self._runner.text)}" for item in span.entries]
        text = "\n".join(lines)
        kept = self._window.tokens - span.tokens
        room = max(24, min(span.tokens // 3, self._window_tokens // 4, max(24, target - kept)))
        prefix = "Earlier, in short: "
        summary, by = await self._runner.summarise(self._task, number, text, room, SUMMARY_SYSTEM, summary_prompt)
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
        seq, _ = self._runner.sequencer.append(event, self._path, number)
        await self._runner.sequencer.durable(seq)
        self._window.compact(number, event)
        self._shown = None
        return True

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


def ref_of(part: str | Ref | Hit) -> Part:
    """A part as the log keeps it: by reference where it can."""
    return part.ref if isinstance(part, Hit) else part
