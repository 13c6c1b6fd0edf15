"""What commands print: for people on stderr, for programs on stdout, under keys that stay."""

import json
import threading
import time

AGENTS = """
async def side_by_side(task, goal):
    many = 24 if goal == "many" else 8
    return await task.gather(*[task.generate(f"part {n} {goal}", max_tokens=5, keep=False) for n in range(many)])


async def large(task, goal):
    return (await task.generate("word " * 5000, max_tokens=20)).text


async def forgetful(task, goal):
    for number in range(9):
        await task.remember(f"{number} some words to keep")
        await task.generate("word " * 40, max_tokens=5, keep=False)
    return "done"
"""


def _call(shell, *arguments):
    (shell.folder / "mine.py").write_text(AGENTS)
    return shell.call(*arguments)


def _run(shell, agent, *more):
    return _call(shell, "run", "go", "--agent", f"mine:{agent}", "--model", "scripted", *more)


def test_time_is_told_as_people_count_and_as_calls_add_up(shell):
    """Both, under keys that stay, by run and by show."""
    began = time.monotonic()
    code, out, err = _run(shell, "side_by_side", "--json")
    passed = time.monotonic() - began
    assert code == 0, err
    found = json.loads(out)
    assert 0 < found["seconds"] < passed
    assert {"seconds", "model_seconds"} <= found.keys()
    shown = json.loads(shell.look("show", "last", "--json")[1])
    assert shown["model_seconds"] == found["model_seconds"]
    assert 0 < shown["seconds"] < passed
    assert "s in the model, summed over parallel calls)" in shell.look("show", "last")[1]


def test_as_many_calls_run_side_by_side_as_were_asked_for(shell, serve):
    """The engine sets no limit of its own below --concurrency."""
    (shell.folder / "mine.py").write_text(AGENTS)
    served = ("--model", "openai:x", "--base-url", serve("Yes.", together=threading.Barrier(24)))
    code, _, err = shell.call("run", "many", "--agent", "mine:side_by_side", *served, "--concurrency", "24")
    assert code == 0, err


def test_how_a_server_is_asked_is_set_by_the_environment(shell, serve):
    """What makes no sense is one line, before a run begins."""
    (shell.folder / "mine.py").write_text(AGENTS)
    (shell.folder / "tokenizer.json").write_text("{")
    arguments = ("run", "go", "--agent", "mine:side_by_side", "--model", "openai:x", "--base-url", serve("Yes."))
    code, _, err = shell.call(*arguments, TREERING_CALLS_PER_MINUTE="often")
    assert code == 2
    assert "expected TREERING_CALLS_PER_MINUTE to be a number above 0, found 'often'" in err
    code, _, err = shell.call(*arguments, TREERING_TOKENIZER=".")
    assert code == 2
    assert "tokenizer.json is not a tokenizer" in err
    assert shell.look("runs")[1] == ""
    assert shell.call(*arguments, TREERING_CALLS_PER_MINUTE="6000")[0] == 0


def test_json_comes_alone_on_stdout_while_progress_goes_on_on_stderr(shell):
    """The run's id before anything else."""
    _, out, err = _run(shell, "side_by_side", "--json")
    found = json.loads(out)
    assert err.splitlines()[0] == f"run {found['run']}"
    assert "TaskFinished" in err


def test_tasks_are_counted_under_one_key_and_listed_under_another(shell):
    """By whatever command; what is many is one object a line."""
    ran = json.loads(_run(shell, "side_by_side", "--json")[1])
    shown = json.loads(shell.look("show", "last", "--json")[1])
    assert ran["tasks"] == shown["tasks"] == 1
    assert [task["path"] for task in shown["tree"]] == ["1"]
    assert "0 replies" not in shell.look("show", "last")[1]
    assert "0 sources" in shell.look("show", "last")[1]


def test_a_prompt_that_was_cut_is_seen(shell):
    """As it happens, and among the events."""
    code, _, err = _run(shell, "large", "--window", "1500")
    assert code == 0
    assert "cut 5001 to " in err
    assert "cut 5001 to " in shell.look("events", "last", "--kind", "ModelCalled")[1]


def test_what_goes_cold_is_counted(shell):
    """Not told one by one."""
    _, _, err = _run(shell, "forgetful", "--retention", "window:100")
    evicted = len(shell.look("events", "last", "--kind", "Evicted")[1].splitlines())
    assert evicted > 3
    assert "Evicted " not in err
    assert f"{evicted} memories went cold; treering events RUN --kind Evicted" in err


def test_files_of_one_name_are_cited_apart(shell):
    """By the folder that two inputs have in common; a single one by its own name."""
    for folder, bird in (("a", "parrot"), ("b", "falcon")):
        (shell.folder / folder).mkdir()
        (shell.folder / folder / "notes.md").write_text(f"Tomas Varga kept a {bird}.\n")
    both = ("run", "Who kept a falcon?", "--input", "a", "--input", "b/notes.md", "--model", "scripted", "--json")
    found = json.loads(_call(shell, *both)[1])
    assert {cited["source"] for cited in found["citations"]} == {"a/notes.md", "b/notes.md"}
    code, _, err = _call(shell, *both[:4], "--input", "pydoc:topics", "--model", "scripted", "--json")
    assert code == 0, err
    assert json.loads(shell.look("show", "last", "--json")[1])["sources"] == ["notes.md", "pydoc:topics"]


def test_what_does_not_answer_is_said_to_be_only_near(shell):
    """Its passages stand under words of their own; lines that only underline are left out."""
    (shell.folder / "town.md").write_text("Harbour\n*******\n\nTomas Varga kept a parrot named Admiral.\n")
    asked = ("run", "Which zebra governs distant quasars and harbour?", "--input", "town.md", "--model", "scripted")
    code, out, _ = _call(shell, *asked)
    assert code == 0
    answer, near, cited = out.splitlines()
    assert answer == "The input does not answer this."
    assert near == "nearest passages:"
    assert cited.endswith("  Harbour Tomas Varga kept a parrot named Admiral.")


def test_a_task_that_is_not_there_is_said_to_be_so(shell):
    """Nothing is not an answer."""
    _run(shell, "side_by_side")
    assert shell.look("events", "last", "--task", "1")[0] == 0
    code, out, err = shell.look("events", "last", "--task", "9.9")
    assert (code, out) == (2, "")
    assert "found no '9.9'" in err


def test_the_demo_prints_its_three_jobs_as_objects(shell):
    """One a line, and all else on stderr."""
    code, out, err = shell.call("demo", "--model", "scripted", "--json")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 3
    assert found[0]["run"] == found[1]["run"] != found[2]["run"]
    assert "treering run" in err
