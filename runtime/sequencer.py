"""The sequencer: the one place where an event gets its number.

Owns seq, the chain, the folded state and the queue to the writer. One per run, on the event loop, with no
await inside `append`: assign, derive what follows, chain, fold, enqueue. Invariant: state may run ahead of the
disk; `durable` returns only for what is on it, and nobody acts on an event before. A failed commit poisons
the run: nothing more is answered.
"""

from collections.abc import Callable, Sequence

from anyio.lowlevel import checkpoint_if_cancelled

from treering.events.catalogue import Event, Header
from treering.events.codec import Record, seal
from treering.events.errors import StoreError
from treering.events.log import Blob
from treering.runtime.deriving import derive
from treering.runtime.diagnostics import warn
from treering.runtime.seams import Bell, Seams, Writer, new_bell
from treering.runtime.state import RunState, evolve

__all__ = ["Observer", "Sequencer"]

Observer = Callable[[Header, Event], None]
"""Told of each event once it is on disk. For display only: one that raises is dropped, and the run goes on."""


class Sequencer:
    """Appends events to one run.

    `head` is the chain digest at `state.seq`. `on_poison` is called once, when a commit has failed.
    """

    def __init__(
        self,
        run: str,
        state: RunState,
        head: bytes,
        writer: Writer,
        seams: Seams,
        observers: Sequence[Observer] = (),
        on_poison: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.run = run
        self.state = state
        self.head = head
        self.poisoned: BaseException | None = None
        self.durable_seq = state.seq
        self._writer = writer
        self._seams = seams
        self._observers = list(observers)
        self._on_poison = on_poison
        self._records: list[Record] = []
        self._blobs: list[Blob] = []
        self._told: list[tuple[Header, Event]] = []
        self._flying = False
        self._flown_seq = 0
        self._flown_told: list[tuple[Header, Event]] = []
        self._landed: Bell | None = None
        self._next_landed: Bell | None = None

    def append(
        self,
        event: Event,
        task: str = "",
        op: int = 0,
        attempt: int = 1,
        blobs: Sequence[Blob] = (),
        more: bool = False,
    ) -> tuple[int, Event | None]:
        """Record an event and all that it causes; its seq, and the refusal that is its outcome, if any.

        They share a transaction, because a batch takes the whole queue and nothing awaits in between. With
        `more`, so does the event that the caller appends next, before it awaits anything.
        """
        if self.poisoned is not None:
            raise StoreError(f"the run was stopped: {self.poisoned}") from self.poisoned
        outcome: Event | None = None
        self._blobs.extend(blobs)
        first = self._one(event, task, op, attempt)
        caused: Event = event
        while (derived := derive(self.state, first, caused)) is not None:
            about, caused = derived
            self._one(caused, about.task, about.op, about.attempt)
            if about.op:
                outcome = caused
        if not self._flying and not more:
            self._flying = True
            self._writer.soon(self._fly)
        return first.seq, outcome

    async def record(
        self, event: Event, task: str = "", op: int = 0, attempt: int = 1, blobs: Sequence[Blob] = ()
    ) -> None:
        """Append an event and return once it is on disk. Raises StoreError if it will never be."""
        seq, _ = self.append(event, task, op, attempt, blobs)
        await self.durable(seq)

    def keep(self, blob: Blob) -> None:
        """A blob that is committed with the next event."""
        self._blobs.append(blob)

    async def durable(self, seq: int | None = None) -> None:
        """Return once event `seq` (or all so far) is on disk. Raises StoreError if it will never be."""
        seq = self.state.seq if seq is None else seq
        while self.durable_seq < seq:
            if self.poisoned is not None:
                raise StoreError(f"the run was stopped: {self.poisoned}") from self.poisoned
            if seq <= self._flown_seq:
                if self._landed is None:
                    self._landed = new_bell()
                await self._landed.wait()
            else:
                if self._next_landed is None:
                    self._next_landed = new_bell()
                await self._next_landed.wait()
        await checkpoint_if_cancelled()  # who was ended from above meanwhile acts no more

    def _tell(self, told: Sequence[tuple[Header, Event]]) -> None:
        """Tell the observers, whose waiters are awake already; one that raises is reported, and told no more."""
        for observer in list(self._observers):
            try:
                for header, event in told:
                    observer(header, event)
            except Exception as error:
                self._observers.remove(observer)
                warn(self.run, "an observer raised and is told no more", observer=repr(observer), error=repr(error))

    def _one(self, event: Event, task: str, op: int, attempt: int) -> Header:
        state, seams = self.state, self._seams
        header, record = seal(
            event, self.run, state.seq + 1, seams.now_ms(), seams.entropy(16), self.head, task, op, attempt
        )
        try:
            evolve(state, header, event)
        except Exception as error:
            # The state is half changed: an event after this one would leave a gap in the log.
            self._poison(error)
            raise StoreError(f"the run was stopped: event {header.seq} does not fit its state ({error!r})") from error
        self.head = record.digest
        self._records.append(record)
        if self._observers:
            self._told.append((header, event))
        return header

    def _poison(self, error: BaseException) -> None:
        self.poisoned = error
        if self._on_poison is not None:
            self._on_poison(error)

    def _fly(self) -> None:
        """Hand all that waits to the writer. Loops where the writer commits at once."""
        while self._records and self.poisoned is None:
            commit = (self._records, self._blobs)
            self._flown_seq, self._flown_told = self._records[-1].seq, self._told
            self._records, self._blobs, self._told = [], [], []
            self._landed, self._next_landed = self._next_landed, None
            self._flying = True
            self._writer.submit(commit, self._land)
            if self._flying:
                return

    def _land(self, failed: BaseException | None) -> None:
        self._flying = False
        landed = self._landed
        if failed is not None:
            self._poison(failed)
            if self._next_landed is not None:
                self._next_landed.set()
        else:
            self.durable_seq = self._flown_seq
        if landed is not None:
            self._landed = None
            landed.set()
        if failed is None:
            self._tell(self._flown_told)
        if failed is None and self._records:
            self._fly()
