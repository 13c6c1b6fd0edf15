"""Live: a run as it happens, on stderr.

Owns the picture of the running tree: with rich on a terminal, plain lines elsewhere. It only listens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from treering.cli.printing import describe, is_terminal, note, one_line
from treering.events.catalogue import (
    Event,
    Header,
    ModelReplied,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskSpawned,
)

__all__ = ["watching"]

_PLAIN = (
    "InputAdded",
    "TaskSpawned",
    "TaskFinished",
    "TaskFailed",
    "TaskCancelled",
    "Compacted",
    "Evicted",
    "Refused",
    "RunResumed",
)
_ROWS = 24
_MARKS = {"running": "…", "finished": "✓", "failed": "✗", "cancelled": "–"}


class _Row:
    def __init__(self, goal: str) -> None:
        self.goal, self.status, self.prompt, self.generated = goal, "running", 0, 0


class _Picture:
    """The tree so far, as rich can draw it."""

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}
        self.last = ""

    def see(self, header: Header, event: Event) -> None:
        """One more event."""
        match event:
            case TaskSpawned():
                self.rows[event.path] = _Row(event.goal)
            case TaskFinished() | TaskFailed() | TaskCancelled() if header.task in self.rows:
                self.rows[header.task].status = header.kind.removeprefix("Task").lower()
            case ModelReplied() if header.task in self.rows:
                self.rows[header.task].prompt += event.usage.prompt
                self.rows[header.task].generated += event.usage.generated
            case _:
                pass
        self.last = f"{header.seq} {header.kind} {one_line(describe(event), 60)}"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        paths = list(self.rows)
        if len(paths) > _ROWS:  # the roots and what is running tell most
            important = [path for path in paths if "." not in path or self.rows[path].status == "running"]
            paths = important[:_ROWS]
        lines = []
        for path in paths:
            row = self.rows[path]
            indent = "  " * (path.count(".") + path.count("~"))
            cost = f" {row.prompt}+{row.generated}" if row.prompt else ""
            text = f"{indent}{_MARKS.get(row.status, '?')} {path}{cost} {one_line(row.goal, 60)}"
            lines.append(Text(text, no_wrap=True, overflow="ellipsis"))
        if len(paths) < len(self.rows):
            lines.append(Text(f"… {len(self.rows) - len(paths)} more tasks"))
        lines.append(Text(self.last, style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


@contextmanager
def watching(quiet: bool = False) -> Iterator[Callable[[Header, Event], None]]:
    """An observer that shows what it is told, while the block runs."""
    if quiet:
        yield lambda header, event: None
    elif not is_terminal():
        yield _say
    else:
        from rich.console import Console
        from rich.live import Live

        picture = _Picture()
        with Live(picture, console=Console(stderr=True), refresh_per_second=8, transient=True):
            yield picture.see


def _say(header: Header, event: Event) -> None:
    if header.kind in _PLAIN:
        note(f"{header.seq:>5} {header.task or '-':<8} {header.kind:<13} {one_line(describe(event))}")
