"""Divergence: code asked for something else than what the log holds.

Owns the report: where, what was recorded, what was asked, the line of agent code, and how to go on. Of any other
error it tells the line of agent code, too.
"""

import difflib
import json
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from treering.events.codec import to_json
from treering.events.errors import Divergence
from treering.runtime.journal import OpRecord
from treering.runtime.seams import coroutine_of, current_task

__all__ = ["diverged", "fork_advice", "raised_at"]

_PACKAGE = str(Path(__file__).parents[1])
_AGENTS = str(Path(__file__).parent / "agents")
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_IMPORTING = "<frozen importlib"
_OURS = tuple(f"/runtime/{name}.py" for name in ("task", "calling", "ops", "runner", "divergence"))


def diverged(
    run: str,
    path: str,
    number: int,
    record: OpRecord,
    asked: str | bytes,
    agent: Any,
    at: int,
    before: str | None = None,
) -> Divergence:
    """The error for op `number` of task `path`; `asked` is text, or JSON to be laid out.

    `agent` is the task of the event loop that runs the agent's code; `at` the last event that a fork can share
    without the op. `before` is what was asked then, as text like
    `asked`; without it, the recorded event stands for it.
    """
    if isinstance(asked, bytes):
        asked = json.dumps(json.loads(asked), indent=1, sort_keys=True)
    if before is None:
        before = json.dumps(json.loads(to_json(record.called or record.outcome)), indent=1, sort_keys=True)
    diff = "\n".join(
        difflib.unified_diff(before.splitlines(), asked.splitlines(), "recorded", "asked", lineterm="", n=1)
    )
    kind = type(record.called or record.outcome).__name__
    return Divergence(
        path,
        number,
        kind,
        "something else",
        diff,
        _agent_line(agent),
        fork_advice(run, at),
    )


def raised_at(error: BaseException) -> str:
    """FILE:LINE of the innermost frame of agent code in which `error` was raised; "" if there is none.

    Where a child raised it, that is the place in the child's code.
    """
    if isinstance(line := getattr(error, "line", None), str) and line:
        return line
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    outside = [at for at in lines if at[0].startswith(_AGENTS) or not at[0].startswith(_PACKAGE)]
    outside = [at for at in outside if not at[0].startswith(_IMPORTING)]
    own = [at for at in outside if not at[0].startswith(_LIBRARIES)] or outside
    if isinstance(error, SyntaxError) and error.filename:
        own.append((error.filename, error.lineno or 0))
    return "{}:{}".format(*own[-1]).removeprefix(f"{Path.cwd()}/") if own else ""


def fork_advice(run: str, at: int) -> str:
    """The command that goes on with the code as it is now."""
    return f"to go on from there: treering fork {run} --at {at} --start"


def _agent_line(agent: Any) -> str:
    """The line of agent code that is being run: the innermost frame outside of the ops."""
    if current_task() is agent:
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_stack()]
    else:  # an op of a gather has a stack of its own, while the agent's code waits for it
        lines = _waiting_lines(coroutine_of(agent))
    found = [f"{file}:{line}" for file, line in lines if not file.endswith(_OURS)]
    return found[-1] if found else "unknown"


def _waiting_lines(coroutine: Any) -> list[tuple[str, int | None]]:
    """Where a suspended coroutine and those that it waits for stand, outermost first."""
    lines: list[tuple[str, int | None]] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        lines.append((frame.f_code.co_filename, frame.f_lineno))
        coroutine = coroutine.cr_await
    return lines
