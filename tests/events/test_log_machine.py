"""Any order of what can be done to a log, on every store, against plain lists; and a file that lost its end."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from treering.events.catalogue import Header, Sampled
from treering.events.codec import GENESIS, Record, body_digest, encode, to_json, verify_chain
from treering.events.errors import LeaseHeld, LeaseLost, RunNotFound, StoreError
from treering.events.in_memory import InMemoryStore
from treering.events.log import Blob, RunRow, root_of_cut
from treering.events.sqlite import SQLiteStore


def records_after(previous: list[Record], run: str, count: int) -> list[Record]:
    made: list[Record] = []
    for seq in range(len(previous) + 1, len(previous) + 1 + count):
        body, salt = to_json(Sampled("now", to_json(seq))), bytes([seq % 250]) * 16
        header = Header(run, seq, "Sampled", 0, body_digest(salt, body), "1", seq)
        before = made[-1] if made else previous[-1] if previous else None
        made.append(encode(header, body, salt, before.digest if before else GENESIS))
    return made


class LogMachine(RuleBasedStateMachine):
    """Every store does what lists would do: a run is the list of its records, its ancestors' included."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="treering-machine-")
        self.stores = [InMemoryStore(), SQLiteStore(Path(self.folder) / "log.db", busy_timeout_s=0.2)]
        self.logs: dict[str, list[Record]] = {}
        self.epochs: dict[str, int] = {}
        self.held: dict[str, list[object]] = {}
        self.posted: list[tuple[str, int, str, str]] = []
        self.blobs: dict[str, str] = {}

    def teardown(self) -> None:
        for leases in self.held.values():
            for lease in leases:
                lease.release()
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)

    def begun(self, run: str, log: list[Record]) -> str:
        self.logs[run], self.epochs[run] = log, 0
        return run

    @rule(target=runs, count=st.integers(1, 5))
    def create(self, count):
        run = f"run{len(self.logs)}"
        log = records_after([], run, count)
        for store in self.stores:
            store.create(RunRow(run, 1), log)
        return self.begun(run, log)

    @rule(target=runs, parent=runs, place=st.integers(0, 99), count=st.integers(1, 3))
    def fork(self, parent, place, count):
        cut = 1 + place % len(self.logs[parent])
        run = f"run{len(self.logs)}"
        own = records_after(self.logs[parent][:cut], run, count)
        for store in self.stores:
            store.create(RunRow(run, 2, root_of_cut(store.row, parent, cut), cut), own)
        return self.begun(run, self.logs[parent][:cut] + own)

    @rule(run=runs, take_over=st.booleans())
    def acquire(self, run, take_over):
        if run in self.held and not take_over:
            for store in self.stores:
                with pytest.raises(LeaseHeld):
                    store.acquire(run)
            return
        taken = [store.acquire(run, take_over) for store in self.stores]
        for lease in self.held.pop(run, []):
            lease.release()  # whoever was taken over goes, and frees nothing of the new one's
        self.epochs[run] += 1
        self.held[run] = taken
        assert [lease.epoch for lease in taken] == [self.epochs[run]] * len(taken)

    @rule(run=runs)
    def release(self, run):
        for lease in self.held.pop(run, []):
            lease.release()

    @rule(run=runs, count=st.integers(1, 20), stale=st.booleans(), text=st.text("ab", max_size=3))
    def append(self, run, count, stale, text):
        more = records_after(self.logs[run], run, count)
        blobs = [Blob(f"digest of {text}", text)]
        for store in self.stores:
            if stale:
                with pytest.raises(LeaseLost):
                    store.append(run, self.epochs[run] + 1, more, blobs)
            else:
                store.append(run, self.epochs[run], more, blobs)
        if not stale:
            self.logs[run] = self.logs[run] + more
            self.blobs[blobs[0].digest] = text

    @rule(run=runs)
    def append_what_is_there(self, run):
        """The last event once more: refused, and nothing of its batch is kept."""
        row = self.stores[0].row(run)
        if len(self.logs[run]) == row.cut:
            return
        again = [self.logs[run][-1], *records_after(self.logs[run], run, 1)]
        for store in self.stores:
            with pytest.raises(StoreError):
                store.append(run, self.epochs[run], again)

    @rule(run=runs, kind=st.sampled_from(["ask", "cancel"]), text=st.text("ab", max_size=3))
    def post(self, run, kind, text):
        ids = {store.post(run, kind, text) for store in self.stores}
        assert len(ids) == 1
        self.posted.append((run, ids.pop(), kind, text))

    @rule(run=runs, after=st.integers(0, 12), until=st.none() | st.integers(0, 30))
    def read(self, run, after, until):
        expected = [one for one in self.logs[run] if one.seq > after and (until is None or one.seq <= until)]
        for store in self.stores:
            assert list(store.read(run, after, until)) == expected
            assert list(store.read(run, after, until, kinds=["Other"])) == []

    @rule(run=runs, after=st.integers(0, 5))
    def inbox(self, run, after):
        expected = [(row, kind, text) for of, row, kind, text in self.posted if of == run and row > after]
        for store in self.stores:
            assert [(row.id, row.kind, row.text) for row in store.inbox(run, after)] == expected

    @rule()
    def reopen(self):
        if not self.held:
            self.stores[1].close()
            self.stores[1] = SQLiteStore(Path(self.folder) / "log.db", busy_timeout_s=0.2)

    @invariant()
    def heads_and_rows_are_those_of_the_lists(self):
        for store in self.stores:
            assert [row.run for row in store.runs()] == list(self.logs)
            for run, log in self.logs.items():
                assert store.head(run) == (log[-1].seq, log[-1].digest)
                assert verify_chain(store.read(run)) == len(log)
            assert all(store.blob(digest) == text for digest, text in self.blobs.items())
            with pytest.raises(RunNotFound):
                store.head("nobody")


LogMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None, derandomize=True)
TestLogMachine = LogMachine.TestCase


def test_a_file_cut_off_anywhere_gives_what_was_committed_or_says_that_it_is_damaged(tmp_path):
    """The log's last commit, cut off at any byte: the commits before it are there whole, and can be gone on from."""
    store = SQLiteStore(tmp_path / "log.db")
    log = records_after([], "r", 3)
    store.create(RunRow("r", 1), log)
    lease = store.acquire("r")
    sizes = []
    for _ in range(2):
        more = records_after(log, "r", 2)
        store.append("r", lease.epoch, more)
        log += more
        sizes.append((tmp_path / "log.db-wal").stat().st_size)
    begun, ended = sizes
    assert begun < ended
    edges = [begun + at for at in range(28)] + [ended - at for at in range(1, 28)]
    for number, size in enumerate(sorted({*edges, *range(begun, ended, 509)})):
        copy = tmp_path / str(number)
        copy.mkdir()
        shutil.copy(tmp_path / "log.db", copy / "log.db")
        (copy / "log.db-wal").write_bytes((tmp_path / "log.db-wal").read_bytes()[:size])
        again = SQLiteStore(copy / "log.db")
        assert list(again.read("r")) == log[:5], f"cut at byte {size} of {begun} to {ended}"
        again.append("r", 1, log[5:])
        assert verify_chain(again.read("r")) == 7
        again.close()
        shutil.rmtree(copy)
    lease.release()
    store.close()
    whole = (tmp_path / "log.db").read_bytes()
    for size in range(0, len(whole), 4051):
        copy = tmp_path / "cut.db"
        copy.write_bytes(whole[:size])
        try:
            found = SQLiteStore(copy)
            read = list(found.read("r"))
        except (StoreError, RunNotFound) as error:
            assert "damaged" in str(error) or size == 0, str(error)  # noqa: PT017
        else:
            assert read == log[: len(read)], f"cut at byte {size}"
        for name in ("cut.db", "cut.db-wal", "cut.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
