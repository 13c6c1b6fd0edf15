"""What people see of a run while it goes on."""

import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from treering.cli.describing import describe
from treering.cli.live import Picture
from treering.events.catalogue import (
    EVENT_TYPES,
    Header,
    InputAdded,
    MemoryRef,
    MessageReceived,
    ModelReplied,
    RunForked,
    SourceSpan,
    TaskFinished,
    TaskSpawned,
    Usage,
    Used,
)
from treering.events.codec import decode_body, decode_header, to_json
from treering.runtime.state import evolve, new_state


def _screen(picture, height=25):
    console = Console(width=100, height=height, force_terminal=False)
    with console.capture() as shown:
        console.print(picture)
    return shown.get().splitlines()


def _tell(picture, event, task="", op=0):
    picture.see(Header("r", 1, type(event).__name__, 1000, "", task, op), event)


def test_the_picture_tells_twins_apart_and_shows_what_is_being_said():
    """Children with their parent's goal are named by what they were given."""
    picture = Picture()
    _tell(picture, TaskSpawned("1", "reader", "Who kept a parrot?"), "1")
    _tell(picture, InputAdded("town.md", "d1", 900, 900, ""), "1", 1)
    for number, span in enumerate((SourceSpan("d1", 0, 40), SourceSpan("d1", 40, 90)), start=1):
        inputs = msgspec.Raw(to_json({"passage": span}))
        _tell(picture, TaskSpawned(f"1.{number}", "a.b:read_passage", "Who kept a parrot?", inputs), "1", number + 1)
    say = picture.stream("1.1")
    say("Tomas\x1b[2J Va")
    say("rga")
    _tell(picture, ModelReplied("Nobody.", usage=Usage(214, 0, 3)), "1.2", 1)
    _tell(picture, TaskFinished(), "1.2")
    root, first, second, last = _screen(picture)
    assert root.startswith("… 1 reader: Who kept a parrot?")
    assert first.startswith("  … 1.1 read_passage town.md[0:40]")
    assert first.endswith("Tomas\N{REPLACEMENT CHARACTER}[2J Varga")
    assert second.startswith("  ✓ 1.2 read_passage town.md[40:90]  214+3 tokens")
    assert last.startswith("event 1: TaskFinished")


def test_a_run_that_goes_on_shows_what_it_was_doing():
    """The tasks that did not end before."""
    state = new_state()
    for seq, (path, task, op) in enumerate([("1", "1", 0), ("1.1", "1", 1), ("1.2", "1", 2)], start=1):
        evolve(state, Header("r", seq, "TaskSpawned", 0, "", task, op), TaskSpawned(path, "a:wide", f"go {path}"))
    evolve(state, Header("r", 4, "TaskFinished", 0, "", "1.1"), TaskFinished())
    picture = Picture()
    picture.know(state)
    root, left, _ = _screen(picture)
    assert root.startswith("… 1 wide: go 1")
    assert left.startswith("  … 1.2 wide: go 1.2")


def test_a_wide_tree_is_cut_to_what_tells_most():
    """The roots and what is running; the rest is counted."""
    picture = Picture()
    _tell(picture, TaskSpawned("1", "wide", "go"), "1")
    for number in range(1, 101):
        _tell(picture, TaskSpawned(f"1.{number}", "wide", f"part {number}"), "1", number)
        if number <= 95:
            _tell(picture, TaskFinished(), f"1.{number}")
    lines = _screen(picture)
    assert len(lines) == 8
    assert "… 94 more tasks" in lines[-2] or "… 95 more tasks" in lines[-2]


@pytest.mark.parametrize("height", [8, 12, 50])
def test_the_picture_fits_the_terminal_and_its_last_line_is_seen(height):
    """Whatever its height: what does not fit would be cut off at the bottom."""
    picture = Picture()
    _tell(picture, TaskSpawned("1", "wide", "go"), "1")
    for number in range(1, 61):
        _tell(picture, TaskSpawned(f"1.{number}", "wide", f"part {number}"), "1", number)
    lines = _screen(picture, height)
    assert len(lines) == height - 2
    assert lines[-1].startswith("event 1: TaskSpawned 1.60")
    assert lines[-2] == f"… {61 - (height - 4)} more tasks"


def _golden():
    path = Path(__file__).parents[1] / "events" / "golden" / "v1.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        stored = json.loads(line)
        header = decode_header(stored["header"].encode())
        yield decode_body(header.kind, header.version, stored["body"].encode())


def test_each_kind_of_event_is_described_in_one_line():
    """Whatever a log holds, a person can read it."""
    seen = set()
    more = (
        InputAdded("a\nb.md", "d", 9, 9, ""),
        MessageReceived(1, "ask", "who?"),
        RunForked("parent", 9),
        Used((MemoryRef("m1"),)),
    )
    for event in (*_golden(), *more, None):
        seen.add(type(event).__name__)
        text = describe(event)
        assert text
        assert "\n" not in text
        assert len(text) < 300
    assert seen - {"NoneType"} == EVENT_TYPES.keys()
