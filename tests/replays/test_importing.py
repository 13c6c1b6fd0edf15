"""Logs of others become runs that verify, show what each call saw, and are not gone on with; bad files leave nothing."""

import io
import json
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

from laws import Steady

from treering.events.catalogue import Compacted, ModelCalled
from treering.events.codec import decode
from treering.events.errors import TreeringError, UsageError
from treering.events.in_memory import InMemoryStore
from treering.replays.explaining import compare
from treering.replays.exporting import export_lines, import_log
from treering.replays.importing import import_file
from treering.replays.showing import prompt_of, state_at
from treering.replays.tracing import spans_of
from treering.replays.verifying import verify
from treering.runtime.runner import Runner
from treering.runtime.testing import ScriptedEngine

SAMPLES = Path(__file__).parents[2].parent / "shared" / "data" / "transcripts"
KNOWN = sorted(
    path
    for path in [*SAMPLES.rglob("*.jsonl"), *SAMPLES.rglob("*.json"), *SAMPLES.rglob("*.eval")]
    if "otel" not in path.parts and "hook" not in path.name
)
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="the samples of others' logs are not there")


@pytest.fixture
def anyio_backend():
    return "asyncio"


def take(path, store=None):
    """Import a file; the store and the run."""
    store = store or InMemoryStore()
    return store, import_file(store, path, Steady()).run


def calls(store, run):
    return [one for record in store.read(run, kinds=["ModelCalled"]) if (one := decode(record))]


# --- builders -----------------------------------------------------------------------------------------------


def user(uuid, content, parent=None, **more):
    return {
        "type": "user",
        "uuid": uuid,
        "parentUuid": parent,
        "timestamp": "2026-01-02T19:18:31.028Z",
        "message": {"role": "user", "content": content},
        **more,
    }


def assistant(uuid, id, block, parent=None, **more):
    return {
        "type": "assistant",
        "uuid": uuid,
        "parentUuid": parent,
        "timestamp": "2026-01-02T19:18:34+00:00",
        "message": {
            "id": id,
            "role": "assistant",
            "model": "some-model",
            "content": [block],
            "usage": {"input_tokens": 9, "cache_read_input_tokens": 100, "output_tokens": 8},
        },
        **more,
    }


def result(uuid, key, text, **more):
    return user(uuid, [{"type": "tool_result", "tool_use_id": key, "content": text}], **more)


def said(text):
    return {"type": "text", "text": text}


def used(key, name, **arguments):
    return {"type": "tool_use", "id": key, "name": name, "input": arguments}


SESSION = [
    {"type": "file-history-snapshot", "snapshot": {}},
    user("a", "Who keeps the parrot?"),
    assistant("b", "m1", said("I will look."), "a"),
    assistant("c", "m1", used("t1", "Read", path="town.md"), "b"),
    result("d", "t1", "Tomas Varga keeps a parrot.", parent="c"),
    assistant("e", "m2", used("t2", "Task", prompt="Count the parrots."), "d"),
    user("s1", "Count the parrots.", isSidechain=True),
    assistant("s2", "x1", said("One parrot."), "s1", isSidechain=True),
    result("f", "t2", "One parrot.", parent="e"),
    assistant("g", "m3", used("t3", "Read", path="town.md"), "f"),
    result("h", "t3", "Tomas Varga keeps a parrot.", parent="g"),
    assistant("i", "m4", said("Tomas Varga keeps one parrot."), "h"),
    {"type": "system", "subtype": "compact_boundary", "uuid": "j", "compactMetadata": {"trigger": "auto"}},
    user("k", "Summary: Varga keeps it.", "j", isCompactSummary=True),
    user("l", "And the barley?", "k"),
    assistant("m", "m5", used("t4", "Bash", command="grep barley"), "l"),
]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def model_event(span, messages, reply, **more):
    return {
        "event": "model",
        "span_id": span,
        "timestamp": "2026-01-02T19:18:31+02:00",
        "model": "mock",
        "input": [{"role": role, "content": text} for role, text in messages],
        "output": {
            "choices": [{"message": {"role": "assistant", "content": reply}, "stop_reason": "stop"}],
            "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
            "time": 0.5,
        },
        **more,
    }


def sample(id, reply="Varga", **more):
    return {
        "id": id,
        "epoch": 1,
        "input": "attachment://q",
        "target": "Varga",
        "attachments": {"q": "Who keeps the parrot?"},
        "events": [
            {"event": "span_begin", "id": "s", "type": "solver", "name": "react", "parent_id": None},
            {"event": "span_begin", "id": "a", "type": "agent", "name": "react", "parent_id": "s"},
            model_event("a", [("user", "attachment://q")], "One moment."),
            {
                "event": "tool",
                "span_id": "a",
                "id": "t1",
                "function": "look",
                "arguments": {"x": 1},
                "result": "Varga",
            },
            {"event": "span_begin", "id": "b", "type": "agent", "name": "helper", "parent_id": "a"},
            model_event("b", [("user", "Help.")], "Done."),
            {"event": "span_end", "id": "b"},
            model_event("a", [("user", "attachment://q"), ("assistant", "One moment."), ("tool", "Varga")], reply),
            {"event": "span_end", "id": "a"},
            {"event": "score", "score": {"value": 1}},
        ],
        "scores": {"exact": {"value": 1}},
        "output": {"completion": reply},
        **more,
    }


def evaluation(*samples):
    return {
        "version": 2,
        "status": "success",
        "eval": {"task": "parrots", "model": "mock", "created": "2026-01-02T19:18:00+00:00"},
        "samples": list(samples),
        "results": {"scores": [{"name": "exact", "metrics": {"accuracy": {"value": 1.0}}}]},
    }


def packed(path, log, **more):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({**log, "samples": None}))
        for one in log["samples"]:
            archive.writestr(f"samples/{one['id']}_epoch_1.json", json.dumps(one))
        for name, content in more.items():
            archive.writestr(name, content)
    return path


# --- what is told -------------------------------------------------------------------------------------------


@needs_samples
@pytest.mark.parametrize("path", KNOWN, ids=lambda path: path.name)
async def test_every_sample_becomes_a_run_that_can_be_looked_at(path, tmp_path):
    """It verifies, every call can be shown, it equals itself imported again, it is exported and traced."""
    store, run = take(path)
    assert verify(store, run).events == store.head(run)[0]
    state = state_at(store, run)
    assert state.status == "imported"
    assert {task.status for task in state.tasks.values()} == {"finished"}
    found = calls(store, run)
    assert found
    for one in found:
        assert prompt_of(store, run, one.seq).messages
    other = import_file(store, path, _Later()).run
    assert compare(store, run, other).equal
    spans = list(spans_of(store, run, texts=True))
    assert sum(span.client for span in spans) == len(found)
    out = tmp_path / "again.jsonl"
    out.write_bytes(b"".join(export_lines(store, run)))
    again = InMemoryStore()
    import_log(again, out)
    assert list(again.read(run)) == list(store.read(run))


class _Later(Steady):
    """Other chance than the first import had."""

    def entropy(self, size):
        return bytes([7]) + super().entropy(size)[1:]


@needs_samples
def test_a_log_of_hooks_is_refused_with_the_reason():
    """It holds no replies, so there is nothing to show."""
    with pytest.raises(UsageError, match="log of its hooks"):
        take(next(SAMPLES.rglob("*hook_logs.jsonl")))


async def test_a_session_keeps_its_calls_tools_side_chains_and_compactions(tmp_path):
    """Pieces of one message are one call; what it saw is the conversation so far; a compaction has its receipt."""
    store, run = take(write(tmp_path / "session.jsonl", SESSION))
    state = state_at(store, run)
    assert {path: task.status for path, task in state.tasks.items()} == {"1": "finished", "1.1": "finished"}
    assert state.tasks["1.1"].goal == "Count the parrots."
    main = [one for one in calls(store, run) if one.header.task == "1"]
    assert len(main) == 5
    first, last = prompt_of(store, run, main[0].seq), prompt_of(store, run, main[-1].seq)
    assert first.reply == 'I will look.\n[tool call Read {"path":"town.md"}]'
    assert [message.text for message in last.messages] == ["Summary: Varga keeps it.", "And the barley?"]
    fourth = prompt_of(store, run, main[3].seq)
    assert [message.role for message in fourth.messages] == ["user"] + ["assistant", "tool"] * 3
    (receipt,) = (decode(record).event for record in store.read(run, kinds=["Compacted"]))
    assert isinstance(receipt, Compacted)
    assert len(receipt.left) == 8
    assert "Tomas" in receipt.loss.missing
    assert state.totals.prompt == 109 * 6
    assert state.totals.cached == 600
    kinds = [decode(record).header.kind for record in store.read(run)]
    assert kinds.count("ToolCalled") == kinds.count("ToolReturned") == 4
    # The file that was read twice is one memory, used twice: that is what a retention policy can be tried on.
    kept = [decode(record).event for record in store.read(run, task="1", kinds=["Remembered"])]
    assert [one.text for one in kept].count("Tomas Varga keeps a parrot.") == 2
    assert {item.text: item.count for item in state.memory.memories.values()}["Tomas Varga keeps a parrot."] == 1
    passed = [decode(record).event for record in store.read(run, kinds=["MessageReceived"])]
    assert [json.loads(event.text) for event in passed] == [{"file-history-snapshot": 1}]
    tools = [decode(record).event for record in store.read(run, kinds=["ToolReturned"])]
    assert tools[-1].failure is not None
    assert "no result" in tools[-1].failure.message


async def test_two_sessions_are_compared_to_the_reply_where_they_parted(tmp_path):
    """Diff works on imported runs."""
    other = json.loads(json.dumps(SESSION).replace("One parrot.", "Two parrots."))
    store, run = take(write(tmp_path / "a.jsonl", SESSION))
    second = import_file(store, write(tmp_path / "b.jsonl", other), _Later()).run
    found = {one.task_b: one for one in compare(store, run, second).differences}
    assert found["1.1"].what == "answered"
    assert "+Two parrots." in found["1.1"].diff
    assert found["1"].kind == "ToolReturned"  # what the side chain answered came through its tool
    assert found["1"].call is not None
    assert "+[tool] Two parrots." in found["1"].call.diff


@pytest.mark.parametrize("form", ["json", "eval"])
async def test_an_evaluation_keeps_its_samples_agents_and_scores(tmp_path, form):
    """Each sample is a child with a key; an agent inside of it a child below; prompts are whole again."""
    log = evaluation(sample(10), sample(9))
    path = tmp_path / f"log.{form}"
    packed(path, log) if form == "eval" else path.write_text(json.dumps(log, indent=2))
    store, run = take(path)
    verify(store, run)
    state = state_at(store, run)
    assert list(state.tasks) == ["1", "1.1", "1.1.1", "1.2", "1.2.1"]
    assert json.loads(state.tasks["1"].result) == {"answer": "success", "metrics": {"exact/accuracy": 1.0}}
    assert state.tasks["1.1"].goal == "Who keeps the parrot?"
    assert state.tasks["1.1.1"].agent == "helper"
    own = [one for one in calls(store, run) if one.header.task == "1.1"]
    assert [message.text for message in prompt_of(store, run, own[1].seq).messages] == [
        "Who keeps the parrot?",
        "One moment.",
        "Varga",
    ]
    assert isinstance(own[1].event, ModelCalled)
    assert len(own[1].event.entries) == 1  # only what is new in it
    assert state.totals.prompt == 5 * 6
    assert state.totals.seconds == 3.0


async def test_samples_correspond_by_id_whatever_their_order(tmp_path):
    """One more sample in front changes no other."""
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(evaluation(sample(1), sample(2))))
    b.write_text(json.dumps(evaluation(sample(3), sample(2, reply="Ines"), sample(1))))
    store, run = take(a)
    found = compare(store, run, import_file(store, b, _Later()).run)
    assert found.only_b == ("1.1",)
    assert [(one.task_a, one.task_b) for one in found.differences if one.task_b != "1"] == [("1.2", "1.2")]


async def test_an_imported_run_is_not_gone_on_with(tmp_path):
    """Ask, resume and replay refuse in one line, and so does a fork of it."""
    store, run = take(write(tmp_path / "session.jsonl", SESSION))
    before = store.head(run)
    for options in ({}, {"replay": True}):
        with pytest.raises(UsageError, match="imported from claude-code"):
            async with Runner(store, run, ScriptedEngine(), **options):
                raise AssertionError("it was opened")
    assert store.head(run) == before


# --- what is refused ----------------------------------------------------------------------------------------


def refused(store, path, content):
    """The one line with which a file is refused; nothing of it is in the store."""
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        import_file(store, path)
    assert "\n" not in str(error.value)
    assert store.runs() == []
    return str(error.value)


def test_empty_foreign_and_damaged_files_are_refused(tmp_path, empty):
    """One clear line each."""
    path = tmp_path / "bad"
    deep = b"[" * 200_000
    good = json.dumps(SESSION[1]).encode()
    for content, expected in (
        (b"", "an empty file"),
        (b" \n\n", "an empty file"),
        (b"hello\n", "none of them"),
        (b"\x89PNG\r\n\x1a\n\x00", "none of them"),
        (b"42\n[1]\n", "no message"),
        (b'{"silly":"this"}\n', "no message"),
        (b'{"eval": 5}', "no object `eval`"),
        (b'{"eval": {"a": 1', "cut off or damaged"),
        (good + b'\n{"type":"user","x":' + deep + b"\n", "line 2"),
        (b'{"eval":' + deep, "too deep"),
        (good + b"\n" + good[:40], "line 2"),
        (good + b"\n\x00\xff\xfe\n", "line 2"),
        (b"PK\x03\x04", "cannot be read"),
    ):
        assert expected in refused(empty, path, content)


def test_a_session_cut_anywhere_is_refused_or_ends_earlier(tmp_path, empty):
    """Cut inside of a line it is refused; between two lines it is a shorter session."""
    whole = write(tmp_path / "whole.jsonl", SESSION).read_bytes()
    path = tmp_path / "cut.jsonl"
    ends = {at + 1 for at, byte in enumerate(whole) if byte == 10}
    for at in range(1, len(whole), 37):
        if at not in ends and at + 1 not in ends:
            refused(empty, path, whole[:at])
    path.write_bytes(whole[: sorted(ends)[4]])
    _, run = take(path, empty)
    verify(empty, run)


def test_a_zip_that_is_cut_lies_or_is_a_bomb_is_refused(tmp_path, empty):
    """Truncated at any place; a member without end; a header that is none."""
    path = tmp_path / "bad.eval"
    whole = packed(tmp_path / "whole.eval", evaluation(sample(1), sample(2))).read_bytes()
    for at in range(2, len(whole) - 1, 97):
        refused(empty, path, whole[:at])
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(UsageError):
        import_file(empty, path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(evaluation()))
        with archive.open("samples/1_epoch_1.json", "w") as member:
            for _ in range(64):
                member.write(b" " * 2**20)
    assert "packed at most" in refused(empty, path, bomb.getvalue())
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert "without header.json" in refused(empty, path, other.getvalue())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _places(value, found=()):
    yield found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*found, key))


def _put(value, place, other):
    if not place:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _put(value[place[0]], place[1:], other)
    return copy


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_value_of_any_type_at_any_place_is_told_or_refused(tmp_path_factory, data):
    """Never a traceback, never half a run: what is taken in verifies."""
    base = data.draw(st.sampled_from([SESSION, evaluation(sample(1), sample(2))]))
    place = data.draw(st.sampled_from(list(_places(base))))
    changed = _put(base, place, data.draw(_JSON))
    path = tmp_path_factory.getbasetemp() / "changed"
    lines = changed if base is SESSION and isinstance(changed, list) else [changed]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = InMemoryStore()
    try:
        _, run = take(path, store)
    except TreeringError as error:
        assert "\n" not in str(error)  # noqa: PT017 (most values are taken)
        assert store.runs() == []
    else:
        assert verify(store, run).events > 1
        compare(store, run, run)
        for one in calls(store, run):
            prompt_of(store, run, one.seq)
