"""What the runtime asks of a model: the engine protocol.

Owns the request, the reply and the errors of a model call. An engine never knows the log, the task or the
run: the same request may be sent to any engine, and what comes back is recorded by its caller.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import msgspec

from treering.events.errors import TreeringError

__all__ = [
    "ContextOverflow",
    "Engine",
    "EngineError",
    "EngineInfo",
    "EngineTransientError",
    "Message",
    "Reply",
    "Request",
    "Score",
    "ScoringEngine",
    "StreamText",
]

StreamText = Callable[[str], None]
"""Called on the event loop with each new piece of generated text. For display only."""


class Message(msgspec.Struct, frozen=True):
    """One chat message: `role` is `system`, `user`, `assistant` or `tool`."""

    role: str
    text: str


class Request(msgspec.Struct, frozen=True):
    """One model call. `temperature` 0 is greedy; `seed` makes a sampled reply repeatable at batch 1."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


class Reply(msgspec.Struct, frozen=True):
    """What a model answered.

    `finish` is `stop` (the model ended or a stop sequence was met; the sequence is not in `text`) or
    `length` (max_tokens reached). Token counts are the engine's own; `cached_tokens` is the part of the
    prompt that was not computed again. `cost_micros` is money in millionths of the price's currency.
    `logprob` is the mean log-probability of the generated tokens, where the engine knows it.
    """

    text: str
    finish: str
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int = 0
    cost_micros: int = 0
    logprob: float | None = None


class Score(msgspec.Struct, frozen=True):
    """How likely a model finds a continuation: the sum of its tokens' log-probabilities, and their count."""

    logprob: float
    tokens: int
    prompt_tokens: int
    cached_tokens: int = 0


class EngineInfo(msgspec.Struct, frozen=True):
    """What identifies an engine's answers, and how much it can read.

    `weights` and `template` are digests of the model's weights and chat template: two engines with equal
    digests are the same model. `context_tokens` is the longest prompt plus reply. `overhead_tokens` is what
    the template adds to a prompt beyond its messages (a default system prompt, the opening of the reply).
    """

    engine: str
    model: str
    weights: str
    template: str
    context_tokens: int
    overhead_tokens: int = 0


@runtime_checkable
class Engine(Protocol):
    """A model that answers. All methods are called on the event loop; none may block it for long."""

    @property
    def info(self) -> EngineInfo: ...

    def count(self, message: Message) -> int:
        """Tokens that `message` takes in a prompt, its share of the template included."""
        ...

    async def generate(self, request: Request, on_text: StreamText | None = None) -> Reply:
        """Answer `request`. Cancelling the caller frees the call's place at once.

        Raises EngineTransientError (worth another attempt), ContextOverflow, or EngineError (not worth one).
        """
        ...

    async def aclose(self) -> None:
        """End what the engine runs; calls in progress fail with EngineError."""
        ...


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that can also tell how likely it finds a given text."""

    async def score(self, request: Request, continuation: str) -> Score:
        """Log-probability of `continuation` as the reply to `request` (whose sampling fields are ignored)."""
        ...


class EngineError(TreeringError):
    """A model call failed and another attempt would fail the same way."""


class ContextOverflow(EngineError):
    """A prompt and its reply do not fit the model's context."""


class EngineTransientError(EngineError):
    """A model call failed in a way that may pass: a dropped connection, a busy server, a broken stream.

    `retry_after_s` is how long the server asked to wait, if it did.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
