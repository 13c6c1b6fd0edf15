"""Request digests: what an outcome may depend on, and nothing else.

Owns the digest of every kind of request. Covered: weights, template, messages by content, sampling, agent,
goal, inputs, explicit limits. Never: run id, seq, path, clock, remaining budget, cached tokens, window size,
policy. Invariant: equal digests may share an outcome.
"""

from hashlib import blake2b
from typing import Any

from treering.events.catalogue import Budget
from treering.events.codec import to_json

__all__ = ["call_seed", "generate_digest", "plain_digest", "spawn_digest"]


def plain_digest(what: str, *values: Any) -> str:
    """The digest of a request made of JSON values."""
    return blake2b(to_json([what, *values]), digest_size=12).hexdigest()


def generate_digest(
    weights: str,
    template: str,
    messages: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    stop: tuple[str, ...],
    run_seed: int,
    continuation: str | None,
) -> str:
    """The digest of a model call; `messages` is the rolling digest of its whole prompt."""
    return plain_digest(
        "model", weights, template, messages, max_tokens, temperature, top_p, stop, run_seed, continuation
    )


def spawn_digest(agent: str, goal: str, inputs: bytes, key: str, budget: Budget | None, window_tokens: int) -> str:
    """The digest of a spawn; `inputs` is encoded JSON."""
    return plain_digest("spawn", agent, goal, inputs.decode(), key, budget, window_tokens)


def call_seed(run_seed: int, request: str, keys: str, occurrence: int) -> int:
    """The sampling seed of a call: 31 bits from the run's seed, the request and how many equal ones came
    before it in its task. `keys` are those of the task and its ancestors, so that keyed twins differ."""
    mixed = blake2b(f"{run_seed} {request} {keys} {occurrence}".encode(), digest_size=4).digest()
    return int.from_bytes(mixed, "big") >> 1
