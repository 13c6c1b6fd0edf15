"""From events to bytes and back, the chain over them, and a log written long ago."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.events.catalogue import (
    Cause,
    Entry,
    Evicted,
    Failure,
    Header,
    HitRecord,
    LogSpan,
    MemoryRef,
    ModelCalled,
    ModelReplied,
    Recalled,
    Remembered,
    Sampled,
    SourceSpan,
    Usage,
    Used,
)
from treering.events.codec import (
    GENESIS,
    Record,
    Versions,
    body_digest,
    decode,
    decode_body,
    decode_header,
    encode,
    seal,
    text_digest,
    to_json,
    verify_chain,
)
from treering.events.errors import BrokenChain, StoreError
from treering.runtime.state import evolve, new_state

GOLDEN = Path(__file__).parent / "golden" / "v1.jsonl"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
counts = st.integers(0, 1 << 40)
refs = st.one_of(
    st.builds(SourceSpan, texts, counts, counts),
    st.builds(MemoryRef, texts),
    st.builds(LogSpan, texts, counts, texts, counts, counts),
)
entries = st.builds(Entry, texts, st.lists(texts | refs, max_size=3).map(tuple), counts, st.booleans())
usages = st.builds(Usage, counts, counts, counts, st.floats(0, 1e6), counts)
events = st.one_of(
    st.builds(
        ModelCalled,
        texts,
        st.lists(entries, max_size=3).map(tuple),
        counts,
        counts,
        st.floats(0, 2),
        stop=st.tuples(texts),
    ),
    st.builds(
        ModelReplied,
        texts,
        texts,
        counts,
        usages,
        st.none() | st.floats(-99, 0),
        st.none() | st.builds(Failure, texts, texts),
    ),
    st.builds(Remembered, texts, texts, counts, st.lists(refs, max_size=3).map(tuple), st.booleans(), texts),
    st.builds(Recalled, texts, st.lists(st.builds(HitRecord, refs, st.floats(0, 9), texts), max_size=3).map(tuple)),
    st.builds(Used, st.lists(refs, max_size=3).map(tuple), texts),
    st.builds(Evicted, texts, counts, st.builds(Cause, counts, texts)),
)
headers = st.builds(Header, texts, counts, texts, counts, texts, texts, counts, counts)


def record_of(event, seq: int = 1, previous: bytes = GENESIS, version: int = 1) -> Record:
    body, salt = to_json(event), bytes([seq]) * 16
    header = Header("r", seq, type(event).__name__, 7, body_digest(salt, body), "1", seq, 1, version)
    return encode(header, body, salt, previous)


def log_of(count: int) -> list[Record]:
    records: list[Record] = []
    for seq in range(1, count + 1):
        event = ModelReplied(f"reply {seq}", tokens=seq)
        records.append(record_of(event, seq, records[-1].digest if records else GENESIS))
    return records


@given(events)
def test_an_event_comes_back_as_it_was(event):
    """Encoding and decoding lose nothing."""
    record = record_of(event)
    assert decode(record).event == event
    assert verify_chain([record]) == 1


@given(headers)
def test_a_header_comes_back_as_it_was(header):
    """Encoding and decoding lose nothing."""
    assert decode_header(to_json(header)) == header


def test_every_byte_of_a_record_counts():
    """The chain finds any changed byte of a header or a body, and names the event."""
    records = log_of(3)
    for field in ("header", "body", "salt", "digest"):
        whole = getattr(records[1], field)
        for place in range(len(whole)):
            changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            forged = [records[0], msgspec.structs.replace(records[1], **{field: changed}), records[2]]
            with pytest.raises(BrokenChain) as found:
                verify_chain(forged)
            assert found.value.seq == 2


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_gap_is_found(gone):
    """A log without one of its events is broken there; only a missing end cannot be seen from inside."""
    records = log_of(4)
    with pytest.raises(BrokenChain) as found:
        verify_chain(records[:gone] + records[gone + 1 :])
    assert found.value.seq == gone + 1


def test_events_in_another_order_or_of_another_log_are_found():
    """Neither a swap nor a record that was chained elsewhere fits."""
    records = log_of(3)
    with pytest.raises(BrokenChain):
        verify_chain([records[1], records[0], records[2]])
    with pytest.raises(BrokenChain):
        verify_chain([records[0], record_of(ModelReplied("other"), 2), records[2]])


def test_a_record_that_says_another_seq_is_found():
    """The header's own seq counts, even where the chain is right."""
    with pytest.raises(BrokenChain, match="says event 9"):
        verify_chain([msgspec.structs.replace(record_of(ModelReplied("x"), 9), seq=1)])


def test_a_destroyed_body_leaves_the_chain_whole():
    """A reader meets it as None; the header is still there."""
    records = log_of(3)
    records[1] = msgspec.structs.replace(records[1], body=None, salt=None)
    assert verify_chain(records) == 3
    assert decode(records[1]).event is None
    assert decode(records[1]).header.kind == "ModelReplied"


@pytest.mark.parametrize(("kind", "version"), [("Telepathy", 1), ("ModelReplied", 2), ("Telepathy", 3)])
def test_what_a_newer_program_wrote_is_an_error(kind, version):
    """An unknown kind or version is never skipped."""
    with pytest.raises(StoreError, match="newer treering"):
        decode_body(kind, version, b"{}")
    header = Header("r", 1, kind, 7, body_digest(b"", b"{}"), version=version)
    with pytest.raises(StoreError, match="newer treering"):
        decode(encode(header, b"{}", b"", GENESIS))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"text": 3}', b"\xff"])
def test_bytes_that_are_no_body_are_an_error(body):
    """The line names the kind."""
    with pytest.raises(StoreError, match="ModelReplied"):
        decode_body("ModelReplied", 1, body)


def test_unknown_fields_are_tolerated():
    """A field that a later version added does not stop an older reader."""
    assert decode_body("ModelReplied", 1, b'{"text": "hm", "mood": [1]}') == ModelReplied("hm")
    assert decode_header(b'{"run":"r","seq":1,"kind":"K","at":2,"body":"","new":{}}') == Header("r", 1, "K", 2, "")


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_has_an_address_of_its_own(text, other):
    """Lone surrogates included; equal texts, however they were made, have equal addresses, and others have others."""
    assert len(text_digest(text)) == 40
    assert text_digest("".join(list(text))) == text_digest(text)
    assert (text_digest(text) == text_digest(other)) is (text == other)


def test_an_old_body_is_lifted_step_by_step_and_a_new_one_says_its_version():
    """What is written carries the current version, and is read as it is; what was written before is lifted to it."""
    lifts = {
        ("Sampled", 1): lambda body: {"what": body["kind"], "value": body["value"]},
        ("Sampled", 2): lambda body: {**body, "request": "lifted"},
    }
    versions = Versions({"Sampled": 3}, lifts)
    header, record = seal(
        Sampled("now", msgspec.Raw(b"1"), "new"), "r", 1, 7, b"s", GENESIS, task="1", op=2, versions=versions
    )
    assert (header.version, decode_header(record.header).version) == (3, 3)
    assert decode(record, versions).event == Sampled("now", msgspec.Raw(b"1"), "new")
    assert decode_body("Sampled", 2, b'{"what":"now","value":1}', versions).request == "lifted"
    oldest = decode_body("Sampled", 1, b'{"kind":"now","value":1}', versions)
    assert (oldest.what, oldest.request) == ("now", "lifted")
    assert seal(ModelReplied("x"), "r", 1, 7, b"s", GENESIS, versions=versions)[0].version == 1
    with pytest.raises(StoreError, match="newer treering"):
        decode(record)


# --- the golden log -------------------------------------------------------------------------------------------


STATE = {
    "events": 159,
    "head": "da4ebf3baf0b75795682a216b9005f189c9d7d60d339a8dbd9eb1523a09e0b98",
    "trunk": "9b55a246d3abf058963c764a0088e3abe681d5d1",
    "kinds": set(
        (
            "Compacted Evicted ModelCalled ModelReplied Recalled Refused Remembered Revived RunResumed "
            "RunStarted Sampled TaskCancelled TaskFailed TaskFinished TaskJoined TaskSpawned ToolCalled "
            "ToolReturned"
        ).split()
    ),
    "statuses": {
        "1": "finished",
        "1.1": "finished",
        "1.1.1": "finished",
        "1.1.2": "finished",
        "1.1.3": "finished",
        "1.2": "finished",
        "1.2~4": "finished",
        "1.2~6": "finished",
        "1.2~8": "finished",
        "1.3": "finished",
        "1.3.1": "finished",
        "1.4": "finished",
        "1.4.1": "finished",
        "1.4.1.1": "finished",
        "1.4.1.1.1": "refused",
        "1.5": "finished",
        "1.5.1": "failed",
        "1.5.2": "finished",
        "1.6": "finished",
        "1.6.1": "cancelled",
        "1.7": "finished",
        "1.7.1": "cancelled",
        "1.7.2": "finished",
        "1.8": "finished",
        "1.9": "finished",
        "1~25": "finished",
    },
}
"""What the golden log meant when it was written."""


GOLDEN_FORK = Path(__file__).parent / "golden" / "v1-fork.jsonl"
"""A run with an input, a question from outside and a cancel, and a fork of it with an edit: its whole lineage."""
FORK = {
    "head": "8c4e8296692d4d32117531affe280722689f56e9f08c0729a7b0991942622c2f",
    "trunk": "096198931b2f7bcf393e17fe114138a7a6ce7fae",
    "kinds": set(
        "InputAdded MessageReceived ModelCalled ModelReplied Recalled Remembered RunForked RunResumed RunStarted TaskCancelled TaskFinished TaskJoined TaskSpawned".split()
    ),
    "statuses": {"1": "finished", "1.1": "finished", "2": "cancelled", "3": "finished", "3.1": "finished"},
    "used": {"1": 36, "2": 0, "3": 19},
}


def golden(path: Path = GOLDEN) -> list[Record]:
    return [
        Record(
            line["seq"],
            line["header"].encode(),
            line["body"].encode(),
            bytes.fromhex(line["salt"]),
            bytes.fromhex(line["digest"]),
        )
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def test_the_golden_log_loads_for_ever():
    """Bytes written by the first version verify, decode and fold to the state that they meant then."""
    records = golden()
    state = new_state()
    for record in records:
        stored = decode(record)
        assert stored.event is not None
        evolve(state, stored.header, stored.event)
    assert verify_chain(records) == len(records) == STATE["events"]
    assert records[-1].digest.hex() == STATE["head"]
    assert state.memory.digest() == STATE["trunk"]
    assert {path: task.status for path, task in state.tasks.items()} == STATE["statuses"]
    assert {decode(record).header.kind for record in records} == STATE["kinds"]


def test_the_golden_fork_loads_for_ever():
    """So do the kinds that the older file lacks: forks, inputs, messages from outside."""
    records = golden(GOLDEN_FORK)
    state = new_state()
    for record in records:
        stored = decode(record)
        evolve(state, stored.header, stored.event)
    assert verify_chain(records) == len(records)
    assert records[-1].digest.hex() == FORK["head"]
    assert state.memory.digest() == FORK["trunk"]
    assert {path: task.status for path, task in state.tasks.items()} == FORK["statuses"]
    assert {path: pool.tokens for path, pool in state.pools.items()} == FORK["used"]
    assert {decode(record).header.kind for record in records} == FORK["kinds"]
    assert state.asked == []
    assert state.inbox == 2


@pytest.mark.parametrize("path", [GOLDEN, GOLDEN_FORK])
def test_a_golden_log_is_encoded_the_same_way_today(path):
    """What is written now has the bytes that were written then, so that digests of old and new logs agree."""
    for record in golden(path):
        stored = decode(record)
        assert to_json(stored.header) == record.header
        assert to_json(stored.event) == record.body
