"""Models behind an OpenAI-compatible endpoint.

Owns one attempt at a chat completion over HTTP, streamed, and what its failures mean. It never retries (its
caller records each attempt) and never shows its key. Invariant: a stream that ends without a finish reason is
a failure, whatever text came before.
"""

import email.utils
import os
import time
from hashlib import blake2b
from typing import Any

import msgspec

from treering.runtime.engine import (
    ContextOverflow,
    EngineError,
    EngineInfo,
    EngineTransientError,
    Message,
    Reply,
    Request,
    StreamText,
)

__all__ = ["OpenAIEngine"]

_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MESSAGE_TOKENS = 6
_OVERHEAD_TOKENS = 8


class OpenAIEngine:
    """An Engine at `base_url` (the address that ends in /v1). The key comes from OPENAI_API_KEY or TREERING_API_KEY.

    No tokenizer is known for a remote model: `count` is an estimate from above for English (a token per three
    bytes). `timeout_s` is for each read of the stream.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key: str | None = None,
        context_tokens: int = 8192,
        timeout_s: float = 120.0,
        max_concurrent: int = 16,
    ) -> None:
        import httpx

        key = api_key or os.environ.get("OPENAI_API_KEY") or os.environ.get("TREERING_API_KEY") or ""
        self._client = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            limits=httpx.Limits(max_connections=max_concurrent),
        )
        self._model = model
        self._base_url = base_url
        address = blake2b(f"{base_url} {model}".encode(), digest_size=16).hexdigest()
        self._info = EngineInfo("openai", f"openai:{model}", address, "remote", context_tokens, _OVERHEAD_TOKENS)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def count(self, message: Message) -> int:
        return -(-len(message.text.encode("utf-8", "replace")) // 3) + _MESSAGE_TOKENS

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        import httpx

        asked = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.text} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.stop:
            asked["stop"] = list(request.stop)
        try:
            async with self._client.stream("POST", "chat/completions", json=asked) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, response.headers, (await response.aread())[:2000])
                return await self._collect(response.aiter_lines(), on_text)
        except httpx.TimeoutException as error:
            raise EngineTransientError(f"{self._base_url} did not answer in time ({type(error).__name__})") from error
        except httpx.TransportError as error:
            raise EngineTransientError(f"{self._base_url} could not be reached: {error}") from error

    async def _collect(self, lines: Any, on_text: StreamText | None) -> Reply:
        pieces: list[str] = []
        finish = ""
        usage: dict[str, Any] = {}
        async for line in lines:
            if not line.startswith("data:") or line.removeprefix("data:").strip() == "[DONE]":
                continue
            try:
                event = msgspec.json.decode(line.removeprefix("data:").strip())
            except msgspec.DecodeError as error:
                raise EngineTransientError(f"{self._base_url} sent a stream that is not JSON ({error})") from error
            if event.get("error"):
                raise EngineTransientError(f"{self._base_url} broke the stream off: {str(event['error'])[:300]}")
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                text = (choice.get("delta") or {}).get("content") or ""
                if text:
                    pieces.append(text)
                    if on_text is not None:
                        on_text(text)
                finish = choice.get("finish_reason") or finish
        if not finish:
            raise EngineTransientError(f"{self._base_url} ended the stream without a finish reason")
        text = "".join(pieces)
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        generated = usage.get("completion_tokens") or self.count(Message("assistant", text))
        return Reply(text, finish, usage.get("prompt_tokens") or 0, generated, cached)

    def _refusal(self, status: int, headers: Any, body: bytes) -> EngineError:
        said = body.decode("utf-8", "replace").strip().replace("\n", " ")[:300]
        if status in _TRANSIENT:
            return EngineTransientError(f"{self._base_url} answered {status}: {said}", _retry_after(headers))
        if status in (401, 403):
            return EngineError(f"{self._base_url} answered {status}: set OPENAI_API_KEY to a key that it accepts")
        if status == 404:
            return EngineError(
                f"{self._base_url} answered 404: it knows no model {self._model!r}, or is no /v1 address"
            )
        if status == 400 and ("context" in said or "exceed" in said):
            return ContextOverflow(f"the prompt does not fit {self._model}: {said}")
        return EngineError(f"{self._base_url} answered {status}: {said}")

    async def aclose(self) -> None:
        await self._client.aclose()


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asked to wait: a number, or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
