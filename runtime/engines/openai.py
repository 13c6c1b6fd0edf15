"""Models behind an OpenAI-compatible endpoint.

Owns one attempt at a chat completion over HTTP, streamed, and the limits that this process keeps. It never
retries (its caller records each attempt) and never shows its key. Invariant: a stream that ends without a
finish reason is a failure, whatever text came before.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING
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

_DEFAULT_CONTEXT_TOKENS = 8192

_MESSAGE_TOKENS = 8
_OVERHEAD_TOKENS = 8
_MARGIN = 1.25
_MAX_BODY_BYTES = 64 * 1024
_MAX_REPLY_BYTES = 8 * 2**20
_CONNECT_TIMEOUT_S = 10.0
_COUNT_TIMEOUT_S = 5.0
_LAST_BYTES_S = 0.2


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
    by). `context_tokens` None means what `connect` finds; where the server does not say, and before that, it is
    `assumed_context_tokens`.
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
        assumed_context_tokens: int = _DEFAULT_CONTEXT_TOKENS,
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
        self._shown = _checked_url(self._url)
        key = api_key or os.environ.get("OPENAI_API_KEY") or os.environ.get("TREERING_API_KEY") or ""
        self._key = _Key(_checked_key(key.strip()))
        self._asked_context = context_tokens
        self._context_tokens = context_tokens or assumed_context_tokens
        self._timeout_s = timeout_s
        self._idle_timeout_s = min(idle_timeout_s, timeout_s)
        self._max_concurrent = max_concurrent
        self._slots: anyio.Semaphore | None = None
        self._bucket: TokenBucket | None = None
        if requests_per_minute is not None:
            self._bucket = TokenBucket(requests_per_minute, max(1.0, requests_per_minute / 60.0), clock)
        self._prices = prices or Prices()
        self._overhead_tokens = _OVERHEAD_TOKENS
        self._now_s = now_s
        self._client: httpx.AsyncClient | None = None
        self._open: set[anyio.CancelScope] = set()
        self._closed = False
        self._exact: Callable[[str], int | None] | None = None
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
        return EngineInfo("openai", name, address, "remote", self._context_tokens, self._overhead_tokens)

    def count(self, message: Message) -> int:
        return self._count_text(message.text) + _MESSAGE_TOKENS

    async def connect(self) -> EngineInfo:
        """Ask the server how large the model's context is, where it says so (llama.cpp, vLLM), and use it.

        A size given to the engine is kept if it is smaller. Where the server shows its chat template
        (llama.cpp), what that adds to a prompt is counted too. Raises as `generate` does if the server cannot
        be reached or refuses the key.
        """
        with self._failures() as scope:
            scope.deadline = anyio.current_time() + self._idle_timeout_s
            for address in (f"{self._url.removesuffix('/v1')}/props", f"{self._url}/models"):
                async with self._connected().stream("GET", address) as response:
                    body = await _read(response, _MAX_BODY_BYTES)
                    if response.status_code in (401, 403) or response.status_code >= 500:
                        raise self._refusal(response, body)
                    found = context_size(_json(body), self._model) if response.status_code == 200 else None
                if found is not None:
                    self._context_tokens = min(found, self._asked_context or found)
                    break
            await self._measure_template()
        return self.info

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        """One attempt. See Engine; also raises EngineError once the engine is closed."""
        if self._slots is None:
            self._slots = anyio.Semaphore(self._max_concurrent)
        collector = Collector(request.stop, on_text)
        with self._failures() as scope:
            async with self._slots:
                await self._wait_for_rate()
                scope.deadline = anyio.current_time() + self._timeout_s
                await self._collect(request, collector)
        return collector.reply(self._prices, lambda: self._count_prompt(request), self._count_text)

    async def aclose(self) -> None:
        self._closed = True
        for scope in list(self._open):
            scope.cancel()
        if self._client is not None:
            await self._client.aclose()

    async def _collect(self, request: Request, collector: Collector) -> None:
        import httpx

        body = chat_body(self._model, request)
        async with self._connected().stream("POST", f"{self._url}/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise self._refusal(response, await _read(response, _MAX_BODY_BYTES))
            kind = response.headers.get("content-type", "")
            if "html" in kind:  # a web server, or a portal in between
                raise EngineError(
                    f"{self._shown} answered with a web page, not with a model's reply: check --base-url"
                )
            if "json" in kind:  # a server that does not stream
                collector.take(await _read(response, _MAX_REPLY_BYTES))
                return
            events = Events()
            chunks = response.aiter_bytes()
            try:
                async for chunk in chunks:
                    for payload in events.feed(chunk):
                        collector.take(payload)
                    if collector.finished:
                        with anyio.move_on_after(_LAST_BYTES_S):  # read to the end, the connection is used again
                            await anext(chunks, None)
                        return
                for payload in events.close():
                    collector.take(payload)
            except httpx.TransportError:
                if not collector.has_reason:  # else the text is complete, only its usage is missing
                    raise

    async def _measure_template(self) -> None:
        """What the template adds to a prompt: a default system prompt, say."""
        asked = {"messages": [{"role": "user", "content": "x"}]}
        address = f"{self._url.removesuffix('/v1')}/apply-template"
        async with self._connected().stream("POST", address, json=asked) as response:
            document = _json(await _read(response, _MAX_BODY_BYTES)) if response.status_code == 200 else None
        prompt = document.get("prompt") if isinstance(document, dict) else None
        if isinstance(prompt, str):
            self._overhead_tokens = max(_OVERHEAD_TOKENS, self._count_text(prompt) - _MESSAGE_TOKENS)

    def _connected(self) -> "httpx.AsyncClient":
        if self._client is None:
            import httpx

            # Small servers close idle connections at once, and a call on one that is closing fails: only where
            # a new one is expensive are they kept.
            kept = self._max_concurrent if self._url.startswith("https:") else 0
            self._client = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {self._key.text}"} if self._key.text else {},
                timeout=httpx.Timeout(self._idle_timeout_s, connect=min(_CONNECT_TIMEOUT_S, self._idle_timeout_s)),
                limits=httpx.Limits(max_connections=self._max_concurrent + 1, max_keepalive_connections=kept),
            )
        return self._client

    @contextmanager
    def _failures(self) -> Iterator[anyio.CancelScope]:
        """Make engine errors of what the network does, of a deadline that passes and of `aclose`."""
        import httpx

        if self._closed:
            raise EngineError(f"{self._shown}: this engine is closed")
        scope = anyio.CancelScope()
        self._open.add(scope)
        try:
            with scope:
                yield scope
        except httpx.RequestError as error:
            if self._closed:
                raise EngineError(f"{self._shown}: this engine was closed during the call") from None
            if isinstance(error, httpx.TimeoutException):
                raise self._timed_out(type(error).__name__) from None
            reason = " ".join((str(error) or type(error).__name__).split())
            raise EngineTransientError(f"{self._shown} could not be reached or broke off: {reason}") from None
        finally:
            self._open.discard(scope)
        if scope.cancelled_caught:
            if self._closed:
                raise EngineError(f"{self._shown}: this engine was closed during the call")
            raise self._timed_out("the whole call took too long")

    def _timed_out(self, reason: str) -> EngineTransientError:
        limits = f"{self._idle_timeout_s:g} s between bytes, {self._timeout_s:g} s in all"
        return EngineTransientError(f"{self._shown} did not answer in time ({reason}; limits {limits})")

    def _refusal(self, response: "httpx.Response", body: bytes) -> EngineError:
        return refusal(self._shown, response.status_code, response.headers, body, self._key.text, self._now_s())

    async def _wait_for_rate(self) -> None:
        if self._bucket is None:
            return
        waited = False
        try:
            await anyio.sleep(self._bucket.reserve_s())
            waited = True
        finally:
            if not waited:
                self._bucket.give_back()

    def _count_prompt(self, request: Request) -> int:
        return sum(map(self.count, request.messages)) + self._overhead_tokens

    def _count_text(self, text: str) -> int:
        exact = self._exact(text) if self._exact is not None else None
        return exact if exact is not None else ceil(_MARGIN * estimate_tokens(text))

    def _ask_count(self, text: str) -> int | None:
        """Tokens of `text` by the server, or None if it does not say."""
        import httpx

        headers = {"Authorization": f"Bearer {self._key.text}"} if self._key.text else {}
        address = f"{self._url.removesuffix('/v1')}/tokenize"
        try:
            answer = httpx.post(address, json={"content": text}, headers=headers, timeout=_COUNT_TIMEOUT_S)
        except httpx.RequestError:
            return None
        document = _json(answer.content) if answer.status_code == 200 else None
        tokens = document.get("tokens") if isinstance(document, dict) else None
        return len(tokens) if isinstance(tokens, list) else None


def _checked_url(url: str) -> str:
    """The address without user name and password, to be shown. Raises UsageError if it is none."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("expected the address of a server, such as http://127.0.0.1:8080/v1, found none in base_url")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _checked_key(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise UsageError("the API key holds characters that no key has: set OPENAI_API_KEY or TREERING_API_KEY again")
    return key


def _folder_counter(path: Path) -> Callable[[str], int]:
    """Count by a Hugging Face tokenizer, a folder or its file. Raises UsageError if it cannot be read."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UsageError(f"{file} is not a tokenizer: {error}") from None
    tokenizer.no_truncation()  # such files often come with both switched on
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


async def _read(response: "httpx.Response", limit_bytes: int) -> bytes:
    """The body, or as much of it as is wanted."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit_bytes:
            break
    return bytes(body[:limit_bytes])


def _json(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
