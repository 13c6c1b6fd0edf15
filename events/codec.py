"""From events to stored bytes and back, and the chain over them.

Owns the header and body encoding, the salted body digest, the chain digest and the lifting of old versions.
It never touches a store. Invariant: what the chain covers is bytes as stored; decoding comes after.
"""

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any, cast

import msgspec

from treering.events.catalogue import EVENT_TYPES, Event, Header
from treering.events.errors import BrokenChain, StoreError

__all__ = [
    "GENESIS",
    "VERSIONS",
    "Record",
    "Stored",
    "Versions",
    "body_digest",
    "chain_digest",
    "decode",
    "decode_body",
    "decode_header",
    "encode",
    "seal",
    "text_digest",
    "to_json",
    "verified",
    "verify_chain",
]

GENESIS = bytes(32)
"""What the chain of a run that is no fork begins from."""

_encoder = msgspec.json.Encoder()
_header_decoder = msgspec.json.Decoder(Header)
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    name: msgspec.json.Decoder(kind) for name, kind in EVENT_TYPES.items()
}


class Versions(msgspec.Struct, frozen=True):
    """What is written, and how what was written before is read.

    `current` holds the kinds whose version is not 1; `upcasts`, by kind and version, the pure step that lifts a
    decoded body of that version by one.
    """

    current: dict[str, int] = {}
    upcasts: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}


VERSIONS = Versions()
"""Those of this program."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One event as a store keeps it. `body` and `salt` are None where the body was destroyed."""

    seq: int
    header: bytes
    body: bytes | None
    salt: bytes | None
    digest: bytes


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One event as a reader meets it. `event` is None where the body was destroyed."""

    header: Header
    event: Event | None

    @property
    def seq(self) -> int:
        return self.header.seq


def text_digest(text: str) -> str:
    """The address of a text among the blobs: BLAKE2b-160 of its UTF-8, in hex."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def body_digest(salt: bytes, body: bytes) -> str:
    """The digest that a header holds of a body; the salt keeps short bodies from being guessed."""
    return blake2b(salt + body, digest_size=20).hexdigest()


def chain_digest(previous: bytes, header: bytes) -> bytes:
    """The chain's next link: BLAKE2b-256 over the previous link and the header's bytes."""
    return blake2b(previous + header, digest_size=32).digest()


def seal(
    event: Event,
    run: str,
    seq: int,
    at: int,
    salt: bytes,
    previous: bytes,
    task: str = "",
    op: int = 0,
    attempt: int = 1,
    versions: Versions = VERSIONS,
) -> tuple[Header, Record]:
    """An event's header, and the record of it chained after `previous`."""
    body = _encoder.encode(event)
    kind = type(event).__name__
    version = versions.current.get(kind, 1)
    header = Header(run, seq, kind, at, body_digest(salt, body), task, op, attempt, version)
    head = _encoder.encode(header)
    return header, Record(seq, head, body, salt, chain_digest(previous, head))


def encode(header: Header, body: bytes, salt: bytes, previous: bytes) -> Record:
    """The record of an event whose encoded body is `body`, chained after `previous`."""
    head = _encoder.encode(header)
    return Record(header.seq, head, body, salt, chain_digest(previous, head))


def to_json(value: Any) -> bytes:
    """`value` as compact JSON. Raises TypeError, naming the type, for what JSON cannot hold."""
    return _encoder.encode(value)


def decode_header(header: bytes) -> Header:
    """The header in these bytes."""
    return _header_decoder.decode(header)


def decode_body(kind: str, version: int, body: bytes, versions: Versions = VERSIONS) -> Event:
    """The event in these bytes, lifted to the current version.

    Raises StoreError for a kind or a version that this program does not know, or bytes that do not fit.
    """
    decoder = _decoders.get(kind)
    current = versions.current.get(kind, 1)
    if decoder is None or version > current:
        raise StoreError(
            f"expected events known to this version, found {kind} version {version}: "
            "the log was written by a newer treering; upgrade to read it"
        )
    try:
        if version == current:
            return cast(Event, decoder.decode(body))
        lifted = msgspec.json.decode(body)
        for step in range(version, current):
            lifted = versions.upcasts[kind, step](lifted)
        return cast(Event, decoder.decode(_encoder.encode(lifted)))
    except msgspec.DecodeError as error:
        raise StoreError(f"expected a body of {kind}, found bytes that are none ({error})") from error


def decode(record: Record, versions: Versions = VERSIONS) -> Stored:
    """The event in a record."""
    header = _header_decoder.decode(record.header)
    if record.body is None:
        return Stored(header, None)
    return Stored(header, decode_body(header.kind, header.version, record.body, versions))


def verify_chain(records: Iterable[Record], previous: bytes = GENESIS, after: int = 0) -> int:
    """Recompute the chain over stored bytes; the number of records seen. Raises BrokenChain as `verified` does."""
    return sum(1 for _ in verified(records, previous, after))


def verified(records: Iterable[Record], previous: bytes = GENESIS, after: int = 0) -> Iterator[Record]:
    """The records, each once its link of the chain is recomputed over stored bytes.

    Raises BrokenChain naming the first record that does not fit: a gap, a changed header, a changed body.
    """
    for expected, record in enumerate(records, start=after + 1):
        if record.seq != expected:
            raise BrokenChain(expected, f"expected event {expected}, found event {record.seq}")
        if chain_digest(previous, record.header) != record.digest:
            raise BrokenChain(expected, "its header does not give the digest that is stored with it")
        try:
            header = decode_header(record.header)
        except msgspec.DecodeError as error:
            raise BrokenChain(expected, f"its header cannot be read ({error})") from error
        if header.seq != expected:
            raise BrokenChain(expected, f"its header says event {header.seq}")
        if record.body is not None and body_digest(record.salt or b"", record.body) != header.body:
            raise BrokenChain(expected, "its body does not give the digest in its header")
        previous = record.digest
        yield record
