"""HTML pages as readable text: Markdown-like headings, paragraphs, lists, tables and code.

Owns the rendering only: it fetches nothing and runs nothing.

Invariant: every visible text of a page stands in the result, in the page's order, however deep it is nested.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bs4.element import Tag

__all__ = ["page_text"]

_HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
_HIDDEN = frozenset({"head", "iframe", "noscript", "script", "style", "svg", "template"})
_LISTS = frozenset({"ul", "ol", "menu", "dir"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "body", "caption", "center", "details", "dialog", "div", "dl", "fieldset"}
    | {"figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "html", "legend", "main", "nav"}
    | {"option", "p", "section", "select", "summary", "table", "tbody", "tfoot", "thead", "title"}
)
_TIGHT = frozenset({"li", "tr", "dt", "dd"})
_SPACES = re.compile(r"[ \t\n\r\f]+")
_AROUND_BREAK = re.compile(" ?\0 ?")
_FENCES = re.compile(r"^ *(`{3,})", re.MULTILINE)
_MAX_NESTING = 8


def page_text(html: str) -> str:
    """Text of an HTML page. Headings become `# `, items `- ` or `1. `, `pre` a fenced block, cells ` | `."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    page = _Page()
    if soup.title is not None and soup.h1 is None:
        page.title(soup.title.get_text())
    for tag, text in _walk(soup):
        if tag is None:
            page.write(text)
        elif text == "enter":
            page.enter(tag)
        else:
            page.leave(tag)
    page.end_block()
    return "".join(page.out)


def _walk(root: "Tag") -> "Iterator[tuple[Tag | None, str]]":
    """Each element as it opens and closes, and each text between; a `pre` opens without its content."""
    from bs4.element import NavigableString, PreformattedString, Tag

    waiting: list[tuple[object, bool]] = [(root, False)]
    while waiting:  # no recursion: a page may be nested deeper than Python's stack
        node, leaving = waiting.pop()
        if isinstance(node, Tag):
            if leaving:
                yield node, "leave"
            elif node.name not in _HIDDEN and not node.has_attr("hidden"):
                yield node, "enter"
                waiting.append((node, True))
                if node.name != "pre":
                    waiting.extend((child, False) for child in reversed(node.contents))
        elif isinstance(node, NavigableString) and not isinstance(node, PreformattedString):
            yield None, str(node)


class _Page:
    """The page as far as it is rendered: finished blocks in `out`, and the block that is being written."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self._inline: list[str] = []
        self._lists: list[int | None] = []  # of each open list the number of its next item, or None
        self._quotes = 0
        self._mark = ""
        self._tight = False
        self._after_tight = False
        self._heading = ""

    def title(self, text: str) -> None:
        self._heading = "#"
        self.write(text)
        self.end_block()
        self._heading = ""

    def write(self, text: str) -> None:
        self._inline.append(text)

    def enter(self, tag: "Tag") -> None:
        name = tag.name
        if name in _HEADINGS:
            self.end_block()
            self._heading = _HEADINGS[name]
        elif name in _LISTS:
            self.end_block()
            start = str(tag.get("start", "1"))
            number = int(start) if start.isascii() and start.isdigit() and len(start) < 10 else 1
            self._lists.append(number if name == "ol" else None)
        elif name in _TIGHT:
            self.end_block()
            self._tight = True
            self._mark = self._item_mark() if name == "li" else "  " if name == "dd" else ""
        elif name in ("td", "th"):
            if "".join(self._inline).strip():
                self.write(" | ")
        elif name == "pre":
            self.end_block()
            self._preformatted(tag.get_text())
        elif name == "blockquote":
            self.end_block()
            self._quotes += 1
        elif name == "br":
            self.write("\0")
        elif name == "code":
            self.write("`")
        elif name == "img":
            self.write(str(tag.get("alt") or ""))
        elif name in _BLOCKS:
            self.end_block()

    def leave(self, tag: "Tag") -> None:
        name = tag.name
        if name in _HEADINGS or name in _BLOCKS or name in _TIGHT:
            self.end_block()
            self._heading = ""
        elif name in _LISTS:
            self.end_block()
            self._lists.pop()
            self._tight = bool(self._lists)
        elif name == "blockquote":
            self.end_block()
            self._quotes -= 1
        elif name == "code":
            self.write("`")

    def end_block(self) -> None:
        """Finish the block that is being written, if it holds anything."""
        text = _SPACES.sub(" ", "".join(self._inline)).strip(" ")
        self._inline.clear()
        text = _AROUND_BREAK.sub(" " if self._heading else "\n", text).strip("\n ")
        if text:
            self._emit(f"{self._heading} {text}" if self._heading else text)

    def _item_mark(self) -> str:
        if not self._lists or (number := self._lists[-1]) is None:
            return "- "
        self._lists[-1] = number + 1
        return f"{number}. "

    def _preformatted(self, text: str) -> None:
        text = text.strip("\n")
        if text.strip():
            fence = "`" * max([3, *(len(marks) + 1 for marks in _FENCES.findall(text))])
            self._tight = False
            self._emit(f"{fence}\n{text}\n{fence}")

    def _emit(self, block: str) -> None:
        """Append a block; a heading or a fence is never indented, so that it is known as one."""
        plain = block.startswith(("#", "```"))
        indent = "" if plain else "  " * min(_MAX_NESTING, max(0, len(self._lists) - 1))
        quote = "" if plain else "> " * min(_MAX_NESTING, self._quotes)
        mark = "" if plain else self._mark
        if not mark and self._lists and not plain:
            indent += "  "
        lines = block.split("\n")
        rest = quote + indent + " " * len(mark)
        text = "\n".join([quote + indent + mark + lines[0], *(rest + line for line in lines[1:])])
        gap = "\n" if self._tight and self._after_tight else "\n\n"
        self.out.append(gap + text if self.out else text)
        self._mark = ""
        self._after_tight, self._tight = self._tight, False
