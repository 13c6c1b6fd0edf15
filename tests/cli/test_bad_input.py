"""Bad input gets one clear line and loses nothing."""

import json
import resource
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

AGENTS = """
import time

import anyio


async def many(task, goal):
    for number in range(int(goal)):
        await task.remember(f"{number} " + "word " * 400)
    return "done"


async def recurse(task, goal):
    return await task.spawn(recurse, goal)


async def wide(task, goal):
    return await task.gather(*[task.spawn(wide, f"{goal}.{number}") for number in range(10)])


async def bottomless(task, goal):
    return await bottomless(task, goal)


async def stuck():
    await anyio.sleep_forever()


async def blocked():
    time.sleep(1000)


async def hangs(task, goal):
    await task.sleep(0)
    return await task.call(stuck if goal == "stuck" else blocked, idempotent=goal == "stuck")
"""
TOWN = "# Harbour\n\nTomas Varga kept a parrot named Admiral.\n"


@pytest.fixture
def town(shell):
    """A folder with agents and a text."""
    (shell.folder / "mine.py").write_text(AGENTS)
    (shell.folder / "town.md").write_text(TOWN)
    return shell


def _read(shell, *inputs, **environment):
    given = [part for path in inputs for part in ("--input", path)]
    return shell.call("run", "Who kept a parrot?", *given, "--model", "scripted", **environment)


# --- inputs -------------------------------------------------------------------------------------------------


def test_a_folder_of_binaries_is_refused_before_a_run_begins(town):
    """The line counts why each file was passed over."""
    folder = town.folder / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "empty.txt").touch()
    code, out, err = _read(town, "images")
    assert (code, out) == (2, "")
    assert err == "treering: images: no file in this folder can be read as text (3 binary, 1 empty)\n"
    assert not (town.folder / ".treering").exists()


def test_what_cannot_be_read_in_a_folder_is_passed_over_and_said(town):
    """The rest is read, with a line for each file as it is."""
    folder = town.folder / "papers"
    folder.mkdir()
    (folder / "town.md").write_text(TOWN)
    (folder / "more.md").write_text("The mill grinds barley.\n")
    (folder / "bad.txt").write_bytes(b"\xff\xfe\x00\xd8\x00\xd8x")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    code, _, err = _read(town, "papers")
    assert code == 0
    why = "no encoding was found in which this file is text; convert it to UTF-8"
    assert f"passed over 1 file in papers: {why} (bad.txt)" in err
    assert "this PDF is damaged" in err
    read = [line.split()[3] for line in err.splitlines() if "InputAdded" in line]
    assert read == ["more.md,", "town.md,"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bad.txt", b"\xff\xfe\x00\xd8\x00\xd8x", "convert it to UTF-8"),
        ("bad.pdf", b"%PDF-1.4 nothing", "this PDF is damaged"),
        ("bad.bin", b"\x00\x01\x02" * 99, "binary file"),
        ("bad.html", b"\xff\xfe\x00\xd8\x00\xd8x", "convert it to UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_refused_before_a_run_begins(town, name, content, expected):
    """One line that names it and says what to do."""
    (town.folder / name).write_bytes(content)
    code, out, err = _read(town, name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert name in err
    assert expected in err
    assert not (town.folder / ".treering").exists()


def test_a_pdf_is_an_input(town):
    """Its text is read, and cited."""
    content = b"BT /F1 12 Tf 72 700 Td (Tomas Varga kept a parrot named Admiral.) Tj ET"
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(body)
    (town.folder / "town.pdf").write_bytes(body + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer)
    code, out, err = _read(town, "town.pdf")
    assert code == 0, err
    assert "town.pdf[" in out
    assert "Tomas Varga kept a parrot named Admiral." in out


# --- models -------------------------------------------------------------------------------------------------


def test_a_window_too_small_for_the_agent_is_one_line(town):
    """It says how much was needed, and which option to change."""
    code, out, err = town.call(
        "run", "A parrot?", "--input", "town.md", "--model", "scripted", "--window", "20", "--json"
    )
    assert code == 1, err
    error = json.loads(out)["error"]
    assert "fit a window of 20 tokens" in error
    assert "--window" in error
    assert error.count("task 1.1") == 1
    assert town.look("verify", "last")[0] == 0


def test_a_window_larger_than_the_model_can_read_is_refused(town):
    """Before a run begins."""
    code, _, err = town.call("run", "Who?", "--input", "town.md", "--model", "scripted", "--window", "1000000")
    assert code == 2
    assert err == "treering: expected --window within the 100000 tokens that scripted can read, found 1000000\n"


def test_an_unknown_model_without_network_is_one_line(town):
    """No run is left behind that could not be resumed."""
    nowhere = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
    arguments = ("run", "Who?", "--input", "town.md", "--model", "nobody/nothing")
    code, out, err = town.call(*arguments, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(town.folder), **nowhere)
    assert (code, out) == (1, "")
    assert err.count("\n") == 2  # that it is being loaded, and the error
    assert "nobody/nothing could not be loaded" in err
    assert "check its name and the network" in err
    assert town.look("runs")[1] == ""


def test_a_server_that_is_not_there_is_one_line(town):
    """It is asked what it can read before a run begins."""
    arguments = ("run", "Who?", "--input", "town.md", "--model", "openai:x", "--base-url", "http://127.0.0.1:9/v1")
    code, out, err = town.call(*arguments)
    assert (code, out) == (1, "")
    assert err.count("\n") == 2  # that it is being loaded, and the error
    assert "could not be reached" in err
    assert town.look("runs")[1] == ""


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"<html>It works!</html>", "text/html", "a web page, not with a model's reply: check --base-url"),
        (b"", "text/event-stream", "without a finish reason (after 3 attempts)"),
        (bytes(range(256)) * 9, "text/event-stream", "without a finish reason (after 3 attempts)"),
        (
            b'data: {"choices": [{"delta": {"content": "Tomas"}}]}\n\n',
            "text/event-stream",
            "without a finish reason (after 3 attempts)",
        ),
        (b"data: {]\n\n", "text/event-stream", "broken JSON (after 3 attempts)"),
        (b"[1, 2]", "application/json", "(after 3 attempts)"),
    ],
)
def test_a_server_that_answers_nonsense_fails_the_call_in_one_line(town, serve, body, kind, expected):
    """Each attempt is in the log, and the run can be verified."""
    arguments = (
        "run",
        "Who kept a parrot?",
        "--input",
        "town.md",
        "--model",
        "openai:x",
        "--base-url",
        serve(body, kind=kind),
    )
    code, out, err = town.call(*arguments, "--json")
    assert code == 1, err
    assert expected in json.loads(out)["error"]
    assert town.look("verify", "last")[0] == 0
    calls = town.look("events", "last", "--kind", "ModelCalled", "--json")[1].splitlines()
    tries = [json.loads(line)["body"] for line in calls]
    assert len([one for one in tries if not one.get("continuation")]) == (1 if kind == "text/html" else 3)


@pytest.mark.parametrize("text", ["", "\x1b[2J\x07\x9b31m zzz", "zzz " * 2000])
def test_a_model_that_says_nonsense_cannot_steer_the_terminal(town, serve, text):
    """An empty, a wild and an endless reply are replies."""
    address = serve(text)
    code, out, err = town.call(
        "run", "Who kept a parrot?", "--input", "town.md", "--model", "openai:x", "--base-url", address
    )
    assert code == 0, err
    assert out
    assert not {"\x1b", "\x07", "\x9b"} & {*out, *err}
    assert "\x1b" not in town.look("show", "last")[1] + town.look("events", "last")[1]


def test_a_server_is_asked_how_much_its_model_can_read(town, serve):
    """What it says bounds the window and is in the log."""
    base = ("run", "Who?", "--input", "town.md", "--model", "openai:x", "--base-url", serve("Tomas"))
    code, _, err = town.call(*base, "--window", "4000")
    assert code == 2
    assert "within the 3000 tokens that openai:x can read" in err
    assert town.call(*base)[0] == 0
    started = json.loads(town.look("events", "last", "--kind", "RunStarted", "--json")[1])
    assert started["body"]["config"]["context_tokens"] == 3000


# --- the store ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_resume_ends_the_run(town):
    """Nothing that was on disk is done again."""

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-m", "treering.cli.main", "run", "300", "--agent", "mine:many", "--model", "scripted"],
        cwd=town.folder,
        preexec_fn=small,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("treering: the disk took no more at .treering/treering.db")
    assert "Traceback" not in done.stderr
    before = len(town.look("events", "last", "--kind", "Remembered")[1].splitlines())
    assert 0 < before < 300
    assert town.call("resume", "last")[:2] == (0, "done\n")
    assert town.look("verify", "last")[0] == 0
    remembered = town.look("events", "last", "--kind", "Remembered", "--json")[1].splitlines()
    assert [json.loads(line)["op"] for line in remembered] == list(range(1, 301))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who holds a lock")
def test_a_locked_store_is_waited_for_and_its_holder_named(town):
    """Not in under five seconds, and nothing is lost."""
    assert town.call("run", "2", "--agent", "mine:many", "--model", "scripted")[0] == 0
    locker = "import sqlite3, sys; c = sqlite3.connect('.treering/treering.db', isolation_level=None); c.execute('BEGIN IMMEDIATE'); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", locker], cwd=town.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"1\n"
        began = time.monotonic()
        code, out, err = town.call("ask", "last", "3")
        waited = time.monotonic() - began
        holder.stdin.close()
    assert (code, out) == (1, "")
    assert f"process {holder.pid} kept .treering/treering.db locked for 6 s" in err
    assert waited >= 5
    assert town.call("ask", "last", "3")[:2] == (0, "done\n")


@pytest.mark.parametrize("command", [("runs",), ("show", "last"), ("verify", "last"), ("resume", "last")])
def test_a_damaged_or_newer_store_is_one_line(town, command):
    """Whatever the command, it names the file and says what was found."""
    assert town.call("run", "2", "--agent", "mine:many", "--model", "scripted")[0] == 0
    path = town.folder / ".treering" / "treering.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    code, out, err = town.call(*command)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "written by a newer treering" in err
    path.write_bytes(path.read_bytes()[:8192] + b"\xa5" * 40_000)
    with open(path, "r+b") as file:
        file.seek(60)
        file.write((1).to_bytes(4, "big"))  # the version again
    code, out, err = town.call(*command)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "treering.db, found a damaged file" in err


# --- Ctrl-C, hanging and endless ----------------------------------------------------------------------------


def test_ctrl_c_ends_a_run_whose_tool_hangs(town):
    """It says how to go on, and the log can be gone on with."""
    process = town.start("run", "stuck", "--agent", "mine:hangs", "--model", "scripted")
    town.wait_for("ToolCalled")
    process.send_signal(signal.SIGINT)
    code, out, err = town.end(process)
    assert (code, out) == (1, "")
    assert "press Ctrl-C again" in err
    assert "interrupted; treering resume" in err
    assert town.look("verify", "last")[0] == 0


def test_a_second_ctrl_c_ends_a_run_that_blocks_the_event_loop(town):
    """At once, and what is on disk is gone on with: here, to say that a person must settle it."""
    process = town.start("run", "blocked", "--agent", "mine:hangs", "--model", "scripted")
    town.wait_for("ToolCalled")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.7)
    process.send_signal(signal.SIGINT)
    process.wait(5)
    code, out, err = town.end(process)
    assert (code, out) == (1, "")
    assert "ended at once; treering resume" in err
    assert town.look("verify", "last")[0] == 0
    code, _, err = town.call("resume", "last")
    assert code == 1
    assert "a person must settle it" in err
    assert "--at 3 --start" in err


def test_a_tool_that_hangs_meets_its_limit_and_that_is_recorded(town):
    """The agent gets a ToolFailed, after the time that the run allows."""
    code, _, err = town.call("run", "stuck", "--agent", "mine:hangs", "--model", "scripted", "--call-timeout", "0.3")
    assert code == 1
    assert "no result within 0.3 s" in err
    returned = json.loads(town.look("events", "last", "--kind", "ToolReturned", "--json")[1])
    assert returned["body"]["failure"]["kind"] == "timeout"
    assert returned["body"]["seconds"] >= 0.3


def test_an_engine_that_hangs_meets_its_limit_and_ctrl_c(town, serve):
    """Three attempts, each with the limit, and one line; meanwhile it can be interrupted."""
    address = serve("never", hang_s=20.0)
    base = ("run", "Who kept a parrot?", "--input", "town.md", "--model", "openai:x", "--base-url", address)
    process = town.start(*base)
    town.wait_for("ModelCalled")
    process.send_signal(signal.SIGINT)
    code, _, err = town.end(process)
    assert code == 1
    assert "interrupted; treering resume" in err
    code, out, _ = town.call(*base, "--call-timeout", "0.3", "--json")
    assert code == 1
    assert "no answer within 0.3 s (after 3 attempts)" in json.loads(out)["error"]


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("recurse", "max_depth allows 4, 5 would be needed; --max-depth sets it"),
        ("wide", "max_tasks allows 50"),
        ("bottomless", "maximum recursion depth exceeded"),
    ],
)
def test_an_endless_recursion_meets_a_limit(town, agent, expected):
    """One line, and a log that holds."""
    arguments = ("run", "go", "--agent", f"mine:{agent}", "--model", "scripted", "--max-tasks", "50", "--json")
    code, out, err = town.call(*arguments)
    assert code == 1, err
    assert expected in json.loads(out)["error"]
    assert town.look("verify", "last")[0] == 0
