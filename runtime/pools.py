"""Pools: what the tasks under a budget used, and what is reserved or set aside of it.

Owns the sums, never a decision. A pool stands under that of the task which spawned its own. What a pool limits
itself was set aside in the pools above when it was made; what it does not limit is drawn from above as it is
used. Invariant: a pool's sums cover all that the tasks below it used or may still use, whoever limits them.
"""

import msgspec

from treering.events.catalogue import Budget

__all__ = ["Pool", "charge", "close_pool", "open_pool", "over_limit", "reserve"]

_PRECISION = 6  # microseconds: sums of seconds are the same in any order, and what is given back leaves zero


class Pool(msgspec.Struct, gc=False):
    """A budget that some tasks share. `parent` is the path of the task whose pool this one stands under.

    `reserved` is what calls in flight may still use, and with `reserved_seconds` and `reserved_cost` what is set
    aside for pools below. `system` is the part of `tokens` that compactions used.
    """

    limit: Budget
    parent: str = ""
    tokens: int = 0
    reserved: int = 0
    seconds: float = 0.0
    reserved_seconds: float = 0.0
    cost_micros: int = 0
    reserved_cost: int = 0
    system: int = 0


def open_pool(pools: dict[str, Pool], path: str, limit: Budget, parent: str) -> None:
    """A pool of its own for the task `path`, set aside from `parent`, the path of the pool above."""
    pools[path] = Pool(limit, parent)
    _set_aside(pools, parent, limit, 1)


def close_pool(pools: dict[str, Pool], path: str) -> None:
    """Give back what was set aside, and count what was used of it above."""
    own = pools.pop(path)
    limit = own.limit
    _set_aside(pools, own.parent, limit, -1)
    # What it did not limit was counted above as it was used.
    charge(
        pools,
        own.parent,
        tokens=0 if limit.tokens is None else own.tokens,
        seconds=0.0 if limit.seconds is None else own.seconds,
        cost_micros=0 if limit.cost_micros is None else own.cost_micros,
        system=0 if limit.tokens is None else own.system,
    )


def reserve(pools: dict[str, Pool], path: str, tokens: int) -> None:
    """Reserve tokens, or give them back where `tokens` is negative."""
    while path:
        pool = pools[path]
        pool.reserved += tokens
        path = "" if pool.limit.tokens is not None else pool.parent


def charge(
    pools: dict[str, Pool],
    path: str,
    tokens: int = 0,
    seconds: float = 0.0,
    cost_micros: int = 0,
    system: int = 0,
) -> None:
    """Count what was used; `system` is the part of `tokens` that compactions used."""
    while path and (tokens or seconds or cost_micros):
        pool = pools[path]
        pool.tokens += tokens
        pool.system += system
        if seconds:
            pool.seconds = round(pool.seconds + seconds, _PRECISION)
        pool.cost_micros += cost_micros
        limit = pool.limit
        if limit.tokens is not None:
            tokens = system = 0
        if limit.seconds is not None:
            seconds = 0.0
        if limit.cost_micros is not None:
            cost_micros = 0
        path = pool.parent


def over_limit(
    pools: dict[str, Pool], path: str, spends: bool, paid: bool = True
) -> tuple[str, str, float, float] | None:
    """The first limit that does not hold: whose pool, which, what it allows, what is needed.

    Looks at the pool `path` and all above. With `spends`, for what takes time and money that nobody knows yet:
    some of each must be left, in each pool that it is drawn from. Without `paid`, it is neither tokens nor money that is spent.
    """
    seconds_left = cost_left = spends
    while path:
        pool = pools[path]
        limit = pool.limit
        if paid and limit.tokens is not None and (needed := pool.tokens + pool.reserved) > limit.tokens:
            return path, "budget_tokens", limit.tokens, needed
        if limit.seconds is not None:
            taken = round(pool.seconds + pool.reserved_seconds, _PRECISION)
            if taken > limit.seconds or (seconds_left and taken >= limit.seconds):
                return path, "budget_seconds", limit.seconds, taken
            seconds_left = False  # of what is set aside, all may be used
        if paid and limit.cost_micros is not None:
            cost = pool.cost_micros + pool.reserved_cost
            if cost > limit.cost_micros or (cost_left and cost >= limit.cost_micros):
                return path, "budget_cost", limit.cost_micros, cost
            cost_left = False
        path = pool.parent
    return None


def _set_aside(pools: dict[str, Pool], path: str, limit: Budget, sign: int) -> None:
    """Set aside all that a new pool limits itself, or give it back."""
    reserve(pools, path, sign * (limit.tokens or 0))
    seconds, cost_micros = sign * (limit.seconds or 0.0), sign * (limit.cost_micros or 0)
    while path and (seconds or cost_micros):
        pool = pools[path]
        pool.reserved_seconds = round(pool.reserved_seconds + seconds, _PRECISION)
        pool.reserved_cost += cost_micros
        if pool.limit.seconds is not None:
            seconds = 0.0
        if pool.limit.cost_micros is not None:
            cost_micros = 0
        path = pool.parent
