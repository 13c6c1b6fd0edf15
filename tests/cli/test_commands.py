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
    checks = {check["check"]: check for check in json.loads(out)}
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
