"""How many calls may begin in a minute.

Owns the arithmetic of a token bucket; whoever uses it gives the clock and does the waiting. Invariant: over any
stretch of time no more calls begin than the burst and what the rate adds in it.
"""

from collections.abc import Callable

__all__ = ["TokenBucket"]


class TokenBucket:
    """Lets `per_minute` calls begin a minute, up to `burst` at once. `clock` gives seconds that only grow."""

    def __init__(self, per_minute: float, burst: float, clock: Callable[[], float]) -> None:
        if per_minute <= 0 or burst < 1:
            raise ValueError(f"a rate is positive and lets at least one call begin: {per_minute}, {burst}")
        self._per_s = per_minute / 60.0
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._at: float | None = None

    def reserve_s(self) -> float:
        """Take a place and answer how long to wait for it, in seconds. Places are given in order of asking."""
        now = self._clock()
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        self._left -= 1
        return max(0.0, -self._left / self._per_s)

    def give_back(self) -> None:
        """Return a place that was not used: its caller was cancelled while it waited."""
        self._left = min(self._burst, self._left + 1)
