"""Export and import: a run as a file of JSON lines, and back, byte for byte.

Owns the format of such files, the check of one before anything is taken in, and the taking in. Memory is
bounded by the longest line and by a run's folded state. Invariant: export after import gives the same lines; a
file that does not verify leaves nothing behind.

A file holds everything that its run's log is made of: a fork's ancestors up to their cuts, and the whole log of
the parent whose outcomes it may still take over. Destroyed bodies and texts stay absent.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec

from treering.events.catalogue import InputAdded, ModelCalled, RunForked
from treering.events.codec import Record, decode, decode_header, text_digest, to_json
from treering.events.errors import RunNotFound, UsageError
from treering.events.log import Blob, LogReader, LogStore, RunRow, clipped, lineage, record_at, selected
from treering.replays.verifying import verify

__all__ = ["ExportedLog", "Imported", "export_lines", "import_log"]

_FORMAT = 1
_LONGEST_LINE = 256 * 2**20
_BATCH = 500


class _Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="line", tag="log"):
    """The first line. `format` grows when old programs could not read a file."""

    run: str
    format: int = _FORMAT


class _Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="line", tag="run"):
    """A run; its events follow. Ancestors come first."""

    run: str
    created: int
    parent: str
    cut: int


class _Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="line", tag="blob"):
    """A long text, before the first event that names it. None: it was destroyed."""

    digest: str
    text: str | None


class _Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="line", tag="event"):
    """One record. `header` and `body` are the stored bytes as text, `salt` and `digest` are hex."""

    seq: int
    header: str
    body: str | None
    salt: str | None
    digest: str


class _End(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="line", tag="end"):
    """The last line: how many lines there are, so that a truncated file shows."""

    events: int
    blobs: int


_Line = _Log | _Run | _Blob | _Event | _End
_decoder: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)


class Imported(msgspec.Struct, frozen=True):
    """What was taken in. `added` counts events that this store did not hold yet."""

    run: str
    runs: int
    events: int
    blobs: int
    added: int


# --- export -------------------------------------------------------------------------------------------------


def export_lines(store: LogReader, run: str) -> Iterator[bytes]:
    """The lines of a run's file, in constant memory. The run may be written to meanwhile."""
    events = blobs = 0
    seen: set[str] = set()
    yield _line(_Log(run))
    for row, until in _parts(store, run):
        yield _line(_Run(row.run, row.created, row.parent, row.cut))
        for record in store.read(row.run, after=row.cut, until=until):
            for digest in _blobs_of(record):
                if digest not in seen:
                    seen.add(digest)
                    blobs += 1
                    yield _line(_Blob(digest, store.blob(digest)))
            events += 1
            yield _line(
                _Event(
                    record.seq,
                    record.header.decode(),
                    None if record.body is None else record.body.decode(),
                    None if record.salt is None else record.salt.hex(),
                    record.digest.hex(),
                )
            )
    yield _line(_End(events, blobs))


def _line(line: _Line) -> bytes:
    return to_json(line) + b"\n"


def _parts(store: LogReader, run: str) -> list[tuple[RunRow, int]]:
    """The runs that a file holds, each with the last of its own events, ancestors first."""
    until: dict[str, int] = {}
    names = [run]
    row = store.row(run)
    if row.parent:
        first = decode(record_at(store, run, row.cut + 1)).event
        if isinstance(first, RunForked) and first.reuse:
            names.insert(0, first.parent)
    for name in names:
        for segment in lineage(store.row, name):
            last = segment.until if segment.until is not None else store.head(segment.run)[0]
            until[segment.run] = max(last, until.get(segment.run, 0))
    rows = [store.row(name) for name in until]
    rows.sort(key=lambda row: len(lineage(store.row, row.run)))
    return [(row, until[row.run]) for row in rows]


def _blobs_of(record: Record) -> list[str]:
    """The texts that an event names."""
    if record.body is None or not (b'"source"' in record.body or b'"blob"' in record.body):
        return []
    event = decode(record).event
    if isinstance(event, InputAdded):
        return [event.source]
    if isinstance(event, ModelCalled):
        return [entry.spill.blob for entry in event.entries if entry.spill is not None]
    return []


# --- a file as a log ----------------------------------------------------------------------------------------


class ExportedLog:
    """An exported file, as a log that can be read: only places are kept in memory.

    Raises UsageError for a file that is none, is truncated or has lines that do not fit, naming the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = ""
        self.events = 0
        self._rows: dict[str, RunRow] = {}
        self._starts: dict[str, int] = {}
        self._heads: dict[str, tuple[int, bytes]] = {}
        self._blobs: dict[str, int] = {}
        self._owners: dict[str, list[str]] = {}
        self.resumed: dict[str, int] = {}
        with path.open("rb") as file:
            self._index(file)

    @property
    def rows(self) -> list[RunRow]:
        """The runs in the file, ancestors first."""
        return list(self._rows.values())

    @property
    def texts(self) -> int:
        """How many texts the file holds."""
        return len(self._blobs)

    def has_events(self, run: str) -> bool:
        """Whether a run has events of its own."""
        return run in self._heads

    def row(self, run: str) -> RunRow:
        if run not in self._rows:
            raise RunNotFound(f"expected the ancestors of each run in {self.path}, found no {run!r}")
        return self._rows[run]

    def head(self, run: str) -> tuple[int, bytes]:
        return self._heads[run]

    def blob(self, digest: str) -> str | None:
        if digest not in self._blobs:
            return None
        with self.path.open("rb") as file:
            file.seek(self._blobs[digest])
            line = _decoder.decode(file.readline())
        return line.text if isinstance(line, _Blob) else None

    def blobs(self, run: str) -> Iterator[Blob]:
        """The texts that stand among the events of this run and are not destroyed."""
        for digest in self._owners[run]:
            text = self.blob(digest)
            if text is not None:
                yield Blob(digest, text)

    def read(
        self,
        run: str,
        after: int = 0,
        until: int | None = None,
        task: str | None = None,
        kinds: Iterable[str] | None = None,
    ) -> Iterator[Record]:
        yield from selected(self._records_of(run, after, until), task, kinds)

    def _records_of(self, run: str, after: int, until: int | None) -> Iterator[Record]:
        for part in clipped(self.row, run, after, until):
            for record in self._own(part.run):
                if part.until is not None and record.seq > part.until:
                    break
                if record.seq > part.after:
                    yield record

    def _own(self, run: str) -> Iterator[Record]:
        with self.path.open("rb") as file:
            file.seek(self._starts[run])
            while isinstance(line := _decoder.decode(file.readline()), _Event | _Blob):
                if isinstance(line, _Event):
                    yield _record(line)

    def _index(self, file: BinaryIO) -> None:
        number, owner, ended = 0, "", False
        while True:
            place = file.tell()
            data = file.readline(_LONGEST_LINE + 1)
            if not data:
                break
            number += 1
            if ended:
                raise self._wrong(number, "found more after the line that ends it")
            line = self._parse(number, data)
            if (number == 1) != isinstance(line, _Log):
                raise self._wrong(number, "expected the line `log` first, and once")
            if isinstance(line, _Log):
                if line.format != _FORMAT:
                    raise self._wrong(
                        number, f"format {line.format} is of another treering; this one reads {_FORMAT}"
                    )
                self.run = line.run
            elif isinstance(line, _Run):
                owner = self._add_run(number, line, file.tell())
            elif isinstance(line, _End):
                ended = (line.events, line.blobs) == (self.events, len(self._blobs))
                if not ended:
                    raise self._wrong(number, f"expected {line.events} events before it, found {self.events}")
            elif not owner:
                raise self._wrong(number, "expected a run before its events")
            else:
                self._add(number, owner, line, place)
        if not ended:
            raise UsageError(f"expected a whole log in {self.path}, found its end missing: it is truncated or empty")
        if self.run not in self._rows:
            raise UsageError(f"expected run {self.run!r} in {self.path}, found it missing")

    def _parse(self, number: int, data: bytes) -> _Line:
        if len(data) > _LONGEST_LINE:
            raise self._wrong(number, f"it is longer than {_LONGEST_LINE >> 20} MiB")
        if not data.endswith(b"\n"):
            raise self._wrong(number, "it is cut off: the file is truncated")
        try:
            return _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._wrong(number, str(error)) from error

    def _add_run(self, number: int, line: _Run, place: int) -> str:
        if line.run in self._rows:
            raise self._wrong(number, f"run {line.run} is there twice")
        if line.parent and line.parent not in self._rows:
            raise self._wrong(number, f"expected the parent {line.parent} before its fork")
        self._rows[line.run] = RunRow(line.run, line.created, line.parent, line.cut)
        self._starts[line.run], self._owners[line.run] = place, []
        return line.run

    def _add(self, number: int, owner: str, line: _Blob | _Event, place: int) -> None:
        if isinstance(line, _Blob):
            if line.text is not None and text_digest(line.text) != line.digest:
                raise self._wrong(number, "its text does not give its digest")
            self._blobs[line.digest] = place
            self._owners[owner].append(line.digest)
            return
        try:
            record = _record(line)
            header = decode_header(record.header)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise self._wrong(number, str(error)) from error
        row = self._rows[owner]
        if owner not in self._heads and header.at != row.created:
            raise self._wrong(number, f"expected run {owner} to begin when it was created, at {row.created}")
        last = self._heads.get(owner, (row.cut, b""))[0]
        if record.seq != last + 1 or header.run != owner:
            raise self._wrong(number, f"expected event {last + 1} of run {owner}, found {record.seq} of {header.run}")
        self._heads[owner] = (record.seq, record.digest)
        self.events += 1
        if header.kind == "RunResumed":
            self.resumed[owner] = self.resumed.get(owner, 0) + 1

    def _wrong(self, number: int, why: str) -> UsageError:
        return UsageError(f"expected an exported log in {self.path}, found line {number} that does not fit: {why}")


def _record(line: _Event) -> Record:
    return Record(
        line.seq,
        line.header.encode(),
        None if line.body is None else line.body.encode(),
        None if line.salt is None else bytes.fromhex(line.salt),
        bytes.fromhex(line.digest),
    )


# --- import -------------------------------------------------------------------------------------------------


def import_log(store: LogStore, path: Path) -> Imported:
    """Take an exported file into a store: all of it, after it was verified. What is there already stays.

    Raises UsageError for a file that is none or that contradicts this store, BrokenChain for one that was changed.
    """
    log = ExportedLog(path)
    checked: set[str] = set()
    for row in reversed(log.rows):
        if row.run not in checked:
            if not log.has_events(row.run):
                raise UsageError(f"expected events of run {row.run} in {path}, found none")
            verify(log, row.run)
            checked.update(segment.run for segment in lineage(log.row, row.run))
    here = {row.run: row for row in store.runs()}
    for row in log.rows:
        if row.run in here:
            _check_same(store, log, row, here[row.run])
    added = sum(_take_in(store, log, row, row.run in here) for row in log.rows)
    return Imported(log.run, len(log.rows), log.events, log.texts, added)


def _check_same(store: LogStore, log: ExportedLog, row: RunRow, here: RunRow) -> None:
    last = min(store.head(row.run)[0], log.head(row.run)[0])
    there = [record_at(one, row.run, last).digest for one in (store, log)]
    if (here.parent, here.cut) != (row.parent, row.cut) or there[0] != there[1]:
        raise UsageError(
            f"expected run {row.run} of {log.path} to be new or the same, found another in this store: it went its own "
            "way since; import into a store of its own with --store"
        )


def _take_in(store: LogStore, log: ExportedLog, row: RunRow, is_here: bool) -> int:
    """Add what the store lacks of one run; the number of events."""
    first = store.head(row.run)[0] if is_here else row.cut
    count = log.head(row.run)[0] - first
    if not is_here:
        store.create(row, log.read(row.run, after=row.cut), log.blobs(row.run))
        # Who goes on with it is not its first writer: as many writers as it had are in the past.
        for _ in range(log.resumed.get(row.run, 0) + 1):
            store.acquire(row.run).release()
        return count
    if count <= 0:
        return 0
    lease = store.acquire(row.run)
    try:
        blobs, records = log.blobs(row.run), log.read(row.run, after=first)
        while batch := list(islice(records, _BATCH)):
            store.append(row.run, lease.epoch, batch, list(blobs))
    finally:
        lease.release()
    return count
