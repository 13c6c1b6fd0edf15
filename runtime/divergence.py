"""Divergence: code asked for something else than what the log holds.

Owns the report: where, what was recorded, what was asked, the line of agent code, and how to go on.
"""

import difflib
import json
import traceback

from treering.events.codec import to_json
from treering.events.errors import Divergence
from treering.runtime.journal import OpRecord

__all__ = ["diverged"]

_OURS = ("/runtime/task.py", "/runtime/calling.py", "/runtime/ops.py", "/runtime/divergence.py")


def diverged(run: str, path: str, number: int, record: OpRecord, asked: str | bytes) -> Divergence:
    """The error for op `number` of task `path`; `asked` is text, or JSON to be laid out."""
    if isinstance(asked, bytes):
        asked = json.dumps(json.loads(asked), indent=1, sort_keys=True)
    before = json.dumps(json.loads(to_json(record.called or record.outcome)), indent=1, sort_keys=True)
    diff = "\n".join(
        difflib.unified_diff(before.splitlines(), asked.splitlines(), "recorded", "asked", lineterm="", n=1)
    )
    kind = type(record.called or record.outcome).__name__
    at = max(0, record.seq - 1)
    return Divergence(
        path,
        number,
        kind,
        "something else",
        diff,
        _agent_line(),
        f"to go on from there: treering fork {run} --at {at}",
    )


def _agent_line() -> str:
    """The line of agent code that is being run: the innermost frame outside of this package."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.endswith(_OURS):
            return f"{frame.filename}:{frame.lineno}"
    return "unknown"
