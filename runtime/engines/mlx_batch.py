"""The thread that owns the model: continuous batching over mlx-lm's batch generator.

Owns all work on the accelerator, the queue in front of it and the prefix cache. Never knows an event loop:
jobs come by a thread-safe queue, and what they yield leaves through the function that each brings along. The
invariants: a job ends with exactly one outcome (none if it was cancelled), and the memory of admitted jobs
stays within the limit.

Prompts are read one at a time, in chunks, then decoded together. One at a time costs nothing on a CPU (there
is no idle arithmetic to fill), pads nothing, makes the keys and values of a prompt independent of its
neighbours, and lets each prompt find what the one before it has just put into the prefix cache.
"""

import queue
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import mlx.core as mx
import msgspec
from mlx_lm.generate import BatchGenerator, generation_stream
from mlx_lm.models.cache import make_prompt_cache

from treering.runtime.engine import EngineError
from treering.runtime.engines.mlx_prefix import PrefixCache
from treering.runtime.engines.mlx_sampling import make_sampler

__all__ = ["BatchLimits", "BatchWorker", "Finished", "Job", "LoadedModel", "Token"]


class LoadedModel(msgspec.Struct, frozen=True):
    """What a loader hands over: mlx-lm's model and tokenizer, and what identifies them."""

    name: str
    weights: str
    context_tokens: int
    model: Any
    tokenizer: Any


class BatchLimits(msgspec.Struct, frozen=True):
    """How much is done at once. `chunk_tokens` is the prefill step; `turn_tokens` how many prompt tokens may
    be read between two steps of decoding: more serves throughput, fewer serves those who watch."""

    memory_bytes: int
    prefix_bytes: int
    chunk_tokens: int = 256
    turn_tokens: int = 2048
    sequences: int = 32


class Token(msgspec.Struct, frozen=True):
    """One generated token and its log-probability. `ends` says that it is an end-of-turn token."""

    token: int
    logprob: float
    ends: bool


class Finished(msgspec.Struct, frozen=True):
    """The outcome of a job. `finish` is `stop` or `length`; a scored job has its tokens' log-probabilities."""

    finish: str
    cached_tokens: int
    logprobs: tuple[float, ...] = ()


class Job:
    """One sequence on its way through the thread. `continuation` makes it a scoring job.

    `on_token` is called on the thread and returns true to end the sequence there; `on_end` is called once,
    with a Finished or an EngineError.
    """

    def __init__(
        self,
        prompt: list[int],
        max_tokens: int,
        on_end: Callable[[Finished | EngineError], None],
        on_token: Callable[[Token], bool] | None = None,
        sampling: tuple[float, float, int] = (0.0, 1.0, 0),
        continuation: Sequence[int] | None = None,
    ) -> None:
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.on_end = on_end
        self.on_token = on_token
        self.sampling = sampling
        self.continuation = continuation
        self.uid: int | None = None
        self.cache: list[Any] | None = None
        self.read_tokens = 0
        self.cached_tokens = 0

    @property
    def total_tokens(self) -> int:
        """The most tokens that this job's keys and values will stand for."""
        return len(self.prompt) + (self.max_tokens if self.continuation is None else len(self.continuation))


class BatchWorker:
    """The thread, seen from outside: `submit`, `cancel` and `close` may be called from any thread."""

    def __init__(self, load: Callable[[], LoadedModel], limit: Callable[[], BatchLimits]) -> None:
        """`load` and then `limit`, which may look at the memory that is left, are called on the thread."""
        self._load = load
        self._limit = limit
        self._inbox: queue.SimpleQueue[tuple[str, Job | None]] = queue.SimpleQueue()
        self._ready: Future[LoadedModel] = Future()
        self._lock = threading.Lock()
        self._over: EngineError | None = None
        self._waiting: deque[Job] = deque()
        self._reading: deque[Job] = deque()
        self._read: list[Job] = []
        self._decoding: dict[int, Job] = {}
        self.prefixes = PrefixCache(0)
        self.bytes_per_token = 0
        # A daemon: a program that ends without closing its engine ends all the same.
        self._thread = threading.Thread(target=self._run, name="treering-mlx", daemon=True)

    def start(self) -> LoadedModel:
        """Start the thread and wait until the model is loaded; raises what loading raised."""
        self._thread.start()
        loaded = self._ready.result()
        del self._ready  # or it would keep the model after the end
        return loaded

    def submit(self, job: Job) -> None:
        """Queue `job`. Raises EngineError if the thread is over, or the job could never be admitted."""
        needed = job.total_tokens * self.bytes_per_token
        if needed > self._limits.memory_bytes:
            raise EngineError(
                f"the call needs about {needed >> 20} MiB for {job.total_tokens} tokens and the engine may use "
                f"{self._limits.memory_bytes >> 20} MiB: shorten the prompt or max_tokens, or allow more memory"
            )
        with self._lock:
            if self._over is not None:
                raise self._over
            self._inbox.put(("job", job))

    def cancel(self, job: Job) -> None:
        """Drop `job` wherever it is. Its place is free before the next step."""
        self._inbox.put(("cancel", job))

    def close(self) -> None:
        """Ask the thread to end; jobs in progress fail."""
        self._inbox.put(("close", None))

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread's end; whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def active_jobs(self) -> int:
        """Jobs that hold memory now. For tests and pictures: it may be out of date when read."""
        return len(self._reading) + len(self._read) + len(self._decoding)

    # What follows runs on the thread only.

    def _run(self) -> None:
        reason = EngineError("the engine was closed")
        try:
            with mx.stream(generation_stream):
                if self._open():
                    self._serve()
        except BaseException as error:
            # Whatever it was, nobody may be left waiting.
            reason = EngineError(f"the engine's thread failed and must be started again: {error!r}")
            reason.__cause__ = error
        finally:
            self._end(reason)

    def _open(self) -> bool:
        try:
            loaded = self._load()
            self._model = loaded.model
            self._end_tokens = frozenset(loaded.tokenizer.eos_token_ids)
            self._limits = self._limit()
            self.prefixes = PrefixCache(self._limits.prefix_bytes)
            self.bytes_per_token = _bytes_per_token(self._model)
            self._generator = BatchGenerator(
                self._model,
                stop_tokens=[[token] for token in sorted(self._end_tokens)],
                completion_batch_size=self._limits.sequences,
                prefill_batch_size=self._limits.sequences,
                prefill_step_size=self._limits.chunk_tokens,
                stream=generation_stream,
            )
        except BaseException as error:
            self._ready.set_exception(error)
            return False
        self._ready.set_result(loaded)
        return True

    def _serve(self) -> None:
        while self._receive(wait=not self._busy):
            self._admit()
            if not self._read_prompts():
                return
            self._decode()

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self._reading or self._read or self._decoding)

    def _end(self, reason: EngineError) -> None:
        with self._lock:
            self._over = reason
        jobs = [*self._waiting, *self._reading, *self._read, *self._decoding.values()]
        while not self._inbox.empty():
            kind, job = self._inbox.get()
            if kind == "job" and job is not None:
                jobs.append(job)
        for job in jobs:
            failure = EngineError(str(reason))  # one each: a shared one would collect their tracebacks
            failure.__cause__ = reason.__cause__
            job.on_end(failure)
        for place in (self._waiting, self._reading, self._read, self._decoding, self.prefixes):
            place.clear()
        if hasattr(self, "_generator"):
            self._generator.close()
            del self._generator, self._model
        mx.clear_cache()
        # Left to the thread's own end, MLX would free its streams after `join` has returned; that takes the
        # interpreter's lock, which at exit is fatal ("terminate called without an active exception").
        mx.clear_streams()

    def _receive(self, wait: bool) -> bool:
        """Take in what has come, and with `wait` wait for it; false if the thread should end."""
        while wait or not self._inbox.empty():
            kind, job = self._inbox.get()
            if kind == "close":
                return False
            if job is not None and kind == "job":
                self._waiting.append(job)
            elif job is not None:
                self._drop(job)
            wait = not self._busy
        return True

    def _drop(self, job: Job) -> None:
        for place in (self._waiting, self._reading, self._read):
            if job in place:
                place.remove(job)
                return
        if job.uid is not None and self._decoding.pop(job.uid, None) is not None:
            self._generator.remove([job.uid])

    def _admit(self) -> None:
        """Let waiting jobs in, in order, while memory lasts."""
        inside = [*self._reading, *self._read, *self._decoding.values()]
        widest = max((job.total_tokens for job in inside), default=0)
        count = len(inside)
        while self._waiting and count < self._limits.sequences:
            # A batch is a rectangle: every sequence takes the room of the longest.
            wider = max(widest, self._waiting[0].total_tokens)
            if count and (count + 1) * wider * self.bytes_per_token > self._limits.memory_bytes:
                return
            self._reading.append(self._waiting.popleft())
            widest = wider
            count += 1

    def _read_prompts(self) -> bool:
        """Read admitted prompts, chunk by chunk, until none is left or the turn is over; false to end."""
        left = self._limits.turn_tokens
        while self._reading and left > 0:
            job = self._reading[0]
            left -= self._read_chunk(job)
            if job.read_tokens == len(job.prompt) - 1:
                self._reading.popleft()
                self.prefixes.put(job.prompt[:-1], job.cache or ())
                mx.clear_cache()  # shapes differ from prompt to prompt: freed buffers would pile up
                if job.continuation is None:
                    self._read.append(job)
                else:
                    left -= self._score(job, job.continuation)
            # Between chunks: cancellations count at once, and siblings that just came read in the same turn.
            if not self._receive(wait=False):
                return False
            self._admit()
        return True

    def _read_chunk(self, job: Job) -> int:
        if job.cache is None:
            job.cached_tokens, job.cache = self.prefixes.longest(job.prompt[:-1])
            job.read_tokens = job.cached_tokens
            if job.cache is None:
                job.cache = make_prompt_cache(self._model)
        chunk = job.prompt[job.read_tokens : -1][: self._limits.chunk_tokens]
        if chunk:
            self._model(mx.array([chunk]), cache=job.cache)
            mx.eval([layer.state for layer in job.cache])
        job.read_tokens += len(chunk)
        return len(chunk)

    def _score(self, job: Job, continuation: Sequence[int]) -> int:
        """Log-probabilities of `continuation` after the prompt, in one pass (chunked, as prompts are)."""
        inputs = [job.prompt[-1], *continuation[:-1]]
        logprobs: list[float] = []
        for start in range(0, len(continuation), self._limits.chunk_tokens):
            end = start + self._limits.chunk_tokens
            logits = self._model(mx.array([inputs[start:end]]), cache=job.cache)[0].astype(mx.float32)
            wanted = mx.array(list(continuation[start:end]))[:, None]
            chosen = mx.take_along_axis(logits, wanted, axis=-1)[:, 0]
            here: Any = (chosen - mx.logsumexp(logits, axis=-1)).tolist()
            logprobs.extend(here)
        job.cache = None
        job.on_end(Finished("stop", job.cached_tokens, tuple(logprobs)))
        return len(inputs)

    def _decode(self) -> None:
        """Bring what was read into the batch, and take one step of it."""
        if self._read:
            self._insert(self._read)
            self._read = []
        if not self._decoding:
            return
        _, responses = self._generator.next()
        stopped = []
        for response in responses:
            job = self._decoding.get(response.uid)
            if job is None:
                continue
            ends = response.token in self._end_tokens
            logprob = _item(response.logprobs, response.token)
            stop = job.on_token is not None and job.on_token(Token(response.token, logprob, ends))
            if response.finish_reason is not None:
                self.prefixes.put(response.all_tokens, response.prompt_cache)
                self._finish(job, "stop" if stop else response.finish_reason)
            elif stop:
                stopped.append(response.uid)
        if stopped:
            for cache, tokens in self._generator.remove(stopped, return_prompt_caches=True).values():
                self.prefixes.put(tokens, cache)
            for uid in stopped:
                self._finish(self._decoding[uid], "stop")

    def _insert(self, jobs: list[Job]) -> None:
        uids = self._generator.insert(
            [job.prompt[-1:] for job in jobs],
            max_tokens=[job.max_tokens for job in jobs],
            caches=[job.cache for job in jobs],
            all_tokens=[job.prompt[:-1] for job in jobs],
            samplers=[make_sampler(*job.sampling) for job in jobs],
        )
        for uid, job in zip(uids, jobs, strict=True):
            job.uid = uid
            job.cache = None  # the batch has a copy
            self._decoding[uid] = job

    def _finish(self, job: Job, finish: str) -> None:
        if job.uid is not None:
            del self._decoding[job.uid]
        job.on_end(Finished(finish, job.cached_tokens))


def _bytes_per_token(model: Any) -> int:
    """Bytes of keys and values per token, from the shapes of a pass that is never computed."""
    cache = make_prompt_cache(model)
    model(mx.array([[0]]), cache=cache)
    total = 0
    for layer in cache:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        for part in (keys, values):
            if part is not None:
                total += part.nbytes // part.shape[-2]
    return max(total, 1)


def _item(logprobs: Any, token: int) -> float:
    """One number of an array that is already computed.

    Read from its memory: an operation would queue behind the step that is now being computed.
    """
    view = memoryview(logprobs)
    if view.format == "f":
        return float(view[token])
    raw = view.tobytes()[2 * token : 2 * token + 2]  # memoryview does not index half precision
    # bfloat16 is the upper half of a float32.
    (whole,) = struct.unpack("<f", b"\0\0" + raw) if logprobs.dtype == mx.bfloat16 else struct.unpack("<e", raw)
    return float(whole)
