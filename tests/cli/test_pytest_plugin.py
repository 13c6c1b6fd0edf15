"""The pytest plugin, as a user meets it: logs are replayed, a change is shown and can be accepted."""

import json
import sys

import pytest

import treering.cli.log_tests  # noqa: F401 (loaded once, not by each run of pytest below)
from treering.cli.main import code_of

pytest_plugins = ["pytester"]

AGENT = """
async def compare(task, goal):
    sides = [task.spawn(argue, f"{side}: {goal}") for side in ("for", "against")]
    one, other = await task.gather(*sides)
    answer = await task.generate(f"For: {one} Against: {other} Decide: {goal}", max_tokens=60)
    await task.remember(answer.text)
    return answer.text


async def argue(task, goal):
    return (await task.generate(f"Argue {goal} in two sentences.", max_tokens=60)).text
"""


@pytest.fixture
def project(pytester):
    """A user's project with an agent and one exported log of it."""
    pytester.makepyfile(mine=AGENT)
    pytester.makeini("[pytest]\ntreering_logs = logs\naddopts = -p no:asyncio -p no:anyio -p no:hypothesispytest\n")
    pytester.mkdir("logs")
    assert code_of(["run", "Should tests sleep?", "--agent", "mine:compare", "--model", "scripted"]) == 0
    assert code_of(["export", "last", "--out", "logs/sleep.jsonl"]) == 0
    sys.modules.pop("mine")
    return pytester


def _change(project, old, new):
    text = (project.path / "mine.py").read_text()
    assert old in text
    (project.path / "mine.py").write_text(text.replace(old, new))


def test_a_log_is_a_test_that_passes_while_the_agent_takes_its_path(project):
    """Comments and names may change; no model is asked."""
    _change(project, "one, other", "first, second")
    _change(project, "{one} Against: {other}", "{first} Against: {second}")
    done = project.runpytest_inprocess("-v")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["*logs/sleep.jsonl::sleep PASSED*"])


def test_a_changed_agent_fails_readably_and_can_be_accepted(project):
    """Where it parted, what was recorded and asked, and the command; then only what depends on it is paid."""
    before = (project.path / "logs" / "sleep.jsonl").read_bytes()
    _change(project, "Decide: {goal}", "Now decide: {goal}")
    done = project.runpytest_inprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*the agent took another path than *sleep.jsonl", "at task 1 op 5, in *mine.py:4"])
    done.stdout.fnmatch_lines(["  -[[]user] For: *Decide: Should tests sleep?", "  +[[]user] For: *Now decide: *"])
    done.stdout.fnmatch_lines(["*pytest --treering-accept *sleep.jsonl"])
    assert "Traceback" not in done.stdout.str()
    assert (project.path / "logs" / "sleep.jsonl").read_bytes() == before
    done = project.runpytest_inprocess("--treering-accept")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["treering: accepted *sleep.jsonl: 2 replies taken over, * tokens paid"])
    project.runpytest_inprocess().assert_outcomes(passed=1)
    assert "Now decide" in (project.path / "logs" / "sleep.jsonl").read_text()
    assert code_of(["import", "logs/sleep.jsonl", "--store", "other.db"]) == 0
    assert code_of(["verify", "last", "--store", "other.db"]) == 0


def test_another_result_and_one_more_call_are_divergences_too(project):
    """The path is the same up to the end, which is not; or goes on where the log ends."""
    _change(project, "    return answer.text", "    return answer.text.upper()")
    done = project.runpytest_inprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["at the end of task 1, in *"])
    _change(project, "    return answer.text.upper()", '    return (await task.generate("More?", max_tokens=9)).text')
    done = project.runpytest_inprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        ["the agent goes on where the log *sleep.jsonl ends: task 1 op 7*", "*--treering-accept*"]
    )


def test_an_agent_that_fails_is_not_accepted(project):
    """The log stays as it was."""
    before = (project.path / "logs" / "sleep.jsonl").read_bytes()
    _change(project, "    return answer.text", '    raise ValueError("no")')
    done = project.runpytest_inprocess("--treering-accept")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["the changed agent failed (ValueError: no (mine.py:6)); *sleep.jsonl is as it was"])
    assert (project.path / "logs" / "sleep.jsonl").read_bytes() == before


def test_a_log_that_does_not_hold_is_a_failure_in_one_line(project):
    """Truncated, or of an agent that is gone: accepting is no way out."""
    path = project.path / "logs" / "sleep.jsonl"
    whole = path.read_text()
    path.write_text(whole[:2000])
    done = project.runpytest_inprocess("--treering-accept")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["expected an exported log in *truncated"])
    path.write_text(whole)
    (project.path / "mine.py").unlink()
    done = project.runpytest_inprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["expected the agent mine:compare to be importable*"])


def test_the_fixture_replays_a_log_with_agents_of_the_test(project):
    """In a test of one's own, beside other assertions."""
    project.makepyfile(
        test_own="""
        from mine import compare

        def test_same(treering_replay):
            treering_replay("logs/sleep.jsonl", agents={"mine:compare": compare})

        def test_other(treering_replay):
            async def other(task, goal):
                return "nothing"
            treering_replay("logs/sleep.jsonl", agents={"mine:compare": other})

        def test_missing(treering_replay):
            treering_replay("logs/none.jsonl")
        """
    )
    done = project.runpytest_inprocess("test_own.py")
    done.assert_outcomes(passed=1, failed=2)
    done.stdout.fnmatch_lines(["at the end of task 1, in *", "expected a log at *none.jsonl, found: *"])


def test_who_has_no_logs_pays_nothing(pytester):
    """The plugin is there, and neither a model nor the runtime is loaded; other files of lines are left alone."""
    (pytester.path / "data.jsonl").write_text(json.dumps({"line": "log"}) + "\n")
    pytester.makepyfile(
        """
        import sys

        def test_not_loaded(request):
            assert request.config.pluginmanager.has_plugin("treering")
            loaded = {"mlx", "msgspec", "anyio._core", "treering.runtime", "treering.events", "click"} & set(sys.modules)
            assert not loaded - {"anyio._core"}
        """
    )
    pytester.runpytest_subprocess("-p", "no:anyio").assert_outcomes(passed=1)


def test_a_replay_loads_no_model(project):
    """Recorded outcomes need no engine."""
    project.makepyfile(
        """
        import sys

        def test_replay(treering_replay):
            treering_replay("logs/sleep.jsonl")
            assert not {"mlx", "mlx_lm", "transformers", "httpx"} & set(sys.modules)
        """
    )
    project.runpytest_subprocess("-k", "test_replay").assert_outcomes(passed=1, deselected=1)
