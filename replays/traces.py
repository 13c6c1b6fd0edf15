"""Recorded accesses: of a run's memory, and of published cache traces.

Owns `Trace` and its readers. It decides nothing about what stays hot. Invariant: what is read from a log does not
depend on the policy that the run had: its evictions and revivals are left out.
"""

import gzip
import lzma
import sys
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from treering.events.catalogue import Evicted, Revived
from treering.events.codec import Record, decode
from treering.events.errors import UsageError
from treering.runtime.state import evolve, new_state

__all__ = ["ACCESS", "END", "LEAVE", "RETURN", "WRITE", "Step", "Trace", "read_run", "read_trace"]

WRITE = 0
ACCESS = 1
LEAVE = 2
RETURN = 3
END = 4
"""A memory is new; it is used; a pin or a window takes it out of the policy's hands; a window gives it back; the
event is over, and what is due goes cold."""

Step = tuple[int, str, int, int]
"""(what, id, tokens, clock)."""

_BLOCKS = 100


class Trace(msgspec.Struct, frozen=True):
    """Accesses in order. A published trace has `keys`, each of one token that ticks the clock by one; a run `steps`.

    `bounds` part it into `parts`, which are roots or blocks of equal length: (first, one after the last).
    """

    name: str
    keys: list[str]
    steps: list[Step]
    bounds: list[tuple[int, int]]
    parts: str
    rule: str = ""

    @property
    def unit(self) -> bool:
        """Whether all memories are of equal size, so that the optimum is exact."""
        return len({tokens for what, _, tokens, _ in self.steps if what == WRITE}) <= 1

    @property
    def distinct(self) -> int:
        """The tokens of all that is in it."""
        return len(set(self.keys)) + sum(tokens for what, _, tokens, _ in self.steps if what == WRITE)

    @property
    def accesses(self) -> int:
        """How many there are."""
        return len(self.keys) + sum(what == ACCESS for what, _, _, _ in self.steps)


def read_trace(path: Path) -> Trace:
    """A published trace, by its name: LIRS text (.gz or plain), cache2k's 32-bit integers (.xz), Mooncake's JSON lines.

    Raises UsageError for a file that is none of these, or holds no access.
    """
    reader: Callable[[bytes], list[str]] = _lirs
    if ".xz" in path.suffixes:
        reader = _cache2k
    elif path.suffix == ".jsonl":
        reader = _mooncake
    try:
        raw = path.read_bytes()
        packed = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix)
        keys = reader(packed(raw) if packed else raw)
    except (OSError, EOFError, lzma.LZMAError, ValueError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"expected {path} to be a trace (LIRS .trace.gz, cache2k .trace.xz, Mooncake .jsonl), found: {error}"
        ) from error
    if not keys:
        raise UsageError(f"expected accesses in {path}, found none")
    size = -(-len(keys) // _BLOCKS)
    bounds = [(start, min(start + size, len(keys))) for start in range(0, len(keys), size)]
    return Trace(path.name, keys, [], bounds, "blocks")


def _named(keys: Iterable[int]) -> list[str]:
    names: dict[int, str] = {}
    return [names.get(key) or names.setdefault(key, str(key)) for key in keys]


def _lirs(raw: bytes) -> list[str]:
    return _named(int(line) for line in raw.split(b"\n") if line.strip() not in (b"", b"*"))


def _cache2k(raw: bytes) -> list[str]:
    keys = array("i", raw)
    if sys.byteorder == "little":
        keys.byteswap()
    return _named(keys)


class _Request(msgspec.Struct):
    hash_ids: list[int]


def _mooncake(raw: bytes) -> list[str]:
    decoder = msgspec.json.Decoder(_Request)
    return _named(key for line in raw.split(b"\n") if line.strip() for key in decoder.decode(line).hash_ids)


class _Recorder:
    """A policy that keeps everything and writes down what it is told."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._tokens: dict[str, int] = {}
        self._in_hand: set[str] = set()
        self._returned = ""

    def add(self, id: str, tokens: int, clock: int) -> None:
        self._returned = id if id in self._tokens else ""
        self.steps.append((RETURN if self._returned else WRITE, id, tokens, clock))
        self._tokens[id] = tokens
        self._in_hand.add(id)

    def access(self, id: str, clock: int) -> bool:
        if id == self._returned:  # what a window gives back is used by that
            self._returned = ""
        elif id in self._in_hand:
            self.steps.append((ACCESS, id, self._tokens[id], clock))
        return id in self._in_hand

    def remove(self, id: str) -> None:
        if id in self._in_hand:
            self._in_hand.remove(id)
            self.steps.append((LEAVE, id, self._tokens[id], 0))

    def victim(self, clock: int) -> str | None:
        return None

    def evict(self, id: str) -> None:
        """Never asked."""

    def reason(self, id: str, age: int) -> str:
        return ""


def read_run(name: str, records: Iterable[Record]) -> Trace:
    """The accesses to the memory of a run's roots, from its log.

    They are those of the policy that the run had: under another, an agent might have recalled other things.
    """
    state, recorder = new_state(), _Recorder()
    starts = [0]
    clock = 0
    for record in records:
        stored = decode(record)
        if isinstance(stored.event, Evicted | Revived):
            continue
        before, roots = len(recorder.steps), len(state.roots)
        evolve(state, stored.header, stored.event)
        state.memory.policy = recorder  # type: ignore[assignment]  # a new configuration brings a policy of its own
        if len(state.roots) > roots and before > starts[-1]:
            starts.append(before)
        if len(recorder.steps) > before or state.memory.clock != clock:
            clock = state.memory.clock
            recorder.steps.append((END, "", 0, clock))
    bounds = list(zip(starts, [*starts[1:], len(recorder.steps)], strict=True))
    return Trace(name, [], recorder.steps, bounds, "roots", state.config.retention)
