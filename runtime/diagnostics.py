"""Diagnostics: lines on stderr for whoever looks after a run. Never read back.

Owns the one way to say something that is no event. It never writes to stdout, where results go.
"""

import sys
from typing import Any

__all__ = ["warn"]


def warn(run: str, what: str, **about: Any) -> None:
    """Say `what` of a run on stderr, in one line."""
    import structlog  # only where something went wrong: it is not needed to start

    structlog.wrap_logger(structlog.PrintLogger(sys.stderr)).warning(what, run=run, **about)
