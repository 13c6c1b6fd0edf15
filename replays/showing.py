"""Show: what a run was at any of its events, and what a model call really saw.

Owns the state at an event and the exact prompt of a call. It reads, and asks no model.
"""

import msgspec

from treering.events.catalogue import ModelCalled, ModelReplied, Ref
from treering.events.codec import decode
from treering.events.errors import UsageError
from treering.events.log import LogStore, record_at
from treering.memory.windows import render
from treering.runtime.engine import Message
from treering.runtime.runner import open_log
from treering.runtime.state import RunState
from treering.runtime.texts import Texts

__all__ = ["Prompt", "messages_of", "prompt_of", "state_at"]


class Prompt(msgspec.Struct, frozen=True):
    """The messages of one model call and, if there is one, the reply. `seq` is that of the call."""

    seq: int
    task: str
    op: int
    tokens: int
    max_tokens: int
    messages: tuple[Message, ...]
    continuation: str | None = None
    reply: str | None = None
    reply_seq: int = 0


def state_at(store: LogStore, run: str, at: int | None = None) -> RunState:
    """The folded state after event `at`, or after the last. Raises UsageError for an event that is not there."""
    if at is not None:
        _check_seq(store, run, at)
    return open_log(store, run, until=at)[0]


def prompt_of(store: LogStore, run: str, seq: int) -> Prompt:
    """The prompt of the model call that event `seq` is the call or the reply of."""
    _check_seq(store, run, seq)
    header = decode(record_at(store, run, seq)).header
    if header.kind not in ("ModelCalled", "ModelReplied"):
        raise UsageError(f"expected event {seq} to be a model call (ModelCalled, ModelReplied), found {header.kind}")
    called: ModelCalled | None = None
    reply: ModelReplied | None = None
    call_seq = reply_seq = 0
    for record in store.read(run, task=header.task, kinds=("ModelCalled", "ModelReplied")):
        stored = decode(record)
        if stored.header.op != header.op:
            continue
        if isinstance(stored.event, ModelCalled) and (
            stored.seq <= seq or (header.kind == "ModelCalled" and not called)
        ):
            called, call_seq = stored.event, stored.seq
        elif isinstance(stored.event, ModelReplied):
            reply, reply_seq = stored.event, stored.seq
    if called is None:
        raise UsageError(f"expected the call that event {seq} answers, found none: its body was destroyed")
    state = state_at(store, run, call_seq - 1)
    return Prompt(
        call_seq,
        header.task,
        header.op,
        called.prompt_tokens,
        called.max_tokens,
        messages_of(state, Texts(store, run), header.task, called),
        called.continuation,
        None if reply is None else reply.text or (reply.failure.message if reply.failure else ""),
        reply_seq,
    )


def messages_of(state: RunState, texts: Texts, task: str, called: ModelCalled) -> tuple[Message, ...]:
    """What a call shows a model, with `state` as it is just before the call: the task's window, then its entries."""

    def text_of(ref: Ref) -> str:
        return texts.of(ref, state.memory)

    window = state.tasks[task].window
    seen = window.entries if window is not None else []
    entries = [item.entry for item in seen if not called.since or item.op < called.since]
    return tuple(Message(entry.role, render(entry.parts, text_of)) for entry in (*entries, *called.entries))


def _check_seq(store: LogStore, run: str, seq: int) -> None:
    last, _ = store.head(run)
    if not 1 <= seq <= last:
        raise UsageError(f"expected an event from 1 to {last}, found {seq}")
