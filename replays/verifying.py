"""Verify: is a log what was written, and does it follow from itself?

Owns the check of a whole lineage: its chain over stored bytes, the texts of its sources, and every derived
event, computed again. It changes nothing. Invariant: what passes here folds to the state its writer had. Each record
is read once.
"""

from collections.abc import Iterable

import msgspec

from treering.events.catalogue import Event, Header, InputAdded, Refused, RunForked
from treering.events.codec import Record, decode, text_digest, to_json, verified
from treering.events.errors import BrokenChain
from treering.events.log import LogReader, Segment, lineage
from treering.runtime.deriving import DERIVED, derive
from treering.runtime.state import evolve, new_state

__all__ = ["Verified", "verify"]


class Verified(msgspec.Struct, frozen=True):
    """What was checked. `destroyed` counts bodies that are gone; from the first on, nothing is derived again."""

    run: str
    events: int
    segments: int
    derived: int
    sources: int
    destroyed: int
    digest: str


def verify(store: LogReader, run: str) -> Verified:
    """Check a run's whole lineage. Raises BrokenChain naming the first event that does not fit."""
    segments = lineage(store.row, run)
    last, head = store.head(run)
    events, derived, sources, destroyed = _refold(store, verified(store.read(run, until=last)), segments)
    if events != last:
        raise BrokenChain(events + 1, f"expected {last} events, found {events}")
    return Verified(run, events, len(segments), derived, sources, destroyed, head.hex())


def _refold(store: LogReader, records: Iterable[Record], segments: list[Segment]) -> tuple[int, int, int, int]:
    state = new_state()
    expected: tuple[Header, Event] | None = None
    first: Header | None = None
    events = derived = sources = destroyed = 0
    for record in records:
        events += 1
        stored = decode(record)
        header, event = stored.header, stored.event
        _check_owner(header, segments)
        if event is None:
            destroyed += 1
        if destroyed:
            continue
        assert event is not None
        if isinstance(event, RunForked):
            expected = None  # what the cut parted from its cause is caused again after it
        if isinstance(event, InputAdded):
            sources += _check_source(store, header, event)
        if expected is not None or isinstance(event, (*DERIVED, Refused)):
            _check_derived(expected, header, event)
            derived += 1
        else:
            first = header
        try:
            evolve(state, header, event)
        except (LookupError, AttributeError, ValueError, TypeError) as error:
            raise BrokenChain(header.seq, f"{header.kind} does not follow from the events before it") from error
        assert first is not None
        expected = None if isinstance(event, RunForked) else derive(state, first, event)
    if expected is not None and not destroyed:
        raise BrokenChain(
            state.seq + 1, f"{expected[0].kind} follows from event {state.seq}, found the end of the log"
        )
    return events, derived, sources, destroyed


def _check_owner(header: Header, segments: list[Segment]) -> None:
    for segment in segments:
        if segment.after < header.seq and (segment.until is None or header.seq <= segment.until):
            if header.run != segment.run:
                raise BrokenChain(header.seq, f"expected an event of run {segment.run}, found one of {header.run}")
            return


def _check_source(store: LogReader, header: Header, event: InputAdded) -> int:
    text = store.blob(event.source)
    if text is None:
        return 0
    if text_digest(text) != event.source:
        raise BrokenChain(header.seq, f"the text of {event.name} does not give the digest in the event")
    return 1


def _check_derived(expected: tuple[Header, Event] | None, header: Header, event: Event) -> None:
    if expected is None:
        raise BrokenChain(header.seq, f"{header.kind} does not follow from the events before it")
    about, wanted = expected
    there = (header.kind, header.task, header.op, to_json(event))
    if there != (about.kind, about.task, about.op, to_json(wanted)):
        raise BrokenChain(header.seq, f"expected {to_json(wanted).decode()}, found {to_json(event).decode()}")
