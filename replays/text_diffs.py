"""Text diffs for people: what two texts differ in, and little else.

Owns how texts are cut into lines to be compared. Invariant: equal texts have no diff.
"""

import difflib
import re

__all__ = ["text_diff"]

_SENTENCE = re.compile(r"(?<=[.!?]) ")
_LONG_LINE = 140
_MOST_LINES = 3000


def text_diff(before: str, after: str, name_a: str = "A", name_b: str = "B", context: int = 1) -> str:
    """A unified diff by lines, long lines by sentences; "" if there is none. Sizes are bounded."""
    a, b = _lines(before), _lines(after)
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    # What is common at both ends is left out beforehand, but for the context: windows are long and differ little.
    low = max(0, start - context)
    high = max(0, end - context)
    a, b = a[low : len(a) - high][:_MOST_LINES], b[low : len(b) - high][:_MOST_LINES]
    found = difflib.unified_diff(a, b, name_a, name_b, lineterm="", n=context)
    return "\n".join(line for line in found if not line.startswith("@@"))


def _lines(text: str) -> list[str]:
    found: list[str] = []
    for line in text.splitlines():
        found += [line] if len(line) <= _LONG_LINE else _SENTENCE.split(line)
    return found
