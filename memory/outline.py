"""The shape of a text: its blocks and its headings.

Owns how Markdown, reStructuredText, plain prose and source code are told apart and divided at blank lines,
fences and headings. It never changes or measures the text: a block is a pair of offsets into it.

Invariant: blocks are in order, do not overlap, and hold every character that is not white space.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

__all__ = ["Block", "Kind", "definitions", "heading_trails", "line_start", "looks_like_code", "outline"]

_MAX_TITLE_CHARS = 200
_MAX_INDENT_CHARS = 64

_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_RULE = re.compile(r"([=\-~*^#+])\1{2,}$")
_NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3})*)\.?[ \t]+(\S.*)$")
_CHAPTER = re.compile(
    r"(volume|book|part|chapter|section|appendix|act|scene|canto)[ \t]+(?:\d{1,3}|[ivxlcdm]{1,7}|[a-z])"
    r"(?=$|[.:—–-]|[ \t]+(?-i:[^\Wa-z_]))",
    re.IGNORECASE,
)
_CODE_LINE = re.compile(
    r"[ \t]*(?:(?:def|class|async|import|from|return|elif|fn|let|const|var|func|package|public|private|static"
    r"|void|int|struct|enum|export|module|use|impl)\b.*[\w(){}\[\];:,'\"]$"
    r"|(?:if|for|while|with|try|else|except|finally|switch|case)\b.*[:{]$"
    r"|#(?:include|define|ifdef|endif|!)|//|/\*|\*/|@\w|self\."
    r"|[\w.]+(?:\[[^\]]*\])? [-+*/|:]?= ?\S|[\w.]+\(.*\)$)"
    r"|.*[{};]$"
)
_DEFINITION = re.compile(
    r"[ \t]*(?:(?:export|default|public|private|protected|static|final|abstract|async|pub(?:\([a-z]+\))?)[ \t]+)*"
    r"(?:def|class|fn|func|function|struct|enum|impl|trait|interface|module|namespace)[ \t]+\S.*$"
)
_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S")
_CLOSERS = (")", "]", "}")


Kind = Literal["text", "code", "heading"]


class Block(NamedTuple):
    """Some whole lines. `indent` orders nesting: a deeper block belongs to the shallower one before it.

    A heading has a `title` and a `style`, from which `heading_trails` computes its level.
    """

    start: int
    end: int
    indent: int
    kind: Kind
    title: str = ""
    style: tuple[str, int] = ("", 0)


class _Line(NamedTuple):
    start: int
    text: str

    @property
    def blank(self) -> bool:
        return not self.text or self.text.isspace()


class _Span(NamedTuple):
    """Lines `at` up to `end` of the text, before offsets are known."""

    at: int
    end: int
    kind: Kind
    title: str = ""
    style: tuple[str, int] = ("", 0)


def outline(text: str, code: bool) -> list[Block]:
    """Blocks of `text` in order. With `code` no line is a heading or a fence; a line ends at a newline."""
    lines = list(_lines(text))
    found: list[Block] = []
    at = 0
    while at < len(lines):
        if lines[at].blank:
            at += 1
            continue
        span = _code_span(lines, at) if code else _span(lines, at)
        found.append(_block(text, lines, span, found[-1] if found else None))
        at = span.end
    return found if code else _drop_numbered_lists(text, found)


def heading_trails(found: list[Block]) -> list[str]:
    """For each block the titles of the headings it stands under, its own included, joined by ` > `.

    Markdown fixes the level of its own headings; the others nest in the order in which their styles first
    appear, as in reStructuredText (docutils, "Sections").
    """
    levels: dict[tuple[str, int], int] = {}
    if any(block.style[0] == "atx" for block in found):
        levels = {("atx", depth): depth for depth in range(1, 7)} | {("=", 1): 1, ("-", 1): 2}
    open_titles: list[tuple[int, str]] = []
    trails: list[str] = []
    trail = ""
    for block in found:
        if block.kind == "heading":
            level = levels.setdefault(block.style, open_titles[-1][0] + 1 if open_titles else 1)
            while open_titles and open_titles[-1][0] >= level:
                open_titles.pop()
            open_titles.append((level, block.title))
            trail = " > ".join(title for _, title in open_titles)
        trails.append(trail)
    return trails


def definitions(text: str) -> Iterator[tuple[int, int, str]]:
    """Lines of source code that open a definition: offset, indentation, the line without its opening mark."""
    for line in _lines(text):
        if _DEFINITION.match(line.text[:_MAX_TITLE_CHARS]):
            title = line.text.strip().rstrip(":{ ")[:_MAX_TITLE_CHARS]
            yield line.start, _indent(line.text), title


def looks_like_code(text: str) -> bool:
    """Guess whether `text` is source code: a third of the first 400 lines outside fences read like it."""
    seen = code = 0
    fenced = False
    for line in islice(_lines(text), 2000):
        if _FENCE.match(line.text):
            fenced = not fenced
        elif not (fenced or line.blank):
            seen += 1
            code += _CODE_LINE.match(line.text[:_MAX_TITLE_CHARS].rstrip()) is not None
        if seen == 400:
            break
    return 3 * code > seen


def line_start(text: str, start: int) -> int:
    """Where to cut in front of the line that begins at `start`: with its indentation, unless that is absurd."""
    first = start
    while first < len(text) and text[first].isspace() and text[first] != "\n":
        first += 1
    return start if first - start <= _MAX_INDENT_CHARS else first


def _lines(text: str) -> Iterator[_Line]:
    start = 0
    for line in text.split("\n"):
        yield _Line(start, line)
        start += len(line) + 1


def _indent(line: str) -> int:
    prefix = line[: len(line) - len(line.lstrip())]
    return len(prefix.expandtabs(4)) if "\t" in prefix else len(prefix)


def _code_span(lines: list[_Line], at: int) -> _Span:
    end = at + 1
    while end < len(lines) and not lines[end].blank:
        end += 1
    return _Span(at, end, "code")


def _span(lines: list[_Line], at: int) -> _Span:
    line = lines[at].text
    if fence := _FENCE.match(line):
        return _Span(at, _fence_end(lines, at, fence[1]), "code")
    if atx := _ATX.match(line):
        title = atx[2].rstrip().rstrip("#").rstrip() or atx[2].rstrip()
        return _Span(at, at + 1, "heading", title, ("atx", len(atx[1])))
    if underlined := _underlined(lines, at):
        return underlined
    end = at + 1
    while end < len(lines) and not lines[end].blank and not _interrupts(lines[end].text):
        end += 1
    if end == at + 1 and (end == len(lines) or lines[end].blank):
        return _Span(at, end, "text", *_alone(line))
    return _Span(at, end, "text")


def _interrupts(line: str) -> bool:
    """Whether a line begins a block of its own without a blank line before it."""
    return line.lstrip(" ")[:1] in ("#", "`", "~") and bool(_FENCE.match(line) or _ATX.match(line))


def _fence_end(lines: list[_Line], at: int, mark: str) -> int:
    """The line after the fence that closes `mark`; without one the code runs to the end (CommonMark 4.5)."""
    for end in range(at + 1, len(lines)):
        closing = lines[end].text.strip()
        if closing.startswith(mark) and not closing.strip(mark[0]):
            return end + 1
    end = len(lines)
    while lines[end - 1].blank:
        end -= 1
    return end


def _underlined(lines: list[_Line], at: int) -> _Span | None:
    """A title over a rule (setext, reStructuredText), or between two equal rules (reStructuredText)."""
    following = [line.text.rstrip() for line in lines[at : at + 3]] + ["", ""]
    first, second, third = following[:3]
    if first[0].isspace() or len(first) > _MAX_TITLE_CHARS:
        return None
    if rule := _RULE.match(first):
        title = second.strip()
        if title and third == first and not _RULE.match(title) and len(title) <= len(first):
            return _Span(at, at + 3, "heading", title, (rule[1], 1))
    elif (rule := _RULE.match(second)) and "|" not in first and not _ITEM.match(first):
        return _Span(at, at + 2, "heading", first, (rule[1], 0))
    return None


def _alone(line: str) -> tuple[str, tuple[str, int]]:
    """Title and style of a line between blank ones, if it reads like `2.1 Scope` or `Chapter 3`."""
    title = line.strip()
    if line[0].isspace() or len(title) > _MAX_TITLE_CHARS // 2 or title[-1] in ",;:!?":
        return "", ("", 0)
    if chapter := _CHAPTER.match(title):
        return title, (chapter[1].casefold(), 0)
    numbered = _NUMBERED.match(title)
    if numbered and numbered[2][0].isupper() and title[-1] != ".":
        return title, ("numbered", numbered[1].count("."))
    return "", ("", 0)


def _drop_numbered_lists(text: str, found: list[Block]) -> list[Block]:
    """Make headings of the lines that stand alone; numbered neighbours without text between are a list."""
    for at, block in enumerate(found):
        if block.kind != "text" or not block.title:
            continue
        neighbours = found[max(0, at - 1) : at] + found[at + 1 : at + 2]
        if block.style != ("numbered", 0) or all(other.style != block.style for other in neighbours):
            found[at] = block._replace(kind="heading", indent=0)
    return found


def _block(text: str, lines: list[_Line], span: _Span, before: Block | None) -> Block:
    first, last = lines[span.at], lines[span.end - 1]
    fenced = span.kind == "code" and _FENCE.match(first.text) is not None
    indent = min(_indent(line.text) for line in lines[span.at : span.at + 1 if fenced else span.end])
    if before and before.kind != "heading":
        introduced = fenced and text[before.end - 1] == ":"
        if introduced or first.text.lstrip().startswith(_CLOSERS):
            indent = max(indent, before.indent + 1)
    start = line_start(text, first.start)
    return Block(start, last.start + len(last.text.rstrip()), indent, span.kind, span.title, span.style)
