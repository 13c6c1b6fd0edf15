"""What every store must do, and what the file of the default one must bear."""

import sqlite3
import subprocess
import sys

import pytest

from treering.events.catalogue import Header, Sampled
from treering.events.codec import GENESIS, Record, body_digest, decode, encode, to_json, verify_chain
from treering.events.errors import LeaseHeld, LeaseLost, RunNotFound, StoreError
from treering.events.in_memory import InMemoryStore
from treering.events.log import Blob, RunRow, find_run, lineage, root_of_cut
from treering.events.sqlite import SQLiteStore

SALT = b"s" * 16


def chained(run: str, first: int, count: int, previous: bytes = GENESIS, task: str = "1") -> list[Record]:
    """`count` events of a run from `first` on; every third is of task 2."""
    records = []
    for seq in range(first, first + count):
        event = Sampled("now", str(seq).encode(), "")
        body = to_json({"what": event.what, "value": seq})
        header = Header(run, seq, "Sampled", 5, body_digest(SALT, body), "2" if seq % 3 == 0 else task, seq)
        record = encode(header, body, SALT, previous)
        records.append(record)
        previous = record.digest
    return records


def begin(store, run: str, count: int = 3) -> list[Record]:
    records = chained(run, 1, count)
    store.create(RunRow(run, 1), records)
    return records


def fork(store, run: str, parent: str, cut: int, count: int = 2) -> list[Record]:
    """A fork as the runtime makes it: flat, and chained from its parent's event at the cut."""
    at_cut = next(iter(store.read(parent, after=cut - 1, until=cut)))
    records = chained(run, cut + 1, count, at_cut.digest)
    store.create(RunRow(run, 2, root_of_cut(store.row, parent, cut), cut), records)
    return records


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    made = InMemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "log.sqlite")
    yield made
    made.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.sqlite"


# --- every store --------------------------------------------------------------------------------------------


def test_what_was_created_and_appended_is_read_in_order(store):
    """Records come back byte for byte, and their chain holds."""
    begun = begin(store, "a")
    lease = store.acquire("a")
    more = chained("a", 4, 4, begun[-1].digest)
    store.append("a", lease.epoch, more)
    assert list(store.read("a")) == begun + more
    assert verify_chain(store.read("a")) == 7
    assert store.head("a") == (7, more[-1].digest)


def test_reads_are_bounded_and_filtered(store):
    """`after` is exclusive, `until` inclusive; task and kinds choose."""
    begin(store, "a", 9)

    def seqs(**bounds):
        return [record.seq for record in store.read("a", **bounds)]

    assert seqs(after=3) == [4, 5, 6, 7, 8, 9]
    assert seqs(until=3) == [1, 2, 3]
    assert seqs(after=2, until=5) == [3, 4, 5]
    assert seqs(after=5, until=5) == []
    assert seqs(task="2") == [3, 6, 9]
    assert seqs(task="2", after=3, until=8) == [6]
    assert seqs(kinds=["Sampled"], until=2) == [1, 2]
    assert seqs(kinds=["ModelCalled"]) == []
    assert seqs(kinds=[]) == []


def test_what_is_not_there_is_said_so(store):
    """Reading, asking for the head or the lease of an unknown run raises RunNotFound."""
    for ask in (lambda: list(store.read("no")), lambda: store.head("no"), lambda: store.acquire("no")):
        with pytest.raises(RunNotFound):
            ask()


def test_a_run_is_created_once(store):
    """A second run of the same name is refused and changes nothing."""
    begun = begin(store, "a")
    with pytest.raises(StoreError):
        store.create(RunRow("a", 9), chained("a", 1, 1))
    assert list(store.read("a")) == begun
    assert store.runs() == [RunRow("a", 1)]


def test_a_run_without_events_starts_at_the_genesis(store):
    """The head of an empty run is before its first event."""
    store.create(RunRow("a", 1), [])
    assert store.head("a") == (0, GENESIS)


def test_a_fork_of_a_fork_reads_its_whole_lineage(store):
    """Ancestors first, each up to its cut, in one unbroken chain."""
    a = begin(store, "a", 5)
    b = fork(store, "b", "a", 3, 4)
    c = fork(store, "c", "b", 5, 2)
    assert list(store.read("b")) == a[:3] + b
    assert list(store.read("c")) == a[:3] + b[:2] + c
    assert list(store.read("c", after=2, until=6)) == [a[2], *b[:2], c[0]]
    for run, last in (("a", 5), ("b", 7), ("c", 7)):
        assert verify_chain(store.read(run)) == last
        assert store.head(run)[0] == last
    assert [segment.run for segment in lineage(store.row, "c")] == ["a", "b", "c"]


def test_a_lineage_is_flat(store):
    """A fork inside an ancestor's part points at that ancestor, so that no chain of forks grows."""
    a = begin(store, "a", 5)
    fork(store, "b", "a", 4)
    c = fork(store, "c", "b", 2)
    row = next(row for row in store.runs() if row.run == "c")
    assert (row.parent, row.cut) == ("a", 2)
    assert list(store.read("c")) == a[:2] + c


def test_a_fork_is_untouched_by_what_its_parent_does_later(store):
    """Events of the parent after the cut are not the fork's."""
    a = begin(store, "a")
    b = fork(store, "b", "a", 3)
    store.append("a", store.acquire("a").epoch, chained("a", 4, 2, a[-1].digest))
    assert list(store.read("b")) == a + b
    assert store.head("b")[0] == 5


def test_one_writer_at_a_time(store):
    """A held lease is refused to others, until it is released."""
    begin(store, "a")
    assert store.holder("a") == ""
    lease = store.acquire("a")
    assert store.holder("a")
    with pytest.raises(LeaseHeld):
        store.acquire("a")
    lease.release()
    lease.release()
    assert store.holder("a") == ""
    assert store.acquire("a").epoch == lease.epoch + 1


def test_who_was_taken_over_appends_nothing(store):
    """The old epoch is refused with LeaseLost; the log holds only what the new writer appends."""
    begun = begin(store, "a")
    old = store.acquire("a")
    new = store.acquire("a", take_over=True)
    more = chained("a", 4, 1, begun[-1].digest)
    with pytest.raises(LeaseLost, match="nothing was appended"):
        store.append("a", old.epoch, more)
    assert list(store.read("a")) == begun
    store.append("a", new.epoch, more)
    old.release()
    with pytest.raises(LeaseHeld):
        store.acquire("a")


def test_a_seq_is_used_once(store):
    """A record at a seq that is there is refused, and with it its whole batch."""
    begun = begin(store, "a")
    lease = store.acquire("a")
    with pytest.raises(StoreError):
        store.append("a", lease.epoch, chained("a", 3, 3, begun[1].digest), [Blob("d", "lost")])
    assert list(store.read("a")) == begun
    assert store.blob("d") is None


def test_blobs_are_found_by_their_digest_and_kept_once(store):
    """The first text at an address stays."""
    store.create(RunRow("a", 1), chained("a", 1, 1), [Blob("d1", "one")])
    begun = list(store.read("a"))
    store.append(
        "a", store.acquire("a").epoch, chained("a", 2, 1, begun[-1].digest), [Blob("d1", "x"), Blob("d2", "")]
    )
    assert [store.blob(digest) for digest in ("d1", "d2", "d3")] == ["one", "", None]


def test_the_inbox_keeps_its_order(store):
    """Ids grow over all runs; each run sees its own, after what it took."""
    begin(store, "a")
    begin(store, "b")
    ids = [store.post(run, "ask", text) for run, text in (("a", "1"), ("b", "2"), ("a", "3"))]
    assert ids == sorted(set(ids))
    assert [row.text for row in store.inbox("a", 0)] == ["1", "3"]
    assert [row.text for row in store.inbox("a", ids[0])] == ["3"]
    assert [row.text for row in store.inbox("b", 0)] == ["2"]
    assert store.inbox("a", ids[2]) == []


def test_runs_are_found_by_name_beginning_or_last(store):
    """An ambiguous or unknown name is refused."""
    with pytest.raises(RunNotFound):
        find_run(store, "last")
    begin(store, "abc")
    begin(store, "abd")
    assert find_run(store, "last").run == "abd"
    assert find_run(store, "abc").run == "abc"
    for name in ("ab", "x", ""):
        with pytest.raises(RunNotFound):
            find_run(store, name)


# --- the SQLite file ------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[StoreError]) -> None:
    assert str(error.value)
    assert "\n" not in str(error.value)


def test_a_log_outlives_its_store(path):
    """What was appended is there for the next who opens the file."""
    first = SQLiteStore(path)
    begun = begin(first, "a")
    first.close()
    second = SQLiteStore(path)
    assert list(second.read("a")) == begun
    second.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events",
        "UPDATE events SET header = '{}'",
        "UPDATE events SET body = '{}'",
        "UPDATE events SET salt = x'00', body = NULL",
        "UPDATE events SET digest = x'00', body = NULL, salt = NULL",
        "UPDATE events SET seq = seq + 100, body = NULL, salt = NULL",
        "DELETE FROM blobs",
        "UPDATE blobs SET text = 'other'",
        "UPDATE blobs SET digest = 'other', text = NULL",
        "DELETE FROM runs",
        "UPDATE runs SET created = 7",
    ],
)
def test_the_database_refuses_to_change_the_past(path, statement):
    """Whatever code runs, the triggers refuse it."""
    store = SQLiteStore(path)
    store.create(RunRow("a", 1), chained("a", 1, 3), [Blob("d", "text")])
    store.close()
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="never"):
        connection.execute(statement)
    connection.close()


def test_a_body_can_be_destroyed_and_the_chain_still_verifies(path):
    """Redaction takes a body with its salt; the header and its place in the chain stay."""
    store = SQLiteStore(path)
    store.create(RunRow("a", 1), chained("a", 1, 3), [Blob("d", "text")])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE events SET body = NULL, salt = NULL WHERE seq = 2")
    connection.execute("UPDATE blobs SET text = NULL")
    connection.commit()
    connection.close()
    assert verify_chain(store.read("a")) == 3
    assert [decode(record).event is None for record in store.read("a")] == [False, True, False]
    assert store.blob("d") is None
    store.close()


def test_a_newer_store_is_refused(path):
    """A file of a later schema says so and names the remedy."""
    SQLiteStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer treering") as error:
        SQLiteStore(path)
    one_line(error)


def test_a_store_of_the_first_version_goes_on(path):
    """Its table of events has three generated columns more, which nobody asks for now."""
    SQLiteStore(path).close()
    connection = sqlite3.connect(path)
    connection.executescript(
        """DROP VIEW log; DROP TABLE events;
        CREATE TABLE events(
            n INTEGER NOT NULL, seq INTEGER NOT NULL, header TEXT NOT NULL, body TEXT, salt BLOB, digest BLOB NOT NULL,
            kind TEXT GENERATED ALWAYS AS (json_extract(header, '$.kind')) VIRTUAL,
            task TEXT GENERATED ALWAYS AS (coalesce(json_extract(header, '$.task'), '')) VIRTUAL,
            op INTEGER GENERATED ALWAYS AS (coalesce(json_extract(header, '$.op'), 0)) VIRTUAL,
            PRIMARY KEY(n, seq));
        PRAGMA user_version = 1;"""
    )
    connection.close()
    store = SQLiteStore(path)
    records = begin(store, "a", 7)
    assert list(store.read("a")) == records
    assert [record.seq for record in store.read("a", task="2", kinds=["Sampled"])] == [3, 6]
    store.close()


def test_what_headers_say_stands_in_a_view_for_people(path):
    """The view `log` shows each event of each run with its kind, task and op."""
    store = SQLiteStore(path)
    begin(store, "a", 3)
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT run, seq, kind, task, op, body FROM log ORDER BY seq").fetchall()
    connection.close()
    assert rows[2] == ("a", 3, "Sampled", "2", 3, '{"what":"now","value":3}')
    store.close()


def test_more_records_than_one_statement_holds_are_appended_in_order(path):
    """A batch of any size is all there, and a batch with one bad record is not there at all."""
    store = SQLiteStore(path)
    records = begin(store, "a", 1)
    lease = store.acquire("a")
    for size in (1, 3, 63, 64, 65, 150):
        more = chained("a", len(records) + 1, size, records[-1].digest)
        store.append("a", lease.epoch, more)
        records += more
    assert list(store.read("a")) == records
    more = chained("a", len(records) + 1, 70, records[-1].digest)
    with pytest.raises(StoreError):
        store.append("a", lease.epoch, [*more, records[-1]])
    assert store.head("a")[0] == len(records)
    lease.release()
    store.close()


@pytest.mark.parametrize("version", [0, 1, 99])
def test_another_database_is_refused(path, version):
    """A SQLite file of another program is neither read nor changed."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs(x)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(StoreError, match="another SQLite database") as error:
        SQLiteStore(path)
    one_line(error)
    connection = sqlite3.connect(path)
    assert [row[0] for row in connection.execute("SELECT name FROM sqlite_master")] == ["theirs"]
    connection.close()


def test_a_file_that_is_no_database_is_refused(path):
    """So is a text file, which keeps its content."""
    path.write_text("Dear diary, today I opened the wrong file.\n" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError) as error:
        SQLiteStore(path)
    one_line(error)
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_a_truncated_file_is_said_to_be_damaged(path, share):
    """A file that lost its end gives a clear error, or whole records with a chain that holds."""
    store = SQLiteStore(path)
    begin(store, "a", 400)
    store._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    def read() -> int:
        opened = SQLiteStore(path)
        try:
            return verify_chain(opened.read("a"))
        finally:
            opened.close()

    with pytest.raises(StoreError) as error:
        read()
    one_line(error)


def test_a_full_disk_is_said_so_and_loses_nothing(path):
    """The batch that found no room is gone as a whole; what was there stays."""
    store = SQLiteStore(path)
    begun = begin(store, "a")
    lease = store.acquire("a")
    connection = store._connection()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StoreError, match="the disk took no more") as error:
        store.append("a", lease.epoch, chained("a", 4, 2, begun[-1].digest), [Blob("d", "x" * 1_000_000)])
    one_line(error)
    assert list(store.read("a")) == begun
    assert store.blob("d") is None
    connection.execute("PRAGMA max_page_count = 100000")
    store.append("a", lease.epoch, chained("a", 4, 2, begun[-1].digest))
    assert verify_chain(store.read("a")) == 5
    store.close()


def test_a_store_where_none_can_be_is_refused(tmp_path):
    """A folder that is a file, and a file that is a folder."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "log.sqlite", tmp_path / "folder"):
        with pytest.raises(StoreError) as error:
            SQLiteStore(place)
        one_line(error)


_APPEND = """
import sys
sys.path.insert(0, sys.argv[3])
from test_stores import begin, chained
from treering.events.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1])
run = sys.argv[2]
previous = begin(store, run)[-1].digest
lease = store.acquire(run)
for n in range(60):
    records = chained(run, 4 + 3 * n, 3, previous)
    store.append(run, lease.epoch, records)
    previous = records[-1].digest
store.close()
"""


def test_two_processes_append_two_runs_in_one_file(path):
    """They wait for each other and never fail."""
    here = __file__.rsplit("/", 1)[0]
    workers = [
        subprocess.Popen([sys.executable, "-c", _APPEND, str(path), run, here], stderr=subprocess.PIPE, text=True)
        for run in ("a", "b")
    ]
    for worker in workers:
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
    store = SQLiteStore(path)
    assert verify_chain(store.read("a")) == verify_chain(store.read("b")) == 183
    store.close()


def test_the_lease_of_a_dead_process_is_free(path):
    """The operating system frees the lock, so that the next writer need not wait."""
    store = SQLiteStore(path)
    begin(store, "a")
    code = (
        "import sys, os; from treering.events.sqlite import SQLiteStore; "
        "lease = SQLiteStore(sys.argv[1]).acquire('a'); print(lease.epoch, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "1"
        with pytest.raises(LeaseHeld):
            store.acquire("a")
        holder.kill()
    assert store.acquire("a").epoch == 2
    store.close()


@pytest.mark.parametrize("fails", ["the next lock", "the commit"])
def test_a_lease_that_cannot_be_taken_leaves_no_lock_behind(tmp_path, fails):
    """Whatever fails on the way, the same process can take the run once that is over."""
    store = SQLiteStore(tmp_path / "log.db", busy_timeout_s=0.1)
    store.create(RunRow("r", 1), [])
    store.acquire("r").release()
    blocked = tmp_path / "log.db.r.2.lock"
    if fails == "the next lock":
        blocked.mkdir()
    else:
        other = sqlite3.connect(tmp_path / "log.db")
        other.execute("CREATE TRIGGER busy BEFORE UPDATE ON leases BEGIN SELECT RAISE(ABORT, 'not now'); END")
    with pytest.raises(StoreError):
        store.acquire("r")
    if fails == "the next lock":
        blocked.rmdir()
    else:
        other.execute("DROP TRIGGER busy")
        other.close()
    assert store.acquire("r").epoch == 2
