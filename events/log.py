"""The log protocol: what every store must do, whatever it is made of.

Owns the words of the store (`RunRow`, `Lease`, `Segment`) and the protocols `LogReader` and `LogStore`. Its one promise: what
`append` returned from is on disk, whole or not at all, and never changes again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from treering.events.codec import Record, decode_header
from treering.events.errors import RunNotFound

__all__ = [
    "Blob",
    "InboxRow",
    "Lease",
    "LogReader",
    "LogStore",
    "RunRow",
    "Segment",
    "clipped",
    "find_run",
    "lineage",
    "record_at",
    "root_of_cut",
    "selected",
]


class RunRow(msgspec.Struct, frozen=True):
    """One run. A fork has a `parent` and shares its events up to `cut`. `created` is in milliseconds."""

    run: str
    created: int
    parent: str = ""
    cut: int = 0


class Blob(msgspec.Struct, frozen=True):
    """A long text, addressed by `treering.events.codec.text_digest`."""

    digest: str
    text: str


class Segment(msgspec.Struct, frozen=True):
    """A part of a lineage: events `after` + 1 to `until` (None: all) of one run."""

    run: str
    after: int
    until: int | None


class InboxRow(msgspec.Struct, frozen=True):
    """A message to a run. Ids only grow, over all runs of a store."""

    id: int
    run: str
    kind: str
    text: str


class Lease(Protocol):
    """The right to append to one run. It ends with the process that holds it."""

    @property
    def epoch(self) -> int:
        """Grows by one each time the run changes hands."""
        ...

    def release(self) -> None:
        """Let others have it. Doing it twice is harmless."""
        ...


class LogReader(Protocol):
    """A log that can be read. Every method blocks and may be called from any thread."""

    def read(
        self,
        run: str,
        after: int = 0,
        until: int | None = None,
        task: str | None = None,
        kinds: Iterable[str] | None = None,
    ) -> Iterator[Record]:
        """The records of a run's lineage in order, those of its ancestors first."""
        ...

    def head(self, run: str) -> tuple[int, bytes]:
        """The last seq of a run's lineage and the chain digest there."""
        ...

    def row(self, run: str) -> RunRow:
        """One run, by its whole id. Raises RunNotFound."""
        ...

    def blob(self, digest: str) -> str | None:
        """The text at this address, or None if it was never here or was destroyed."""
        ...


class LogStore(LogReader, Protocol):
    """Where logs are kept. Appends of one run come from one thread at a time."""

    def create(self, row: RunRow, records: Iterable[Record], blobs: Iterable[Blob] = ()) -> None:
        """A new run and its first records, in one transaction: an iterable that raises leaves nothing.

        A fork is nothing more than this.
        """
        ...

    def acquire(self, run: str, take_over: bool = False) -> Lease:
        """The lease of a run. Raises LeaseHeld if somebody alive has it, unless `take_over`."""
        ...

    def holder(self, run: str) -> str:
        """Who holds the lease of a run, in words; "" if nobody does. It takes nothing."""
        ...

    def append(self, run: str, epoch: int, records: Sequence[Record], blobs: Sequence[Blob] = ()) -> None:
        """All records or none, on disk. Raises LeaseLost if `epoch` is no longer the lease's, StoreError."""
        ...

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        ...

    def post(self, run: str, kind: str, text: str) -> int:
        """Leave a message for whoever holds the run; its id."""
        ...

    def inbox(self, run: str, after: int) -> list[InboxRow]:
        """Messages with ids above `after`, in order."""
        ...

    def close(self) -> None:
        """Give back files and connections."""
        ...


def lineage(row_of: Callable[[str], RunRow], run: str) -> list[Segment]:
    """The segments that make up a run's log, oldest first."""
    segments: list[Segment] = []
    until: int | None = None
    while True:
        row = row_of(run)
        segments.append(Segment(run, row.cut if row.parent else 0, until))
        if not row.parent:
            return segments[::-1]
        run, until = row.parent, row.cut


def clipped(row_of: Callable[[str], RunRow], run: str, after: int, until: int | None) -> list[Segment]:
    """The segments of a run's log that hold events `after` + 1 to `until` (None: all), cut to them."""
    found: list[Segment] = []
    for segment in lineage(row_of, run):
        low = max(after, segment.after)
        high = min((bound for bound in (until, segment.until) if bound is not None), default=None)
        if high is None or low < high:
            found.append(Segment(segment.run, low, high))
    return found


def selected(records: Iterable[Record], task: str | None, kinds: Iterable[str] | None) -> Iterator[Record]:
    """Those of a task and of these kinds (None: of all), for stores that cannot ask for them."""
    if task is None and kinds is None:
        yield from records
        return
    wanted = None if kinds is None else frozenset(kinds)
    for record in records:
        header = decode_header(record.header)
        if (task is None or header.task == task) and (wanted is None or header.kind in wanted):
            yield record


def record_at(log: LogReader, run: str, seq: int) -> Record:
    """Event `seq` of a run's lineage, which must be there."""
    return next(iter(log.read(run, after=seq - 1, until=seq)))


def root_of_cut(row_of: Callable[[str], RunRow], parent: str, cut: int) -> str:
    """The ancestor whose own part holds event `cut`, so that lineages stay as short as they can."""
    while (row := row_of(parent)).parent and cut <= row.cut:
        parent = row.parent
    return parent


def find_run(store: LogStore, name: str) -> RunRow:
    """The run that `name` means: its id, a unique beginning of it, or `last`."""
    rows = store.runs()
    if not rows:
        raise RunNotFound(f"expected a run, found none in this store; start one before asking for {name!r}")
    if name == "last":
        return rows[-1]
    found = [row for row in rows if row.run.startswith(name)] if name else []
    exact = [row for row in found if row.run == name]
    if exact or len(found) == 1:
        return (exact or found)[0]
    if found:
        some = ", ".join(row.run for row in found[:5])
        raise RunNotFound(f"expected one run, found {len(found)} that begin with {name!r}: {some}; give more letters")
    raise RunNotFound(f"expected a run, found none that begins with {name!r}; `treering runs` lists them")
