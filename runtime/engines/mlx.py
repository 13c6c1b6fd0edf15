"""The MLX engine: a local model behind the engine protocol, batched across all who call.

Owns the event loop's side: rendering, checks, streaming, cancellation. The model itself lives on one thread
(`mlx_batch`). Never blocks the loop longer than it takes to tokenise a prompt. The invariant: every call ends
with a reply, an EngineError or its own cancellation, even if the thread dies.
"""

import atexit
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio.to_thread

from treering.events.errors import UsageError
from treering.runtime.engine import (
    ContextOverflow,
    EngineError,
    EngineInfo,
    Message,
    Reply,
    Request,
    Score,
    StreamText,
)
from treering.runtime.engines.blas import import_mlx
from treering.runtime.engines.mailbox import Mailbox
from treering.runtime.engines.mlx_memory import available_bytes
from treering.runtime.engines.mlx_text import PromptCodec, StopText

if TYPE_CHECKING:  # mlx_batch imports MLX, which must wait for its BLAS
    from treering.runtime.engines.mlx_batch import BatchWorker, Finished, Job, LoadedModel, Token

__all__ = ["MlxEngine"]

_MEMORY_SHARE = 0.5  # of available memory, for the keys and values of calls in progress
_PREFIX_SHARE = 0.125  # of available memory, for those of prompts that have been read
_EXIT_WAIT_S = 5.0  # how long a program that ends waits for the thread to leave the model
_LONG_CHARACTERS = 100_000  # texts beyond this are tokenised off the loop


class MlxEngine:
    """`Engine` and `ScoringEngine` over mlx-lm. May serve several event loops at once."""

    def __init__(
        self,
        load: "Callable[[], LoadedModel]",
        *,
        memory_bytes: int | None = None,
        prefix_bytes: int | None = None,
        batch_size: int = 32,
    ) -> None:
        """Load a model by `load`, called on the engine's thread, and wait for it: blocking.

        `memory_bytes` bounds the keys and values of the calls in progress (default: half of the memory that
        is available once the model is loaded), `prefix_bytes` those kept of earlier prompts (an eighth).
        """
        mx = import_mlx()
        from treering.runtime.engines.mlx_batch import BatchLimits, BatchWorker

        def limit() -> BatchLimits:
            available = available_bytes(mx)
            on_cpu = mx.default_device().type == mx.DeviceType.cpu
            return BatchLimits(
                memory_bytes=int(available * _MEMORY_SHARE) if memory_bytes is None else memory_bytes,
                prefix_bytes=int(available * _PREFIX_SHARE) if prefix_bytes is None else prefix_bytes,
                chunk_tokens=256 if on_cpu else 2048,
                turn_tokens=2048 if on_cpu else 8192,
                sequences=batch_size,
            )

        self._worker = BatchWorker(load, limit)
        # An engine that is dropped unclosed gives its memory back all the same.
        weakref.finalize(self, self._worker.close).atexit = False
        loaded = self._worker.start()
        atexit.register(_leave, weakref.ref(self._worker))
        self._codec = PromptCodec(loaded.tokenizer)
        self._info = EngineInfo(
            engine="mlx",
            model=loaded.name,
            weights=loaded.weights,
            template=self._codec.digest,
            context_tokens=loaded.context_tokens,
            overhead_tokens=self._codec.overhead_tokens,
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def active_jobs(self) -> int:
        """How many calls hold memory on the model's side now: admitted and not ended. Not a promise."""
        return self._worker.active_jobs

    def count(self, message: Message) -> int:
        """Tokens that `message` takes in a prompt, its share of the template included."""
        return self._codec.count(message)

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        """Answer `request`, decoding together with whoever else asks. Cancelling frees its place at once."""
        from treering.runtime.engines.mlx_batch import Job

        prompt = await self._render(request)
        self._check_fits(len(prompt), request.max_tokens)
        mailbox: Mailbox[str | Finished | EngineError] = Mailbox()
        stream = _ReplyStream(self._codec, request.stop, mailbox.put if on_text is not None else None)
        job = Job(
            prompt,
            request.max_tokens,
            on_end=stream.ending(mailbox.put),
            on_token=stream.take,
            sampling=(request.temperature, request.top_p, request.seed),
        )
        finished = await self._outcome(job, mailbox, on_text)
        return Reply(
            text=stream.text,
            finish=finished.finish,
            prompt_tokens=len(prompt),
            generated_tokens=stream.tokens,
            cached_tokens=finished.cached_tokens,
            logprob=stream.logprob_sum / stream.tokens if stream.tokens else None,
        )

    async def score(self, request: Request, continuation: str) -> Score:
        """Log-probability of `continuation` as the reply to `request`, without an end of turn."""
        from treering.runtime.engines.mlx_batch import Job

        prompt = await self._render(request)
        wanted = self._codec.encode(continuation)
        if not wanted:
            return Score(0.0, 0, len(prompt))
        self._check_fits(len(prompt), len(wanted))
        mailbox: Mailbox[str | Finished | EngineError] = Mailbox()
        job = Job(prompt, 0, on_end=mailbox.put, continuation=wanted)
        finished = await self._outcome(job, mailbox, None)
        return Score(sum(finished.logprobs), len(wanted), len(prompt), finished.cached_tokens)

    async def aclose(self) -> None:
        """End the thread and free the model; calls in progress fail with EngineError."""
        self._worker.close()
        await anyio.to_thread.run_sync(self._worker.join)

    async def _render(self, request: Request) -> list[int]:
        if sum(len(message.text) for message in request.messages) > _LONG_CHARACTERS:
            return await anyio.to_thread.run_sync(self._codec.render, request.messages)
        return self._codec.render(request.messages)

    def _check_fits(self, prompt_tokens: int, reply_tokens: int) -> None:
        if not prompt_tokens:
            raise UsageError("a request needs at least one message, and this one renders to nothing")
        if reply_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1 and is {reply_tokens}")
        total, context = prompt_tokens + reply_tokens, self._info.context_tokens
        if total > context:
            raise ContextOverflow(
                f"the prompt of {prompt_tokens} tokens and a reply of {reply_tokens} make {total}, and "
                f"{self._info.model} reads {context}: shorten the prompt or max_tokens"
            )

    async def _outcome(
        self,
        job: "Job",
        mailbox: "Mailbox[str | Finished | EngineError]",
        on_text: StreamText | None,
    ) -> "Finished":
        self._worker.submit(job)
        ended = False
        try:
            while True:
                item = await mailbox.get()
                if isinstance(item, str):
                    if on_text is not None:
                        on_text(item)
                    continue
                ended = True
                if isinstance(item, EngineError):
                    raise item
                return item
        finally:
            # Cancelled, or `on_text` raised: nobody wants the rest.
            if not ended:
                self._worker.cancel(job)


class _ReplyStream:
    """A reply as it comes, on the engine's thread; read by its caller only after the end."""

    def __init__(self, codec: PromptCodec, stops: tuple[str, ...], show: Callable[[str], None] | None) -> None:
        self._detokenizer = codec.detokenizer()
        self._special = codec.special_tokens
        self._cut = StopText(stops)
        self._show = show
        self.tokens = 0
        self.logprob_sum = 0.0

    @property
    def text(self) -> str:
        return self._cut.text

    def take(self, token: "Token") -> bool:
        """Add a token; true if a stop string was met."""
        self.tokens += 1
        self.logprob_sum += token.logprob
        # Special tokens are structure, not text.
        if not token.ends and token.token not in self._special:
            self._detokenizer.add_token(token.token)
            self._emit(self._cut.feed(self._detokenizer.last_segment))
        return self._cut.stopped

    def ending(self, put: "Callable[[Finished | EngineError], None]") -> "Callable[[Finished | EngineError], None]":
        """`put`, after the last of the text is out."""

        def end(outcome: "Finished | EngineError") -> None:
            if not isinstance(outcome, EngineError):
                self._detokenizer.finalize()
                self._emit(self._cut.feed(self._detokenizer.last_segment))
                self._emit(self._cut.close())
            put(outcome)

        return end

    def _emit(self, text: str) -> None:
        if text and self._show is not None:
            self._show(text)


def _leave(worker: "weakref.ref[BatchWorker]") -> None:
    """At the interpreter's end: get the thread out of the model, whose library is about to be torn down."""
    running = worker()
    if running is not None:
        running.close()
        running.join(_EXIT_WAIT_S)
