"""Choosing the next token: greedy, or sampled with a key that belongs to the sequence.

Owns the draw. mlx-lm's samplers draw from a global state, so that what one sequence gets depends on who else
is in the batch. Here the invariant is: the n-th draw depends on the request's seed, n and the logits only.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

__all__ = ["greedy", "make_sampler"]

Sampler = Callable[[Any], Any]
"""From log-probabilities, shape (batch, vocabulary), to token ids, shape (batch,)."""


def greedy(logprobs: Any) -> Any:
    """The likeliest token of each row. One function for all, so that mlx-lm calls it once per batch."""
    return mx.argmax(logprobs, axis=-1)


def make_sampler(temperature: float, top_p: float, seed: int) -> Sampler:
    """A sampler for one sequence; `temperature` 0 is greedy and ignores the rest."""
    if temperature <= 0:
        return greedy
    key = mx.random.key(seed & (2**64 - 1))

    def draw(logprobs: Any) -> Any:
        nonlocal key
        key, now = mx.random.split(key)
        scaled = logprobs.astype(mx.float32) / temperature
        if top_p < 1:
            return _draw_nucleus(scaled, top_p, now)
        return mx.random.categorical(scaled, key=now)

    return draw


def _draw_nucleus(logits: Any, top_p: float, key: Any) -> Any:
    """Draw from the smallest set of likeliest tokens whose probability reaches `top_p`.

    Nucleus sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    """
    order = mx.argsort(-logits, axis=-1)
    ranked = mx.take_along_axis(logits, order, axis=-1)
    probabilities = mx.softmax(ranked, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    # The first is kept whatever top_p is, as nothing comes before it (rounding aside).
    kept = mx.where((before < top_p) | (mx.arange(logits.shape[-1]) == 0), ranked, -mx.inf)
    rank = mx.random.categorical(kept, key=key)
    return mx.take_along_axis(order, rank[:, None], axis=-1)[:, 0]
