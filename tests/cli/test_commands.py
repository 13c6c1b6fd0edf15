"""The commands as a person calls them, on the scripted model."""

import json
import os
import subprocess
import sys

import pytest

TEXT = "# Harbour\n\nTomas Varga kept a parrot named Admiral.\n\n# Mill\n\nThe mill grinds barley on Mondays.\n"


@pytest.fixture
def call(tmp_path):
    """Run a command in a folder of its own; (exit code, stdout, stderr)."""
    (tmp_path / "town.md").write_text(TEXT)

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "treering.cli.main", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    run.folder = tmp_path
    return run


def _start(call, *more):
    return call("run", "Who kept a parrot?", "--input", "town.md", "--model", "scripted", "--json", *more)


def test_a_question_is_answered_asked_again_and_verified(call):
    """The main job: run, ask, show, events, verify, with stable keys."""
    code, out, err = _start(call)
    assert code == 0, err
    first = json.loads(out)
    assert {"run", "status", "answer", "citations", "events", "tasks", "tokens", "seconds"} <= first.keys()
    assert {"source", "start", "end", "text"} == first["citations"][0].keys()
    code, out, _ = call("ask", "last", "Who kept the parrot again?", "--json")
    assert code == 0
    assert json.loads(out)["run"] == first["run"]
    assert call("verify", first["run"][:6])[0] == 0
    code, out, _ = call("events", "last", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert call("show", "last", "--at", "5")[0] == 0
    assert (
        "Varga" in call("show", "last", "--call", str(next(e["seq"] for e in lines if e["kind"] == "ModelCalled")))[1]
    )


def test_a_fork_with_an_edit_answers_otherwise_and_leaves_its_parent(call):
    """What if a reply had been another?"""
    first = json.loads(_start(call, "--agent", "digest")[1])
    events = [json.loads(line) for line in call("events", "last", "--json")[1].splitlines()]
    reply = [event["seq"] for event in events if event["kind"] == "ModelReplied"][-1]
    code, out, err = call("fork", "last", "--set", f"{reply}=Ines kept a parrot.", "--start", "--json")
    assert code == 0, err
    assert "Ines" in json.loads(out)["answer"]
    assert call("verify", "last")[0] == 0
    assert len(call("runs", "--json")[1].splitlines()) == 2
    assert json.loads(call("show", first["run"], "--json")[1])["status"] == "finished"


def test_a_fork_with_another_score_prefers_another_answer(call):
    """What if the model had found the question likelier for another answer? Words are refused in its place."""
    first = json.loads(_start(call)[1])
    events = [json.loads(line) for line in call("events", "last", "--json")[1].splitlines()]
    scores = [event for event in events if event["kind"] == "ModelReplied"]
    (asked,) = (
        event
        for event in events
        if event["kind"] == "ModelCalled" and event["op"] == scores[-1]["op"] and event["task"] == scores[-1]["task"]
    )
    answer = asked["body"]["entries"][-1]["parts"][-1].split("Answer: ")[1].split("\n")[0]
    assert answer != first["answer"]
    code, out, err = call("fork", "last", "--set", f"{scores[-1]['seq']}=5", "--start", "--json")
    assert code == 0, err
    assert json.loads(out)["answer"] == answer
    code, _, err = call("fork", first["run"], "--set", f"{scores[-1]['seq']}=Ines")
    assert code == 2
    assert "expected a number" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "x", "--input", "missing.txt", "--model", "scripted"), "missing.txt"),
        (("run", "x", "--input", "empty.txt", "--model", "scripted"), "empty.txt"),
        (("run", "x", "--input", "town.md", "--model", "scripted", "--retention", "wndow:5"), "retention"),
        (("run", "x", "--input", "town.md", "--model", "scripted", "--agent", "nobody"), "nobody"),
        (("run", "x", "--input", "town.md", "--model", "openai:x"), "--base-url"),
        (("run", "", "--input", "town.md", "--model", "scripted"), "question"),
        (("show", "last"), "store"),
        (("verify", "zzz", "--store", "town.md"), "town.md"),
    ],
)
def test_bad_input_is_one_clear_line(call, arguments, expected):
    """What was expected, what was found, what to do; nothing on stdout."""
    (call.folder / "empty.txt").write_text(" \n")
    code, out, err = call(*arguments)
    assert code in (1, 2)
    assert out == ""
    assert expected in err
    assert "Traceback" not in err


def test_a_changed_log_is_found(call):
    """A byte changed behind the store's back breaks the chain, with exit code 3."""
    import sqlite3

    _start(call)
    path = call.folder / ".treering" / "treering.db"
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER events_fixed")
    connection.execute(
        "UPDATE events SET body = replace(body, 'parrot', 'falcon')"
        " WHERE json_extract(header, '$.kind') = 'TaskSpawned'"
    )
    connection.commit()
    connection.close()
    code, _, err = call("verify", "last")
    assert code == 3
    assert "event 2" in err


def test_the_doctor_tells_device_blas_and_speed(call):
    """Measured now; without the model, which is said to be missing, only the arithmetic is."""
    code, out, _ = call("doctor", "--json", TREERING_CACHE=str(call.folder))
    checks = {check["check"]: check for check in map(json.loads, out.splitlines())}
    assert code == 1
    assert not checks["model"]["ok"]
    assert "treering models pull embedded" in checks["model"]["detail"]
    assert "mlx" in checks["device"]["detail"]
    assert checks["blas"]["detail"].split()[0] in ("mkl", "openblas", "reference", "native")
    assert float(checks["speed"]["detail"].split(" GFLOP/s")[0]) > 0


def test_commands_that_need_no_model_do_not_import_one(call):
    """What is not used is not loaded."""
    program = "import sys, treering.cli.main; print([m for m in ('mlx', 'transformers', 'rich', 'httpx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_memory_is_shown_as_a_tree_and_as_json_with_keys_that_stay(call):
    """What is remembered, where it came from, and what a recall would find and why."""
    run = json.loads(_start(call)[1])["run"]
    code, out, err = call("memory", "last", "--query", "who kept parrots", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found) == [
        *("run", "at", "task", "scope", "clock", "retention", "digest", "trunk", "hot", "cold", "pinned"),
        *("memories", "sources", "hits"),
    ]
    assert (found["run"], found["task"], found["scope"]) == (run, "1", "trunk")
    kept = found["memories"][0]
    assert list(kept) == [
        *("id", "state", "pinned", "held", "tokens", "characters", "age", "unused", "uses", "scope", "task", "op"),
        *("event", "refs", "text"),
    ]
    assert kept["refs"][0]["source"] == found["sources"][0]["source"]
    assert {hit["tier"] for hit in found["hits"]} == {"hot", "source"}
    assert list(found["hits"][0]) == ["tier", "score", "ref", "task", "name", "words", "text"]
    assert found["hits"][0]["words"] == ["kept", "parrot"]
    code, out, _ = call("memory", "last", "--query", "parrot", "--deep", COLUMNS="100")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"memory of run {run} at event ")
    assert any(line.startswith("hot  1 memory, ") for line in lines)
    assert any(line.startswith("└─ Who kept a parrot?") and line.endswith("x") for line in lines)
    assert any("town.md[" in line for line in lines)
    assert max(map(len, lines)) <= 100
    assert json.loads(call("memory", "last", "--at", "3", "--json")[1])["memories"] == []


@pytest.mark.parametrize("query", ["", "  ", "who was it that", "x" * 100_000])
def test_any_query_of_memory_is_answered(call, query):
    """Empty, of stop words alone, or long: hits or none."""
    _start(call)
    code, out, err = call("memory", "last", "--query", query, "--json")
    assert (code, err) == (0, "")
    assert isinstance(json.loads(out)["hits"], list)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--query", b"caf\xe9"), "valid Unicode"),
        (("--task", "7"), "expected a task of the run"),
        (("--at", "9999"), "expected an event from 1 to"),
    ],
)
def test_what_memory_cannot_show_is_one_line(call, arguments, expected):
    """A query that is no text, a task or an event that is not there."""
    _start(call)
    code, out, err = call("memory", "last", *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_a_diff_says_where_two_runs_parted(call):
    """In words and as JSON; of a run with itself there is nothing to say."""
    first = json.loads(_start(call, "--agent", "digest")[1])["run"]
    events = [json.loads(line) for line in call("events", "last", "--json")[1].splitlines()]
    reply = [event["seq"] for event in events if event["kind"] == "ModelReplied"][-1]
    fork = json.loads(call("fork", "last", "--set", f"{reply}=Ines kept a parrot.", "--start", "--json")[1])["run"]
    code, out, err = call("diff", first, fork)
    assert (code, err) == (0, "")
    assert "+Ines kept a parrot." in out
    assert f"a person set this outcome in B (in place of event {reply})" in out
    found = json.loads(call("diff", first, fork, "--json")[1])
    assert {"equal", "shared", "a", "b", "differences", "only_a", "only_b", "memory"} == found.keys()
    assert found["differences"][0]["a"] == reply
    code, out, _ = call("diff", first, first)
    assert code == 0
    assert "equal" in out
    assert call("diff", first, "zzzz")[0] == 2


def test_an_exported_run_is_taken_in_elsewhere_and_asked_again(call):
    """Out of one store and into another: verified, replayed by asking, exported again as the same file."""
    run = json.loads(_start(call)[1])["run"]
    code, _, err = call("export", "last", "--to", "jsonl", "--out", "run.jsonl")
    assert code == 0, err
    assert call("export", "last")[1] == (call.folder / "run.jsonl").read_text()
    code, out, err = call("import", "run.jsonl", "--store", "other.db", "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == run
    assert call("verify", run, "--store", "other.db")[0] == 0
    assert call("export", run, "--store", "other.db")[1] == (call.folder / "run.jsonl").read_text()
    assert json.loads(call("ask", run, "Who kept it?", "--store", "other.db", "--json")[1])["status"] == "finished"
    (call.folder / "half.jsonl").write_text((call.folder / "run.jsonl").read_text()[:3000])
    code, out, err = call("import", "half.jsonl", "--store", "third.db")
    assert (code, out) == (2, "")
    assert "truncated" in err
    assert call("runs", "--store", "third.db")[1] == ""


def test_spans_go_to_a_file_and_a_missing_sdk_is_one_line(call):
    """One JSON object a line; without the extra, the line says how to install it."""
    _start(call)
    code, out, err = call("export", "last", "--to", "otel", "--texts", "--out", "spans.jsonl")
    assert (code, out) == (0, ""), err
    spans = [json.loads(line) for line in (call.folder / "spans.jsonl").read_text().splitlines()]
    assert spans[-1]["name"] == "invoke_agent reader"
    assert spans[-1]["parent_id"] is None
    program = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "from treering.cli.main import code_of\n"
        "sys.exit(code_of(['export', 'last', '--to', 'otel']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=call.folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "treering[otel]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_of_another_program_is_looked_at_and_not_resumed(call):
    """Import, runs, show and events work; ask, resume and fork --start say in one line why not; a bad file too."""
    said = {
        "type": "assistant",
        "message": {"id": "m", "model": "x", "content": [{"type": "text", "text": "Varga."}]},
    }
    lines = [{"type": "user", "message": {"content": "Who kept a parrot?"}}, said]
    (call.folder / "session.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, err = call("import", "session.jsonl")
    assert code == 0, err
    assert "imported" in call("runs")[1]
    assert "answer: Varga." in call("show", "last")[1]
    assert "Who kept a parrot?" in call("show", "last", "--call", "3")[1]
    for command in (("ask", "last", "And now?"), ("resume", "last"), ("fork", "last", "--at", "3", "--start")):
        code, out, err = call(*command)
        assert code == 2
        assert "imported from claude-code" in err
        assert "Traceback" not in err
    (call.folder / "empty.jsonl").write_text("")
    code, out, err = call("import", "empty.jsonl", "--store", "none.db")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1


def test_bisect_finds_the_reply_that_made_the_answer_go_bad(call):
    """With a check of the shell that reads the answer; one that cannot be run, or tells nothing, is one line."""
    (call.folder / "mine.py").write_text(
        "async def boss(task, goal):\n"
        "    parts = await task.gather(*(task.spawn(worker, f'{goal} {n}') for n in range(4)))\n"
        "    await task.generate('Decide: ' + ' '.join(parts), max_tokens=60)\n"
        "    return ' '.join(parts)\n\n\n"
        "async def worker(task, goal):\n"
        "    return (await task.generate(f'Think {goal}', max_tokens=20)).text\n"
    )
    good = json.loads(call("run", "part", "--agent", "mine:boss", "--model", "scripted", "--json")[1])["run"]
    events = [json.loads(line) for line in call("events", good, "--json")[1].splitlines()]
    seqs = [event["seq"] for event in events if event["kind"] == "ModelReplied"]
    edits = [f"--set={seqs[0]}=harmless", f"--set={seqs[1]}=a poison", f"--set={seqs[2]}=harmless too"]
    bad = json.loads(call("fork", good, *edits, "--start", "--json")[1])["run"]
    check = 'test -n "$RUN" && test "$STATUS" = finished && ! grep -q poison'
    code, out, err = call("bisect", good, bad, "--check", check)
    assert code == 0, err
    assert "task 1.2, op 1: this reply makes the result go bad" in out
    assert "+a poison" in out
    assert f"treering fork {good} --set '{seqs[1]}=a poison' --start" in out
    found = json.loads(call("bisect", good, bad, "--check", check, "--json")[1])
    assert found["culprit"]["a"] == seqs[1]
    for bad_check, expected in (("no-such-command-xyz", "can be run"), ("true", "found that it passes")):
        code, out, err = call("bisect", good, bad, "--check", bad_check)
        assert (code, out) == (2, "")
        assert expected in err
