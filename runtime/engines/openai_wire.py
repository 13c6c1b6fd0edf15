"""What goes over the wire to an OpenAI-compatible endpoint, and what comes back: pure functions, no network.

Owns the body of a chat completion, server-sent events, the assembly of a reply, and what each failure means.
Invariant: a reply is complete only with a finish reason; no text of an error holds the key or a second line.
"""

import email.utils
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from treering.runtime.engine import (
    ContextOverflow,
    EngineError,
    EngineTransientError,
    Reply,
    Request,
    StreamText,
)

__all__ = ["Collector", "Events", "Prices", "Usage", "chat_body", "context_size", "refusal", "retry_after_s"]

_MAX_EVENT_BYTES = 8 * 2**20
_MAX_SAID_CHARS = 200
_TRANSIENT = frozenset({408, 409, 425, 429})
_SEED_BITS = 31  # llama.cpp reads 32 bits and takes all ones for "choose one"
_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (?:size|length|window)"
    r"|too many (?:input )?tokens|prompt is too long|longer than the maximum",
    re.IGNORECASE,
)
_NO_MONEY = re.compile(r"insufficient_quota|billing", re.IGNORECASE)


class Prices(msgspec.Struct, frozen=True):
    """Money per million tokens, in millionths of a currency's unit."""

    prompt_micros: int = 0
    cached_micros: int = 0
    generated_micros: int = 0

    def cost_micros(self, prompt_tokens: int, cached_tokens: int, generated_tokens: int) -> int:
        """What a call costs, rounded up."""
        fresh = max(0, prompt_tokens - cached_tokens)
        total = fresh * self.prompt_micros + cached_tokens * self.cached_micros
        return -(-(total + generated_tokens * self.generated_micros) // 1_000_000)


class Usage(NamedTuple):
    """Tokens of a call as the server counted them; None where it did not say."""

    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    cached_tokens: int = 0


def chat_body(model: str, request: Request) -> dict[str, Any]:
    """The JSON body of a streamed chat completion."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.text} for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed % (1 << _SEED_BITS),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.stop:
        body["stop"] = list(request.stop)
    return body


class Events:
    """Server-sent events (WHATWG HTML 9.2) out of bytes that were split anywhere."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads of the events that `chunk` completes. Raises EngineTransientError if one is too large."""
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        done: list[bytes] = []
        for line in lines:
            self._take(line.removesuffix(b"\r"), done)
        if len(self._pending) + self._size > _MAX_EVENT_BYTES:
            raise EngineTransientError(f"the server sent an event of more than {_MAX_EVENT_BYTES:,} bytes")
        return done

    def close(self) -> list[bytes]:
        """What is left at the end of the stream, if a last blank line is missing."""
        done: list[bytes] = []
        self._take(self._pending.removesuffix(b"\r"), done)
        self._take(b"", done)
        self._pending = b""
        return done

    def _take(self, line: bytes, done: list[bytes]) -> None:
        if not line:
            if self._data:
                done.append(b"\n".join(self._data))
            self._data, self._size = [], 0
            return
        field, _, value = line.partition(b":")
        if field in (b"data", b"error"):  # older llama.cpp servers send errors in a field of that name
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)


class Collector:
    """A reply that is coming in. `finished` once the server sent its end marker."""

    def __init__(self, stop: tuple[str, ...], on_text: StreamText | None) -> None:
        self._stop = stop
        self._on_text = on_text
        self._pieces: list[str] = []
        self._finish = ""
        self._usage = Usage()
        self.finished = False

    @property
    def has_reason(self) -> bool:
        """Whether the server said why it ended: then the text is complete."""
        return bool(self._finish)

    def take(self, payload: bytes) -> None:
        """Take in one event, or a whole completion that was not streamed."""
        if payload.strip() == b"[DONE]":
            self.finished = True
            return
        try:
            event = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineTransientError("the server sent broken JSON") from None
        if not isinstance(event, dict):
            raise EngineTransientError("the server sent an event that is not an object")
        if error := event.get("error") or (event if "code" in event and "message" in event else None):
            raise _stream_error(error)
        self._usage = _usage(event) or self._usage
        for choice in _list(event, "choices")[:1]:
            content = (_dict(choice, "delta") or _dict(choice, "message")).get("content")
            if isinstance(content, str) and content:
                self._pieces.append(content)
                if self._on_text is not None:
                    self._on_text(content)
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            self._finish = reason if isinstance(reason, str) and reason else self._finish

    def reply(self, prices: Prices, count_prompt: Callable[[], int], count_text: Callable[[str], int]) -> Reply:
        """The reply. Raises EngineTransientError without a finish reason, EngineError if it was withheld."""
        if not self._finish:
            raise EngineTransientError("the stream ended without a finish reason")
        if self._finish == "content_filter":
            raise EngineError("the server withheld the reply (finish reason content_filter): change the prompt")
        text = "".join(self._pieces)
        ends = [at for sequence in self._stop if sequence and (at := text.find(sequence)) >= 0]
        prompt_tokens = self._usage.prompt_tokens
        generated_tokens = self._usage.generated_tokens
        if prompt_tokens is None:
            prompt_tokens = count_prompt()
        if generated_tokens is None:
            generated_tokens = count_text(text)
        return Reply(
            text[: min(ends)] if ends else text,
            "length" if self._finish in ("length", "max_tokens") and not ends else "stop",
            prompt_tokens,
            generated_tokens,
            min(self._usage.cached_tokens, prompt_tokens),
            prices.cost_micros(prompt_tokens, min(self._usage.cached_tokens, prompt_tokens), generated_tokens),
        )


def refusal(server: str, status: int, headers: Mapping[str, str], body: bytes, key: str, now_s: float) -> EngineError:
    """What an answer other than 200 means: EngineTransientError, ContextOverflow or EngineError."""
    said = _said_by(body, key)
    if status in (400, 413, 422, 500) and _OVERFLOW.search(body.decode("utf-8", "replace")):
        return ContextOverflow(f"{server}: the prompt and its reply do not fit the model: {said}")
    if status == 429 and _NO_MONEY.search(body.decode("utf-8", "replace")):
        return EngineError(f"{server} answered 429 and will go on doing so: {said}")
    if status in _TRANSIENT or status >= 500:
        return EngineTransientError(f"{server} answered {status}: {said}", retry_after_s(headers, now_s))
    if status in (401, 403):
        known = "refused the key" if key else "wants a key"
        return EngineError(f"{server} answered {status}, it {known}: set OPENAI_API_KEY or TREERING_API_KEY")
    if status == 404:
        return EngineError(f"{server} answered 404: check the model's name and that the address ends in /v1; {said}")
    if 300 <= status < 400:
        return EngineError(f"{server} answered {status}: the address has moved, give the one it moved to")
    return EngineError(f"{server} answered {status}: {said}")


def _said_by(body: bytes, key: str) -> str:
    """A server's own words in one short line, without the key if it repeats it."""
    text = body.decode("utf-8", "replace")
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = None
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else text
    if key:
        text = text.replace(key, "***")
    text = " ".join(text.split())
    return text[:_MAX_SAID_CHARS] + ("…" if len(text) > _MAX_SAID_CHARS else "") if text else "(it gave no reason)"


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds that a server asks to wait: `Retry-After` as a number or a date (RFC 9110, 10.2.3)."""
    asked: float | None = None
    if (milliseconds := headers.get("retry-after-ms")) is not None:
        asked = _number(milliseconds, 1000.0)
    value = headers.get("retry-after")
    if asked is None and value is not None:
        asked = _number(value, 1.0)
        if asked is None:
            try:
                asked = email.utils.parsedate_to_datetime(value).timestamp() - now_s
            except (TypeError, ValueError, OverflowError):
                return None
    return None if asked is None else max(0.0, asked)


def context_size(document: object, model: str) -> int | None:
    """The context that llama.cpp's `/props` or a `/v1/models` names for `model`, in tokens."""
    if not isinstance(document, dict):
        return None
    found = _positive(_dict(document, "default_generation_settings").get("n_ctx"))
    models = _list(document, "data")
    for entry in models:
        if isinstance(entry, dict) and (entry.get("id") == model or len(models) == 1):
            meta = _dict(entry, "meta")
            for value in (
                meta.get("n_ctx"),
                entry.get("max_model_len"),
                entry.get("context_length"),
                meta.get("n_ctx_train"),
            ):
                found = found or _positive(value)
    return found


def _stream_error(error: object) -> EngineError:
    """An error inside a stream: by its code where it has one, else worth another attempt."""
    said = _said_by(msgspec.json.encode({"error": error}), "")
    code = error.get("code") if isinstance(error, dict) else None
    if _OVERFLOW.search(said) or _OVERFLOW.search(str(error)):
        return ContextOverflow(f"the prompt and its reply do not fit the model: {said}")
    if isinstance(code, int) and 400 <= code < 500 and code not in _TRANSIENT:
        return EngineError(f"the server broke off the stream with {code}: {said}")
    return EngineTransientError(f"the server broke off the stream: {said}")


def _usage(event: dict[str, Any]) -> Usage | None:
    usage = _dict(event, "usage")
    if not usage:
        return None
    cached = _dict(usage, "prompt_tokens_details").get("cached_tokens") or usage.get("prompt_cache_hit_tokens")
    return Usage(
        _positive(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _positive(cached) or 0
    )


def _number(value: str, per_second: float) -> float | None:
    try:
        number = float(value) / per_second
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _positive(value: object) -> int | None:
    return _count(value) or None


def _dict(parent: object, name: str) -> dict[str, Any]:
    value = parent.get(name) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}


def _list(parent: dict[str, Any], name: str) -> list[Any]:
    value = parent.get(name)
    return value if isinstance(value, list) else []
