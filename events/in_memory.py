"""The log in this process's memory: for tests, simulation and runs that nobody needs tomorrow.

Invariant: the same promises as any other store, but for surviving the process.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence

from treering.events.codec import GENESIS, Record
from treering.events.errors import LeaseHeld, LeaseLost, RunNotFound, StoreError
from treering.events.log import Blob, InboxRow, RunRow, clipped, lineage, selected

__all__ = ["InMemoryStore"]


class InMemoryStore:
    """A LogStore that lives and dies with its process."""

    def __init__(self) -> None:
        self._rows: dict[str, RunRow] = {}
        self._records: dict[str, list[Record]] = {}
        self._blobs: dict[str, str] = {}
        self._epochs: dict[str, int] = {}
        self._holders: dict[str, _Lease] = {}
        self._inbox: list[InboxRow] = []
        self._lock = threading.RLock()

    def create(self, row: RunRow, records: Iterable[Record], blobs: Iterable[Blob] = ()) -> None:
        with self._lock:
            if row.run in self._rows:
                raise StoreError(f"expected a new run, found that {row.run} is there")
            kept, texts = list(records), {blob.digest: blob.text for blob in blobs}  # what raises leaves nothing
            self._rows[row.run] = row
            self._records[row.run] = kept
            self._epochs[row.run] = 0
            self._blobs = texts | self._blobs

    def acquire(self, run: str, take_over: bool = False) -> "_Lease":
        with self._lock:
            self.row(run)
            if run in self._holders and not take_over:
                raise LeaseHeld(
                    f"expected run {run} to be free, found a writer; wait for it, stop it, or take it over"
                )
            self._epochs[run] += 1
            lease = self._holders[run] = _Lease(self, run, self._epochs[run])
            return lease

    def holder(self, run: str) -> str:
        return "a writer of this process" if run in self._holders else ""

    def free(self, run: str, lease: "_Lease") -> None:
        """Called by the lease itself."""
        with self._lock:
            if self._holders.get(run) is lease:
                del self._holders[run]

    def append(self, run: str, epoch: int, records: Sequence[Record], blobs: Sequence[Blob] = ()) -> None:
        if self._epochs.get(run) != epoch:
            raise LeaseLost(
                f"expected to hold run {run} (epoch {epoch}), found that another writer took it over "
                f"(epoch {self._epochs.get(run)}); nothing was appended"
            )
        kept = self._records[run]
        first = records[0].seq
        if (kept[-1].seq if kept else self._rows[run].cut) >= first:
            raise StoreError(f"expected a new event, found that {first} is there")
        kept.extend(records)
        for blob in blobs:
            self._blobs.setdefault(blob.digest, blob.text)

    def row(self, run: str) -> RunRow:
        if run not in self._rows:
            raise RunNotFound(f"expected a run, found no {run!r} in this store")
        return self._rows[run]

    def read(
        self,
        run: str,
        after: int = 0,
        until: int | None = None,
        task: str | None = None,
        kinds: Iterable[str] | None = None,
    ) -> Iterator[Record]:
        self.row(run)
        yield from selected(self._records_of(run, after, until), task, kinds)

    def _records_of(self, run: str, after: int, until: int | None) -> Iterator[Record]:
        for part in clipped(self.row, run, after, until):
            # Seqs are dense within a run's own part, so that the place of each is known.
            first = self._rows[part.run].cut
            yield from self._records[part.run][
                part.after - first : None if part.until is None else part.until - first
            ]

    def head(self, run: str) -> tuple[int, bytes]:
        self.row(run)
        for segment in lineage(self.row, run)[::-1]:
            kept = self._records[segment.run]
            if segment.until is not None:
                kept = kept[: max(0, segment.until - segment.after)]
            if kept:
                return kept[-1].seq, kept[-1].digest
        return 0, GENESIS

    def runs(self) -> list[RunRow]:
        return list(self._rows.values())

    def blob(self, digest: str) -> str | None:
        return self._blobs.get(digest)

    def post(self, run: str, kind: str, text: str) -> int:
        with self._lock:
            self.row(run)
            row = InboxRow(len(self._inbox) + 1, run, kind, text)
            self._inbox.append(row)
            return row.id

    def inbox(self, run: str, after: int) -> list[InboxRow]:
        return [row for row in self._inbox[after:] if row.run == run]

    def close(self) -> None:
        """Nothing to give back."""


class _Lease:
    def __init__(self, store: InMemoryStore, run: str, epoch: int) -> None:
        self._store = store
        self._run = run
        self._epoch = epoch

    @property
    def epoch(self) -> int:
        return self._epoch

    def release(self) -> None:
        self._store.free(self._run, self)
