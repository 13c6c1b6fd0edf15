"""What is said to a model and what it answers, as values.

Owns the messages that agent code makes, the answer that it gets, and a call on its way between them. It performs
nothing.
"""

from collections.abc import Sequence

import msgspec

from treering.events.catalogue import Entry, ModelCalled, Part, Ref
from treering.memory.recall import Hit
from treering.runtime.engine import Message
from treering.runtime.journal import OpRecord

__all__ = ["Answer", "Call", "Prompt", "Say", "called_of", "ref_of"]


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
    since: int = 0
    unscored: str = ""


def called_of(call: Call, why: str, seed: int = 0) -> ModelCalled:
    """A call as the log keeps it. `why` is the reason of an attempt after the first."""
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
        call.since,
    )


def ref_of(part: str | Ref | Hit) -> Part:
    """A part as the log keeps it: by reference where it can."""
    return part.ref if isinstance(part, Hit) else part
