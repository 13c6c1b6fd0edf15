"""How long to wait before another attempt at a model call.

Owns the policy as a pure function; whoever calls it draws the chance and does the waiting.
"""

import msgspec

__all__ = ["RetryPolicy"]


class RetryPolicy(msgspec.Struct, frozen=True):
    """Exponential backoff with full jitter, in seconds.

    See https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
    """

    base_s: float = 0.5
    cap_s: float = 30.0
    longest_asked_s: float = 120.0

    def delay_s(self, attempt: int, retry_after_s: float | None, draw: float) -> float:
        """The wait after failed attempt number `attempt` (from 1); `draw` is a chance in [0, 1).

        What a server asked for is honoured up to `longest_asked_s`.
        """
        jittered = draw * min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 30))
        if retry_after_s is not None and retry_after_s > 0:
            return min(retry_after_s, self.longest_asked_s) + jittered
        return jittered
