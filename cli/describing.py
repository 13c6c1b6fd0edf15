"""Describing: what an event says, in a few words.

Owns those words, for people; programs read `events --json`. It never looks at anything but the event.
"""

from typing import assert_never

import msgspec

from treering.cli.printing import one_line, plural, short_name
from treering.events.catalogue import (
    Compacted,
    Event,
    Evicted,
    Failure,
    InputAdded,
    MemoryRef,
    MessageReceived,
    ModelCalled,
    ModelReplied,
    Recalled,
    Refused,
    Remembered,
    Revived,
    RunConfig,
    RunForked,
    RunResumed,
    RunStarted,
    Sampled,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskJoined,
    TaskSpawned,
    ToolCalled,
    ToolReturned,
    Used,
)

__all__ = ["describe"]

_WIDTH = 60


def describe(event: Event | None) -> str:
    """What an event says."""
    match event:
        case None:
            return "(its body was destroyed)"
        case RunStarted() | RunResumed() | RunForked() | MessageReceived() | InputAdded():
            return _of_run(event)
        case TaskSpawned() | TaskJoined() | TaskFinished() | TaskFailed() | TaskCancelled() | Refused():
            return _of_task(event)
        case ModelCalled() | ModelReplied() | ToolCalled() | ToolReturned() | Sampled():
            return _of_call(event)
        case Compacted() | Remembered() | Recalled() | Used() | Evicted() | Revived():
            return _of_memory(event)
        case _:
            assert_never(event)


def _of_run(event: RunStarted | RunResumed | RunForked | MessageReceived | InputAdded) -> str:
    match event:
        case RunStarted():
            return _config(event.config)
        case RunResumed():
            return f"epoch {event.epoch}, {_config(event.config)}"
        case RunForked():
            edits = f", edits of {', '.join(str(edit.seq) for edit in event.edits)}" if event.edits else ""
            reuse = ", with reuse" if event.reuse else ""
            config = f", {_config(event.config)}" if event.config else ""
            return f"of {event.parent} at {event.cut}{edits}{reuse}{config}"
        case MessageReceived():
            return f"{event.kind} {_text(event.text)}"
        case InputAdded():
            return f"{one_line(event.name)}, {event.characters:,} characters"


def _of_task(event: TaskSpawned | TaskJoined | TaskFinished | TaskFailed | TaskCancelled | Refused) -> str:
    match event:
        case TaskSpawned():
            return f"{event.path} {short_name(event.agent)} {_text(event.goal)}"
        case TaskJoined():
            return event.child
        case TaskFinished():
            return _json(event.result)
        case TaskFailed():
            return _failure(event.failure)
        case TaskCancelled():
            return one_line(event.reason)
        case Refused():
            return f"{event.what} allows {event.limit:g}, {event.needed:g} would be needed"


def _of_call(event: ModelCalled | ModelReplied | ToolCalled | ToolReturned | Sampled) -> str:
    match event:
        case ModelCalled():
            wanted = f"at most {event.max_tokens} more" if event.continuation is None else "to be scored"
            again = f", again: {one_line(event.why, _WIDTH)}" if event.why else ""
            cut = [
                f", cut {entry.spill.tokens} to {entry.tokens} tokens"
                for entry in event.entries
                if entry.spill is not None
            ]
            return f"{event.prompt_tokens} tokens, {wanted}{''.join(cut)}{again}"
        case ModelReplied():
            origin = f" edited {event.edited}" if event.edited else f" reused {event.reused}" if event.reused else ""
            if event.failure is not None:
                return _failure(event.failure) + origin
            scored = event.logprob is not None and not event.text
            return (f"log-probability {event.logprob:.2f} a token" if scored else _text(event.text)) + origin
        case ToolCalled():
            return f"{event.tool} {_json(event.arguments)}"
        case ToolReturned():
            return _json(event.result) if event.failure is None else _failure(event.failure)
        case Sampled():
            return f"{event.what} {_json(event.value)}"


def _of_memory(event: Compacted | Remembered | Recalled | Used | Evicted | Revived) -> str:
    match event:
        case Compacted():
            return (
                f"{event.tokens_left} tokens to {event.tokens} ({event.method}), "
                f"{event.loss.score:.0%} of its terms lost: {_text(event.summary)}"
            )
        case Remembered():
            return f"{event.id} {_text(event.text)}"
        case Recalled():
            return f"{plural(len(event.hits), 'hit')} for {_text(event.query)}"
        case Used():
            return ", ".join(ref.id for ref in event.refs if isinstance(ref, MemoryRef)) or "no memory"
        case Evicted():
            return f"{event.id}, {event.cause.reason}"
        case Revived():
            return f"{event.id}, {event.cause.reason}"


def _config(config: RunConfig) -> str:
    model = f", model {config.model}" if config.model else ""
    return f"agent {config.agent}{model}, window {config.window_tokens}, seed {config.seed}"


def _failure(failure: Failure) -> str:
    where = f" ({failure.line})" if failure.line else ""
    return f"{failure.kind}: {one_line(failure.message)}{where}"


def _text(text: str) -> str:
    return f'"{one_line(text, _WIDTH)}"'


def _json(raw: msgspec.Raw) -> str:
    value = msgspec.json.decode(raw)
    if isinstance(value, dict) and isinstance(value.get("answer"), str):
        return _text(value["answer"])
    return _text(value) if isinstance(value, str) else one_line(bytes(raw).decode(), _WIDTH)
