"""What all tests share: in CI, a skip that nobody expected is a failure.

A skip is a test that did not run. Here it is often right (no model yet, no root); on a machine that was made ready
for the tests it means that something is missing, and nobody reads the skips of a green run.
"""

import os
import re

import pytest

EXPECTED_SKIPS = {
    "waits; the simulated clock": "waiting in real time shows nothing that the simulated clock does not",
    "which of several came first is a new sample": "a fork of a race may rightly end otherwise",
    "this file system refuses such names": "macOS has no file names that are not Unicode",
}
"""How the reasons of skips that CI accepts begin (regular expressions), and why each is right there."""

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


def _judged(report):
    """The report, failed if it is a skip that CI does not accept."""
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(re.match(expected, reason) for expected in EXPECTED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"expected no skip in CI but those in tests/conftest.py, found: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Modules may skip themselves as a whole."""
    return _judged((yield))
