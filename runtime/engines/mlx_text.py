"""Text in and text out: prompts as tokens, and replies cut at their stop strings.

Owns the rendering of messages by the model's chat template, its token arithmetic, and the search for stop
strings in a stream. Never touches the model or its thread. The invariant: the counts of a prompt's messages
plus `overhead_tokens` are never less than the length of the rendered prompt.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from treering.runtime.engine import EngineError, Message

__all__ = ["PromptCodec", "StopText"]

_COUNTS_KEPT = 8192
_PROBE = "x"


class PromptCodec:
    """A tokenizer and its chat template, seen as a map from messages to token ids.

    How a message is counted: its tokens when it follows a system message, which is what it adds to any
    prompt if the template treats messages alike. What the template adds by itself (a first token, a default
    system prompt, the opening of the reply) is `overhead_tokens`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if not getattr(tokenizer, "has_chat_template", True):
            raise EngineError("the model has no chat template: it is not a chat model, choose one that is")
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._head = self._find_head()
        self.overhead_tokens = self._measure_overhead()
        self.digest = self._digest()
        self.end_tokens: frozenset[int] = frozenset(tokenizer.eos_token_ids)
        self.special_tokens: frozenset[int] = frozenset(tokenizer.all_special_ids)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's tokens, up to and including the opening of the reply."""
        return self.encode(self._text(messages, opening=True))

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` alone, nothing added."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def count(self, message: Message) -> int:
        """What `message` adds to a prompt, in tokens. Remembered by digest for the last few thousand."""
        key = hashlib.blake2b(f"{message.role}\0{message.text}".encode(), digest_size=16).digest()
        known = self._counts.get(key)
        if known is not None:
            self._counts.move_to_end(key)
            return known
        counted = self._measure(message)
        self._counts[key] = counted
        if len(self._counts) > _COUNTS_KEPT:
            self._counts.popitem(last=False)
        return counted

    def detokenizer(self) -> Any:
        """A fresh incremental detokenizer: whole characters only."""
        return self._tokenizer.detokenizer

    def _text(self, messages: Sequence[Message], opening: bool) -> str:
        turns = [{"role": message.role, "content": message.text} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opening)
        except Exception as error:  # a template raises whatever its author chose
            roles = ", ".join(message.role for message in messages)
            raise EngineError(f"the model's chat template refuses these roles ({roles}): {error}") from error
        return text

    def _find_head(self) -> tuple[Message, ...]:
        """The shortest opening after which the template takes any message."""
        system = (Message("system", _PROBE),)
        user = Message("user", _PROBE)
        try:
            self._text((*system, user), opening=False)
        except EngineError:
            return ()
        return system

    def _measure(self, message: Message) -> int:
        # A system message is measured as one that opens the prompt, all others as one that follows it.
        head = () if message.role == "system" else self._head
        try:
            whole = self._text((*head, message), opening=False)
            before = self._text(head, opening=False) if head else ""
        except EngineError:
            return self._measure_apart(message)
        if not whole.startswith(before):
            return self._measure_apart(message)
        return len(self.encode(whole[len(before) :]))

    def _measure_apart(self, message: Message) -> int:
        """An upper bound for a template that does not take the message by itself (a role out of turn)."""
        wrapped = len(self.encode(self._text((Message("user", _PROBE),), opening=True)))
        return len(self.encode(message.text)) + wrapped + len(self.encode(message.role))

    def _measure_overhead(self) -> int:
        user = Message("user", _PROBE)
        alone = len(self.render((user,))) - self._measure(user)
        if not self._head:
            return max(alone, 0)
        led = len(self.render((*self._head, user))) - sum(self._measure(m) for m in (*self._head, user))
        return max(alone, led, 0)

    def _digest(self) -> str:
        template = getattr(self._tokenizer, "chat_template", None) or ""
        kind = type(getattr(self._tokenizer, "_tokenizer", self._tokenizer)).__name__
        return hashlib.blake2b(f"{kind}\0{template}".encode(), digest_size=16).hexdigest()


class StopText:
    """A reply that grows piece by piece and ends before the first of its stop strings.

    What may be the beginning of a stop string is held back until more text decides it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._shown: list[str] = []
        self._held = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """All that was let through."""
        return "".join(self._shown)

    def feed(self, piece: str) -> str:
        """Add `piece`; what may be shown now. After a stop string was met: nothing."""
        if self.stopped or not piece:
            return ""
        pending = self._held + piece
        found = [at for at in (pending.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return self._show(pending[: min(found)])
        keep = self._undecided(pending)
        self._held = pending[len(pending) - keep :]
        return self._show(pending[: len(pending) - keep])

    def close(self) -> str:
        """No more comes: what was held back is text after all."""
        held, self._held = self._held, ""
        return self._show(held)

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text

    def _undecided(self, pending: str) -> int:
        """Length of the longest end of `pending` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(pending)), longest, -1):
                if pending.endswith(stop[:length]):
                    longest = length
                    break
        return longest
