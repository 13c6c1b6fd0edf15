"""The demo, on the scripted model."""

import subprocess
import sys


def test_the_demo_ends_with_answers_the_tree_the_costs_and_what_to_try(tmp_path):
    """Two questions and a digest, with citations; then the commands that look at what was recorded, which work."""
    program = [sys.executable, "-m", "treering.cli.main"]

    def call(*arguments):
        return subprocess.run([*program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = call("demo", "--model", "scripted")
    assert done.returncode == 0, done.stderr
    jobs, _, end = done.stdout.partition("> treering show ")
    assert jobs.count("  [1] ") == 3
    assert jobs.count("topics[") >= 2
    for part in ("1 reader  finished", "  2.3 ", "memory: ", "costs: ", "Try next:"):
        assert part in end
    offered = [line.split("#")[0].split() for line in end.partition("Try next:\n")[2].splitlines()]
    assert len(offered) == 5
    for name, command, *rest in offered:
        assert name == "treering"
        if command != "ask":
            assert call(command, *rest).returncode == 0
