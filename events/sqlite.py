"""The log in one SQLite file: the default store.

Owns the schema, the one-writer lease and the translation of SQLite's errors into clear lines. Invariant: rows
of `events` and `blobs` are only ever inserted; the database's own triggers refuse all else, but for the
destruction of a body. WAL with `synchronous=FULL`: one commit is one fsync of the WAL.

See https://sqlite.org/wal.html and https://sqlite.org/pragma.html#pragma_synchronous.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from treering.events.codec import GENESIS, Record
from treering.events.errors import LeaseHeld, LeaseLost, RunNotFound, StoreError
from treering.events.file_leases import FileLease
from treering.events.holders import holder_of
from treering.events.log import Blob, InboxRow, RunRow, Segment, clipped

__all__ = ["SQLiteStore"]

T = TypeVar("T")

_SCHEMA_VERSION = 2
_APPLICATION_ID = 0x54524E47  # "TRNG"
_BUSY_TIMEOUT_S = 20.0
_CHECKPOINT_PAGES = 4000
_READ_ROWS = 2000
_LOCK_TRIES = 3
_ROWS_AT_ONCE = (64, 16, 4, 1)
# Many rows a statement: each statement gives up Python's global lock once, and so may wait for it once.
_INSERTS = {
    size: f"INSERT INTO events(n, seq, header, body, salt, digest) VALUES {', '.join(['(?, ?, ?, ?, ?, ?)'] * size)}"
    for size in _ROWS_AT_ONCE
}

# A header is stored once, as the bytes that the chain covers. What it says stands in the view `log`, for people:
# SQLite computes generated columns at each insert, even virtual ones, which was a quarter of its time.
_SCHEMA = """
CREATE TABLE runs(
    n INTEGER PRIMARY KEY, run TEXT NOT NULL UNIQUE, created INTEGER NOT NULL,
    parent TEXT NOT NULL DEFAULT '', cut INTEGER NOT NULL DEFAULT 0);
CREATE TABLE events(
    n INTEGER NOT NULL, seq INTEGER NOT NULL, header TEXT NOT NULL, body TEXT, salt BLOB, digest BLOB NOT NULL,
    PRIMARY KEY(n, seq));
CREATE VIEW log AS
    SELECT run, seq, json_extract(header, '$.kind') AS kind, coalesce(json_extract(header, '$.task'), '') AS task,
        coalesce(json_extract(header, '$.op'), 0) AS op, body FROM events JOIN runs USING (n);
CREATE TABLE blobs(digest TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID;
CREATE TABLE leases(n INTEGER PRIMARY KEY, epoch INTEGER NOT NULL);
CREATE TABLE inbox(id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX inbox_by_run ON inbox(run, id);
CREATE TRIGGER events_keep BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
CREATE TRIGGER events_fixed BEFORE UPDATE ON events
    WHEN NEW.n IS NOT OLD.n OR NEW.seq IS NOT OLD.seq OR NEW.header IS NOT OLD.header
        OR NEW.digest IS NOT OLD.digest OR NEW.body IS NOT NULL OR NEW.salt IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER blobs_keep BEFORE DELETE ON blobs
    BEGIN SELECT RAISE(ABORT, 'blobs are never deleted'); END;
CREATE TRIGGER blobs_fixed BEFORE UPDATE ON blobs
    WHEN NEW.digest IS NOT OLD.digest OR NEW.text IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'blobs are never changed'); END;
CREATE TRIGGER runs_keep BEFORE DELETE ON runs
    BEGIN SELECT RAISE(ABORT, 'runs are never deleted'); END;
CREATE TRIGGER runs_fixed BEFORE UPDATE ON runs
    BEGIN SELECT RAISE(ABORT, 'runs are never changed'); END;
"""


class SQLiteStore:
    """A LogStore in the file `path`, made with its folder if it is not there.

    `busy_timeout_s` is how long to wait for another process in the middle of a transaction.
    Raises StoreError if the file is no log, is damaged, or was written by a newer version.
    """

    def __init__(self, path: str | os.PathLike[str], busy_timeout_s: float = _BUSY_TIMEOUT_S) -> None:
        self.path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._numbers: dict[str, int] = {}
        self._rows: dict[str, RunRow] = {}
        self._lock = threading.Lock()
        self._locals = threading.local()
        self._opened: list[sqlite3.Connection] = []
        with contextlib.suppress(FileExistsError):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"expected a folder for the store at {self.path.parent}, found: {error}") from error
        self._guard(self._open_schema)

    # --- connections ---------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        # One connection a thread: the writer thread never waits for a reader's cursor.
        found: sqlite3.Connection | None = getattr(self._locals, "connection", None)
        if found is None:
            found = sqlite3.connect(
                self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            self._locals.connection = found
            with self._lock:
                self._opened.append(found)
            found.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout_s * 1000)}")
            found.execute("PRAGMA page_size = 8192")
            found.execute("PRAGMA journal_mode = WAL")
            found.execute("PRAGMA synchronous = FULL")
            found.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        return found

    def _open_schema(self) -> None:
        connection = self._connection()
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with self._transaction(connection):
                if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        raise StoreError(f"expected a treering log, found another SQLite database at {self.path}")
                    for statement in _statements(_SCHEMA):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        elif connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise StoreError(f"expected a treering log, found another SQLite database at {self.path}")
        elif version > _SCHEMA_VERSION:
            raise StoreError(
                f"expected a store of version {_SCHEMA_VERSION}, found version {version} at {self.path}: "
                "it was written by a newer treering; upgrade to read it"
            )

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _guard(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except sqlite3.Error as error:
            raise StoreError(self._explain(error)) from error

    def _explain(self, error: sqlite3.Error) -> str:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            return f"the disk took no more at {self.path} ({text}); free some space and resume, nothing is lost"
        if "locked" in text or "busy" in text:
            return (
                f"{holder_of(self.path, os.getpid())} kept {self.path} locked for {self._busy_timeout_s:g} s; "
                "try again when it is done"
            )
        if "malformed" in text or "not a database" in text or "corrupt" in text:
            return f"expected a treering log at {self.path}, found a damaged file or none of ours ({text})"
        if "readonly" in text or "unable to open" in text:
            return f"expected a store that can be written at {self.path}, found: {text}"
        return f"the store at {self.path} refused: {text}"

    def _number(self, connection: sqlite3.Connection, run: str) -> int:
        known = self._numbers.get(run)
        if known is None:
            row = connection.execute("SELECT n FROM runs WHERE run = ?", (run,)).fetchone()
            if row is None:
                raise RunNotFound(f"expected a run, found no {run!r} in {self.path}")
            known = self._numbers[run] = int(row[0])
        return known

    # --- writing -------------------------------------------------------------------------------------

    def create(self, row: RunRow, records: Iterable[Record], blobs: Iterable[Blob] = ()) -> None:
        def act() -> None:
            connection = self._connection()
            with self._transaction(connection):
                cursor = connection.execute(
                    "INSERT INTO runs(run, created, parent, cut) VALUES (?, ?, ?, ?)",
                    (row.run, row.created, row.parent, row.cut),
                )
                number = int(cursor.lastrowid or 0)
                connection.execute("INSERT INTO leases(n, epoch) VALUES (?, 0)", (number,))
                _insert_blobs(connection, blobs)
                source = iter(records)
                while batch := list(islice(source, _READ_ROWS)):  # it may be a whole run, of any length
                    _insert(connection, number, batch)
            self._numbers[row.run] = number

        self._guard(act)

    def append(self, run: str, epoch: int, records: Sequence[Record], blobs: Sequence[Blob] = ()) -> None:
        def act() -> None:
            connection = self._connection()
            number = self._number(connection, run)
            with self._transaction(connection):
                held = connection.execute("SELECT epoch FROM leases WHERE n = ?", (number,)).fetchone()[0]
                if held != epoch:
                    raise LeaseLost(
                        f"expected to hold run {run} (epoch {epoch}), found that another process took it over "
                        f"(epoch {held}); nothing was appended"
                    )
                _insert_blobs(connection, blobs)
                _insert(connection, number, records)

        self._guard(act)

    def acquire(self, run: str, take_over: bool = False) -> FileLease:
        def act() -> FileLease:
            connection = self._connection()
            number = self._number(connection, run)
            with contextlib.ExitStack() as locks:
                with self._transaction(connection):
                    epoch = connection.execute("SELECT epoch FROM leases WHERE n = ?", (number,)).fetchone()[0]
                    old = FileLease(self._lock_path(run, epoch), epoch)
                    locks.callback(old.release)
                    # Again, for whoever only looks holds it for some microseconds.
                    if not any(old.lock() for _ in range(_LOCK_TRIES)) and not take_over:
                        raise LeaseHeld(
                            f"expected run {run} to be free, found {old.holder} writing to it; "
                            "wait for it, stop it, or take the run over with --take-over",
                            old.holder,
                        )
                    lease = FileLease(self._lock_path(run, epoch + 1), epoch + 1)
                    locks.callback(lease.release)
                    if not lease.lock():
                        raise LeaseHeld(f"expected run {run} to be free, found another process taking it; try again")
                    connection.execute("UPDATE leases SET epoch = ? WHERE n = ?", (epoch + 1, number))
                locks.pop_all()  # whatever failed before this frees what it had locked
            old.discard()
            return lease

        return self._guard(act)

    def holder(self, run: str) -> str:
        def act() -> str:
            connection = self._connection()
            number = self._number(connection, run)
            epoch = connection.execute("SELECT epoch FROM leases WHERE n = ?", (number,)).fetchone()[0]
            lease = FileLease(self._lock_path(run, epoch), epoch)
            return lease.holder if lease.locked else ""

        return self._guard(act)

    def _lock_path(self, run: str, epoch: int) -> Path:
        # A lock file per epoch: whoever takes over a run whose holder is only stopped needs a lock of its own.
        return self.path.with_name(f"{self.path.name}.{run}.{epoch}.lock")

    # --- reading -------------------------------------------------------------------------------------

    def read(
        self,
        run: str,
        after: int = 0,
        until: int | None = None,
        task: str | None = None,
        kinds: Iterable[str] | None = None,
    ) -> Iterator[Record]:
        wanted = None if kinds is None else list(kinds)
        for segment in clipped(self.row, run, after, until):
            yield from self._read_segment(segment, task, wanted)

    def _read_segment(self, part: Segment, task: str | None, kinds: list[str] | None) -> Iterator[Record]:
        query = "SELECT seq, header, body, salt, digest FROM events WHERE n = ? AND seq > ?"
        values: list[object] = [self._guard(lambda: self._number(self._connection(), part.run)), part.after]
        if part.until is not None:
            query += " AND seq <= ?"
            values.append(part.until)
        if task is not None:
            query += " AND coalesce(json_extract(header, '$.task'), '') = ?"
            values.append(task)
        if kinds is not None:
            query += f" AND json_extract(header, '$.kind') IN ({', '.join('?' * len(kinds))})"
            values.extend(kinds)
        cursor = self._guard(lambda: self._connection().execute(query + " ORDER BY seq", values))
        while rows := self._guard(lambda: cursor.fetchmany(_READ_ROWS)):
            for seq, header, body, salt, digest in rows:
                yield Record(seq, header.encode(), None if body is None else body.encode(), salt, digest)

    def head(self, run: str) -> tuple[int, bytes]:
        def act() -> tuple[int, bytes]:
            connection = self._connection()
            name = run
            until = 1 << 62
            while True:
                row = connection.execute(
                    "SELECT seq, digest FROM events WHERE n = ? AND seq <= ? ORDER BY seq DESC LIMIT 1",
                    (self._number(connection, name), until),
                ).fetchone()
                if row is not None:
                    return row[0], row[1]
                owner = self.row(name)
                if not owner.parent:
                    return 0, GENESIS
                name, until = owner.parent, owner.cut

        return self._guard(act)

    def row(self, run: str) -> RunRow:
        known = self._rows.get(run)
        if known is None:
            found = self._guard(
                lambda: (
                    self._connection()
                    .execute("SELECT run, created, parent, cut FROM runs WHERE run = ?", (run,))
                    .fetchone()
                )
            )
            if found is None:
                raise RunNotFound(f"expected a run, found no {run!r} in {self.path}")
            known = self._rows[run] = RunRow(*found)  # a row never changes
        return known

    def runs(self) -> list[RunRow]:
        rows = self._guard(
            lambda: self._connection().execute("SELECT run, created, parent, cut FROM runs ORDER BY n").fetchall()
        )
        return [RunRow(*row) for row in rows]

    def blob(self, digest: str) -> str | None:
        row = self._guard(
            lambda: self._connection().execute("SELECT text FROM blobs WHERE digest = ?", (digest,)).fetchone()
        )
        return None if row is None else row[0]

    # --- inbox -------------------------------------------------------------------------------------

    def post(self, run: str, kind: str, text: str) -> int:
        def act() -> int:
            connection = self._connection()
            with self._transaction(connection):
                cursor = connection.execute("INSERT INTO inbox(run, kind, text) VALUES (?, ?, ?)", (run, kind, text))
            return int(cursor.lastrowid or 0)

        return self._guard(act)

    def inbox(self, run: str, after: int) -> list[InboxRow]:
        rows = self._guard(
            lambda: (
                self._connection()
                .execute("SELECT id, run, kind, text FROM inbox WHERE run = ? AND id > ? ORDER BY id", (run, after))
                .fetchall()
            )
        )
        return [InboxRow(*row) for row in rows]

    def close(self) -> None:
        with self._lock:
            for connection in self._opened:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
            self._opened.clear()
        self._locals = threading.local()


def _insert_blobs(connection: sqlite3.Connection, blobs: Iterable[Blob]) -> None:
    for blob in blobs:
        connection.execute("INSERT OR IGNORE INTO blobs(digest, text) VALUES (?, ?)", (blob.digest, blob.text))


def _insert(connection: sqlite3.Connection, number: int, records: Sequence[Record]) -> None:
    at = 0
    for size in _ROWS_AT_ONCE:
        while len(records) - at >= size:
            values: list[object] = []
            for record in records[at : at + size]:
                body = None if record.body is None else record.body.decode()
                values += (number, record.seq, record.header.decode(), body, record.salt, record.digest)
            connection.execute(_INSERTS[size], values)
            at += size


def _statements(script: str) -> list[str]:
    """Split a script at its statements; executescript would commit the open transaction."""
    statements: list[str] = []
    pending = ""
    for line in script.strip().splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
