"""Import: a file of any kind that is known, as a run.

Owns the way from a file's first bytes to who can read it. Invariant: a file that is refused leaves nothing behind.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from treering.events.errors import UsageError
from treering.events.log import LogStore
from treering.replays.claude_code import session_facts
from treering.replays.exporting import Imported, import_log
from treering.replays.inspect_logs import eval_facts, json_facts, read_whole
from treering.replays.telling import Fact, as_dict, tell
from treering.runtime.seams import Seams, World

__all__ = ["import_file"]

_LOOKED_AT = 2**20


def import_file(store: LogStore, path: Path, seams: Seams | None = None) -> Imported:
    """Take in a run from a file: an exported log, a Claude Code session (JSON lines) or an Inspect log.

    Raises UsageError for any other file, and for one that is empty, cut off or damaged.
    """
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    if not head.strip():
        raise UsageError(f"expected a log in {path}, found an empty file")
    if head.startswith(b'{"line":"'):
        return import_log(store, path)
    run, events = tell(store, _facts(path, head), seams or World())
    return Imported(run, 1, events, 0, events)


def _facts(path: Path, head: bytes) -> Iterator[Fact]:
    if head.startswith(b"PK"):
        yield from eval_facts(path)
        return
    line, end, _ = head.lstrip().partition(b"\n")
    if end and not _is_evaluation(line) and _is_json(line):
        with path.open("rb") as file:
            yield from session_facts(file, str(path))
        return
    if not head.lstrip().startswith(b"{"):
        raise UsageError(
            f"expected an exported log, a Claude Code session (JSON lines) or an Inspect log in {path}, found none of them"
        )
    found = as_dict(read_whole(path))
    if "eval" not in found and "message" in found:  # a session of one line
        with path.open("rb") as file:
            yield from session_facts(file, str(path))
        return
    yield from json_facts(found, str(path))


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _is_evaluation(line: bytes) -> bool:
    """Whether a whole Inspect log stands on one line."""
    return line.startswith(b"{") and b'"eval":' in line.replace(b" ", b"")[:2000]
