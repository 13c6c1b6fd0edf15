"""Tools for testing agents: an engine that answers from a script.

Owns `ScriptedEngine`. It needs no model and no network, counts tokens as words, and answers the same request
the same way, so that runs on it are equal to the last event.
"""

from collections.abc import Callable
from hashlib import blake2b

import anyio

from treering.runtime.engine import EngineInfo, Message, Reply, Request, Score, StreamText

__all__ = ["ScriptedEngine", "echo"]

Script = Callable[[Request], str | Exception]


def echo(request: Request) -> str:
    """A reply that depends on the whole prompt, and on nothing else: a few words made from its digest."""
    mixed = blake2b(digest_size=4)
    for message in request.messages:
        mixed.update(f"{message.role}:{message.text}\n".encode())
    mixed.update(str(request.seed if request.temperature else 0).encode())
    return f"Reply {mixed.hexdigest()} to {request.messages[-1].text[:40]}."


class ScriptedEngine:
    """An engine whose replies are `script(request)`; an exception that it returns is raised.

    `delay_s` is how long each call takes on the event loop's clock. `requests` is what was asked so far.
    """

    def __init__(
        self, script: Script = echo, delay_s: float = 0.0, context_tokens: int = 100_000, model: str = "scripted"
    ) -> None:
        self._script = script
        self._delay_s = delay_s
        self._info = EngineInfo("scripted", model, model, "words", context_tokens, 2)
        self.requests: list[Request] = []

    @property
    def info(self) -> EngineInfo:
        return self._info

    def count(self, message: Message) -> int:
        return len(message.text.split()) + 1

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        self.requests.append(request)
        await anyio.sleep(self._delay_s)
        answer = self._script(request)
        if isinstance(answer, Exception):
            raise answer
        words = answer.split(" ")
        text = " ".join(words[: request.max_tokens])
        if on_text is not None:
            on_text(text)
        prompt = sum(self.count(message) for message in request.messages) + 2
        return Reply(text, "stop" if len(words) <= request.max_tokens else "length", prompt, len(text.split()))

    async def score(self, request: Request, continuation: str) -> Score:
        """Minus the number of words that the prompt does not hold."""
        await anyio.sleep(self._delay_s)
        prompt = {word for message in request.messages for word in message.text.split()}
        words = continuation.split()
        missing = sum(word not in prompt for word in words)
        return Score(-float(missing), len(words), len(prompt))

    async def aclose(self) -> None:
        """Nothing runs."""
