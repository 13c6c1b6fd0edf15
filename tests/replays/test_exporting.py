"""Export and import: the same bytes come back, with all that a run's log is made of; anything else is refused whole."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

from corpus import CORPUS
from laws import equal_view, fresh, run_once, script

from treering.events.codec import decode
from treering.events.errors import BrokenChain, UsageError
from treering.events.in_memory import InMemoryStore
from treering.replays.exporting import export_lines, import_log
from treering.replays.verifying import verify
from treering.runtime.runner import Runner, fork_run
from treering.runtime.testing import ScriptedEngine

CALM = sorted(set(CORPUS) - {"cancelled", "racing", "late"})


@pytest.fixture
def anyio_backend():
    return "asyncio"


def write(store, run, path):
    path.write_bytes(b"".join(export_lines(store, run)))
    return path


@pytest.mark.parametrize("name", CALM)
async def test_import_after_export_is_the_identity(name, tmp_path):
    """Headers, bodies, salts and digests, byte for byte; the chain holds; the next export is the same file."""
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    path = write(store, run, tmp_path / "run.jsonl")
    other = InMemoryStore()
    assert import_log(other, path).run == run
    assert list(other.read(run)) == list(store.read(run))
    assert other.row(run) == store.row(run)
    assert verify(other, run).digest == verify(store, run).digest
    assert b"".join(export_lines(other, run)) == path.read_bytes()


async def test_a_fork_of_a_fork_carries_its_ancestors_and_can_go_on(tmp_path, empty):
    """What the log is made of comes along, the whole parent too whose outcomes it may still take over."""
    store, run = fresh("fan_out")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    one = fork_run(store, run, 8)
    await run_once(store, one, CORPUS, ScriptedEngine(script))
    reply = decode([*store.read(one, kinds=["ModelReplied"])][-1]).seq
    two = fork_run(store, one, reply, [(reply, "Ines.")])
    path = write(store, two, tmp_path / "fork.jsonl")
    found = import_log(empty, path)
    assert found.runs == 3
    assert list(empty.read(two)) == list(store.read(two))
    assert list(empty.read(one)) == list(store.read(one))
    assert [empty.row(name) for name in (run, one, two)] == [store.row(name) for name in (run, one, two)]
    engine, again = ScriptedEngine(script), ScriptedEngine(script)
    for where, asked in ((store, engine), (empty, again)):
        async with Runner(where, two, asked, agents=CORPUS) as runner:
            await runner.resume()
    assert len(engine.requests) == len(again.requests)
    assert equal_view(store, two) == equal_view(empty, two)
    assert verify(empty, two).segments == verify(store, two).segments


async def test_a_second_import_adds_nothing_and_a_longer_one_what_is_new(tmp_path, empty):
    """Importing again is harmless; a run that went its own way since is refused."""
    store, run = fresh("fan_out")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    fork = fork_run(store, run, 8)
    await run_once(store, fork, CORPUS, ScriptedEngine(script))
    short = write(store, fork, tmp_path / "fork.jsonl")
    whole = write(store, run, tmp_path / "run.jsonl")
    import_log(empty, short)
    assert empty.head(run)[0] == 8
    assert import_log(empty, short).added == 0
    assert import_log(empty, whole).added == store.head(run)[0] - 8
    assert list(empty.read(run)) == list(store.read(run))
    third = InMemoryStore()
    import_log(third, short)
    async with Runner(third, run, ScriptedEngine(lambda request: "else"), agents=CORPUS) as runner:
        await runner.resume()
    before = third.head(run)
    with pytest.raises(UsageError, match="went its own way"):
        import_log(third, whole)
    assert third.head(run) == before


async def test_sources_and_spilled_texts_come_along_and_what_was_destroyed_stays_absent(tmp_path, empty):
    """Blobs are part of a log; a body that is gone is gone in the copy, and the chain holds without it."""

    async def reading(task, goal):
        source = await task.add_input(goal)
        return (await task.generate("word " * 300 + source.name, max_tokens=8)).text

    text = tmp_path / "town.md"
    text.write_text("# Harbour\n\nTomas Varga kept a parrot.\n")
    store, run = fresh("reading")
    await run_once(store, run, {"reading": reading}, ScriptedEngine(script), goal=str(text))
    path = write(store, run, tmp_path / "run.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    blobs = [line for line in lines if line["line"] == "blob"]
    assert len(blobs) == 2
    assert import_log(empty, path).blobs == 2
    assert all(empty.blob(line["digest"]) == line["text"] for line in blobs)
    for line in lines:
        if line["line"] == "blob":
            line["text"] = None
        elif line["line"] == "event" and '"ModelReplied"' in line["header"]:
            line["body"] = line["salt"] = None
    redacted = tmp_path / "redacted.jsonl"
    redacted.write_text("".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines))
    other = InMemoryStore()
    import_log(other, redacted)
    assert verify(other, run).destroyed == 1
    assert [other.blob(line["digest"]) for line in blobs] == [None, None]
    assert b"".join(export_lines(other, run)) == redacted.read_bytes()


async def test_a_file_that_is_cut_or_changed_anywhere_is_refused_in_one_line_and_leaves_nothing(tmp_path, empty):
    """Truncated at any line and inside of one; any character changed; lines swapped, doubled, missing."""
    store, run = fresh("fan_out")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    good = b"".join(export_lines(store, run))
    lines = good.splitlines(keepends=True)
    bad = [b"".join(lines[:count]) for count in range(len(lines))]
    bad += [good[:-1], good[: len(good) // 2], good + lines[5], b"".join(lines[:7] + lines[6:]), b"\n", b"null\n"]
    bad += [b"".join([*lines[:4], lines[5], lines[4], *lines[6:]]), b"".join(lines[:9] + lines[10:])]
    for at in range(0, len(good), 23):
        if good[at : at + 1] != b"\n":
            bad.append(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    path = tmp_path / "bad.jsonl"
    for content in bad:
        path.write_bytes(content)
        with pytest.raises((UsageError, BrokenChain)) as refused:
            import_log(empty, path)
        assert "\n" not in str(refused.value)
    assert empty.runs() == []


async def test_a_hostile_file_is_refused_in_one_line(tmp_path, empty):
    """Nesting, wrong types, a forged event with a right chain."""
    store, run = fresh("fan_out")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    lines = [json.loads(line) for line in export_lines(store, run)]
    path = tmp_path / "bad.jsonl"
    for bad in (
        b"[" * 100_000 + b"]" * 100_000 + b"\n",
        b'{"line":"log","run":{"a":1}}\n',
        b'{"line":"log","run":"x","format":99}\n',
        b'{"line":"run","run":"x","created":1,"parent":"x","cut":1}\n',
        b"\x00\xff\n",
        (json.dumps(lines[0]) + "\n" + json.dumps({**lines[1], "parent": "nobody", "cut": 3}) + "\n").encode(),
        (json.dumps(lines[0]) + "\n" + json.dumps({**lines[2], "salt": "zz"}) + "\n").encode(),
    ):
        path.write_bytes(bad)
        with pytest.raises(UsageError) as refused:
            import_log(empty, path)
        assert "\n" not in str(refused.value)
    assert empty.runs() == []


async def test_a_forged_event_with_a_right_chain_is_refused(tmp_path, empty):
    """It does not follow from the events before it: no later command would read such a log."""
    from treering.events.catalogue import Header, ModelReplied
    from treering.events.codec import body_digest, encode, to_json

    store, run = fresh("fan_out")
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    last, head = store.head(run)
    lease = store.acquire(run, True)
    body, salt = to_json(ModelReplied("x")), b"s" * 16
    header = Header(run, last + 1, "ModelReplied", 0, body_digest(salt, body), "9.9", 4)
    store.append(run, lease.epoch, [encode(header, body, salt, head)])
    with pytest.raises(BrokenChain, match="does not follow"):
        import_log(empty, write(store, run, tmp_path / "forged.jsonl"))
    assert empty.runs() == []
