"""CI: a skip that nobody expected fails there, and only there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_expected():
    pytest.skip("which of several came first is a new sample in a fork")

@pytest.mark.xfail
def test_known():
    raise AssertionError

{more}
"""
SKIPPED = 'def test_unexpected():\n    pytest.skip("the moon is not full")'
SKIPPED_MODULE = 'pytest.importorskip("no_such_module_at_all")'


@pytest.mark.parametrize(
    ("more", "environment", "code"),
    [("", "true", 0), (SKIPPED, "true", 1), (SKIPPED, "", 0), (SKIPPED_MODULE, "true", 2), (SKIPPED_MODULE, "", 5)],
    ids=["expected", "unexpected", "elsewhere", "module", "module-elsewhere"],
)
def test_an_unexpected_skip_fails_in_ci_alone(tmp_path, more, environment, code):
    """The exit code is pytest's: 0 for passed, 1 for failed, 2 for a module that fails, 5 for no tests."""
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS.format(more=more))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "CI": environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout
    assert ("expected no skip in CI" in done.stdout) == (code in (1, 2))
