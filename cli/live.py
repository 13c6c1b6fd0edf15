"""Live: a run as it happens, on stderr.

Owns the picture of the running tree: with rich on a terminal, plain lines elsewhere. It only listens.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from treering.cli.describing import describe
from treering.cli.printing import is_terminal, note, one_line, plural, short_name
from treering.events.catalogue import (
    Event,
    Evicted,
    Header,
    InputAdded,
    ModelCalled,
    ModelReplied,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskSpawned,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

    from treering.runtime.state import RunState

__all__ = ["Picture", "watching"]

_PLAIN = (
    "InputAdded",
    "TaskSpawned",
    "TaskFinished",
    "TaskFailed",
    "TaskCancelled",
    "Compacted",
    "Refused",
    "RunResumed",
)
_TAIL = 40
_MARKS = {"running": "…", "finished": "✓", "failed": "✗", "cancelled": "–"}


class _Row:
    def __init__(self, title: str, at: int) -> None:
        self.title, self.status, self.prompt, self.generated = title, "running", 0, 0
        self.text = ""
        self.began_ms, self.ended_ms = at, 0

    def line(self, path: str, now_ms: int) -> str:
        indent = "  " * (path.count(".") + path.count("~"))
        cost = f"  {self.prompt}+{self.generated} tokens" if self.prompt else ""
        seconds = ((self.ended_ms or now_ms) - self.began_ms) / 1000
        said = f"  {one_line(self.text[-_TAIL:], _TAIL)}" if self.text and self.status == "running" else ""
        return f"{indent}{_MARKS.get(self.status, '?')} {path} {self.title}{cost}  {seconds:.0f} s{said}"


class Picture:
    """The tree so far, as rich can draw it."""

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}
        self.goals: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.last = "opening the run"

    def know(self, state: "RunState") -> None:
        """What a run that goes on was doing: its tasks that did not end."""
        for task in state.tasks.values():
            if task.status == "running":
                self.goals[task.path] = task.goal
                name = short_name(task.agent)
                same = task.goal == self.goals.get(task.parent)
                title = name if same else f"{name}: {one_line(task.goal, 60)}"
                row = self.rows[task.path] = _Row(title, time.time_ns() // 1_000_000)
                row.prompt, row.generated = task.prompt_tokens, task.generated_tokens

    def see(self, header: Header, event: Event) -> None:
        """One more event."""
        match event:
            case InputAdded():
                self.sources[event.source] = event.name
            case TaskSpawned():
                self.goals[event.path] = event.goal
                self.rows[event.path] = _Row(self._title(header, event), header.at)
            case TaskFinished() | TaskFailed() | TaskCancelled() if header.task in self.rows:
                row = self.rows[header.task]
                row.status, row.ended_ms = header.kind.removeprefix("Task").lower(), header.at
            case ModelReplied() if header.task in self.rows:
                self.rows[header.task].prompt += event.usage.prompt
                self.rows[header.task].generated += event.usage.generated
                self.rows[header.task].text = ""
            case _:
                pass
        self.last = f"event {header.seq}: {header.kind} {describe(event)}"

    def stream(self, path: str) -> Callable[[str], None] | None:
        """Where to show what the model of a task is saying."""
        row = self.rows.get(path)
        if row is None:
            return None
        row.text = ""

        def say(text: str) -> None:
            row.text += text

        return say

    def _title(self, header: Header, event: TaskSpawned) -> str:
        """What tells a task from its siblings: its goal, unless that is its parent's; else what it was given."""
        name = short_name(event.agent)
        if not header.op or event.goal != self.goals.get(header.task):
            return f"{name}: {one_line(event.goal, 60)}"
        spans = _spans(msgspec.json.decode(event.inputs))
        places = [f"{self.sources.get(source, 'a source')}[{start}:{end}]" for source, start, end in spans]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        return f"{name} {one_line(places[0], 60)}{more}" if places else name

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator[Any]:
        from rich.text import Text

        paths = list(self.rows)
        # What does not fit is cut off at the bottom, where most happens: two lines tell what is left out, and the last.
        fitting = max(1, console.height - 2 - 2)
        if len(paths) > fitting:  # the roots and what is running tell most
            important = [path for path in paths if "." not in path or self.rows[path].status == "running"]
            paths = important[:fitting]
        now_ms = time.time_ns() // 1_000_000
        lines = [Text(self.rows[path].line(path, now_ms), no_wrap=True, overflow="ellipsis") for path in paths]
        if len(paths) < len(self.rows):
            lines.append(Text(f"… {len(self.rows) - len(paths)} more tasks"))
        lines.append(Text(self.last, style="dim", no_wrap=True, overflow="ellipsis"))
        yield from lines


def _spans(inputs: Any) -> list[tuple[str, int, int]]:
    """The passages among a task's inputs."""
    if isinstance(inputs, dict):
        if inputs.get("type") == "source":
            return [(inputs["source"], inputs["start"], inputs["end"])]
        inputs = list(inputs.values())
    return [span for value in inputs for span in _spans(value)] if isinstance(inputs, list) else []


@contextmanager
def watching() -> Iterator[tuple[dict[str, Any], Callable[["RunState"], None]]]:
    """The arguments (`observers`, `stream`) by which a runner tells of its run, and whom to tell where it begins."""
    if not is_terminal():
        lines = _Lines()
        yield {"observers": [lines.see]}, lambda state: None
        lines.close()
    else:
        from rich.console import Console
        from rich.live import Live

        picture = Picture()
        with Live(picture, console=Console(stderr=True), refresh_per_second=8, transient=True):
            yield {"observers": [picture.see], "stream": picture.stream}, picture.know


class _Lines:
    """A line for each event that tells how far a run is. What goes cold is counted: it may be hundreds."""

    def __init__(self) -> None:
        self._evicted = 0

    def see(self, header: Header, event: Event) -> None:
        """One more event."""
        spilled = isinstance(event, ModelCalled) and any(entry.spill for entry in event.entries)
        if header.kind in _PLAIN or spilled:
            note(f"{header.seq:>5} {header.task or '-':<8} {header.kind:<13} {one_line(describe(event), 100)}")
        self._evicted += isinstance(event, Evicted)

    def close(self) -> None:
        """Say what was only counted."""
        if self._evicted:
            note(f"{plural(self._evicted, 'memory', 'memories')} went cold; treering events RUN --kind Evicted")
