"""Models behind an OpenAI-compatible endpoint.

Owns one attempt at a chat completion over HTTP, streamed, and the limits that this process keeps. It never
retries (its caller records each attempt) and never shows its key. Invariant: a stream that ends without a
finish reason is a failure, whatever text came before.
"""

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import anyio
import msgspec

from treering.events.errors import UsageError
from treering.memory.passages import estimate_tokens
from treering.runtime.engine import EngineError, EngineInfo, EngineTransientError, Message, Reply, Request, StreamText
from treering.runtime.engines.openai_wire import Collector, Events, Prices, chat_body, context_size, refusal
from treering.runtime.engines.rates import TokenBucket

if TYPE_CHECKING:
    import httpx

__all__ = ["OpenAIEngine"]

DEFAULT_CONTEXT_TOKENS = 8192

_MESSAGE_TOKENS = 8
_OVERHEAD_TOKENS = 8
_MARGIN = 1.25
_MAX_BODY_BYTES = 64 * 1024
_COUNT_TIMEOUT_S = 5.0


class _Key:
    """The key, which shows itself in nothing but `text`."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "<key>" if self.text else "<no key>"


class OpenAIEngine:
    """An Engine at `base_url` (the address that ends in /v1). The key comes from OPENAI_API_KEY or TREERING_API_KEY.

    `count` is an estimate from above, a quarter over what English and code take, as the tokenizer of a remote
    model is not known. It is exact with `tokenizer`, a folder or file with a `tokenizer.json`, and with
    `tokenize=True`, which asks a llama.cpp server on each new text (a short blocking call: for a server near
    by). `context_tokens` None means what `connect` finds, and 8,192 before that.
    `idle_timeout_s` limits the wait for the next bytes and `timeout_s` the whole call. At most `max_concurrent`
    calls are open at once; with `requests_per_minute`, calls begin no faster than that by `clock`.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key: str | None = None,
        context_tokens: int | None = None,
        timeout_s: float = 600.0,
        max_concurrent: int = 16,
        *,
        idle_timeout_s: float = 120.0,
        requests_per_minute: float | None = None,
        prices: Prices | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        tokenize: bool = False,
        clock: Callable[[], float] = anyio.current_time,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._model = model
        self._url = base_url.rstrip("/")
        self._shown = _without_credentials(self._url)
        key = api_key or os.environ.get("OPENAI_API_KEY") or os.environ.get("TREERING_API_KEY") or ""
        self._key = _Key(_checked_key(key.strip()))
        self._asked_context = context_tokens
        self._context_tokens = context_tokens or DEFAULT_CONTEXT_TOKENS
        self._timeout_s = timeout_s
        self._idle_timeout_s = min(idle_timeout_s, timeout_s)
        self._max_concurrent = max_concurrent
        self._slots: anyio.Semaphore | None = None
        self._bucket: TokenBucket | None = None
        if requests_per_minute is not None:
            self._bucket = TokenBucket(requests_per_minute, max(1.0, requests_per_minute / 60.0), clock)
        self._prices = prices or Prices()
        self._message_tokens = _MESSAGE_TOKENS
        self._now_s = now_s
        self._client: httpx.AsyncClient | None = None
        self._open: set[anyio.CancelScope] = set()
        self._closed = False
        self._exact: Callable[[str], int] | None = None
        if tokenizer is not None:
            self._exact = _folder_counter(Path(tokenizer))
        elif tokenize:
            self._exact = lru_cache(maxsize=4096)(self._ask_count)

    def __repr__(self) -> str:
        return f"OpenAIEngine({self._model!r}, {self._shown!r})"

    @property
    def info(self) -> EngineInfo:
        address = blake2b(f"{self._shown} {self._model}".encode(), digest_size=16).hexdigest()
        name = f"openai:{self._model}"
        return EngineInfo("openai", name, address, "remote", self._context_tokens, _OVERHEAD_TOKENS)

    def count(self, message: Message) -> int:
        if self._exact is not None:
            return self._exact(message.text) + self._message_tokens
        return ceil(_MARGIN * estimate_tokens(message.text)) + self._message_tokens

    async def connect(self) -> EngineInfo:
        """Ask the server how large the model's context is, where it says so (llama.cpp, vLLM), and use it.

        A size given to the engine is kept if it is smaller. Raises as `generate` does if the server cannot be
        reached or refuses the key.
        """
        with self._failures():
            for address in (f"{self._url.removesuffix('/v1')}/props", f"{self._url}/models"):
                async with self._stream("GET", address) as response:
                    body = await _read(response)
                    if response.status_code in (401, 403) or response.status_code >= 500:
                        raise self._refusal(response, body)
                    found = context_size(_json(body), self._model) if response.status_code == 200 else None
                if found is not None:
                    self._context_tokens = min(found, self._asked_context or found)
                    break
        return self.info

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        """One attempt. See Engine; also raises EngineError once the engine is closed."""
        if self._slots is None:
            self._slots = anyio.Semaphore(self._max_concurrent)
        with self._failures():
            async with self._slots:
                await self._wait_for_rate()
                collector = Collector(request.stop, on_text)
                await self._collect(request, collector)
                return collector.reply(
                    self._prices,
                    lambda: sum(map(self.count, request.messages)) + _OVERHEAD_TOKENS,
                    lambda text: self.count(Message("assistant", text)) - self._message_tokens,
                )

    async def aclose(self) -> None:
        self._closed = True
        for scope in list(self._open):
            scope.cancel()
        if self._client is not None:
            with anyio.CancelScope(shield=True):
                await self._client.aclose()

    async def _collect(self, request: Request, collector: Collector) -> None:
        import httpx

        body = chat_body(self._model, request)
        async with self._stream("POST", f"{self._url}/chat/completions", body) as response:
            if response.status_code != 200:
                raise self._refusal(response, await _read(response))
            if "json" in response.headers.get("content-type", ""):  # a server that does not stream
                collector.take(await _read(response, self._prices is not None))
                return
            events = Events()
            try:
                async for chunk in response.aiter_bytes():
                    for payload in events.feed(chunk):
                        collector.take(payload)
                    if collector.finished:
                        return
                for payload in events.close():
                    collector.take(payload)
            except httpx.TransportError:
                if not collector.has_reason:  # else the text is complete, only its usage is missing
                    raise
