"""Recall: what is asked and what is answered.

Owns the shape of a query and of a hit, and says which queries make no sense. What a query finds is decided in
`treering.memory.finding`; this part is loaded by every command, and stays light.
"""

from collections.abc import Callable

import msgspec

from treering.events.catalogue import Ref
from treering.events.errors import UsageError

__all__ = ["Hit", "Past", "Query", "check_unicode", "is_under"]

Past = Callable[[str], int]
"""For a task, the number below which its ops are in the past of whoever asks; 0 where nothing is."""


class Hit(msgspec.Struct, frozen=True):
    """One answer of a recall: its text, where it stands, and which tier gave it (`hot`, `cold`, `source`, `log`).

    `task` wrote it. `name` is the source's name and `heading` the trail of headings above a passage. `refs` are what
    a memory was made from.
    """

    ref: Ref
    text: str
    score: float
    tier: str
    name: str = ""
    heading: str = ""
    task: str = ""
    refs: tuple[Ref, ...] = ()


class Query(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is looked for: at most `k` memories and `k` passages about `text`.

    `over` is `memory`, `sources` or `all`; with `deep`, also `k` texts of the log itself, windows that are gone
    included. Filters: written by `task` or a task below it; from `source` (a passage of it, or made from one), by name
    or digest; written at least `min_age_tokens` and at most `max_age_tokens` ago on the token clock. (Not by event:
    where siblings run, numbers of events are a matter of timing.) Sources have neither writer nor age, and texts of
    the log no source or age: filters on these leave them out. Raises UsageError for what makes no sense.
    """

    text: str
    k: int = 5
    over: str = "all"
    task: str = ""
    source: str = ""
    min_age_tokens: int = 0
    max_age_tokens: int | None = None
    deep: bool = False

    def __post_init__(self) -> None:
        check_unicode(self.text)
        if self.over not in ("memory", "sources", "all"):
            raise UsageError(f"expected over to be memory, sources or all, found {self.over!r}")
        if self.k < 0:
            raise UsageError(f"expected k to be 0 or more, found {self.k}")
        if self.max_age_tokens is not None and self.max_age_tokens < self.min_age_tokens:
            raise UsageError(
                f"expected ages from {self.min_age_tokens} tokens up, found at most {self.max_age_tokens}; swap them"
            )

    @property
    def has_age(self) -> bool:
        """Whether it asks for an age."""
        return self.min_age_tokens > 0 or self.max_age_tokens is not None


def check_unicode(text: str) -> None:
    """Raises UsageError for text that no log can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"expected text in valid Unicode, found half a character at {error.start}; decode its bytes with "
            "errors='replace'"
        ) from None


def is_under(path: str, task: str) -> bool:
    """Whether `path` is `task` or a task below it."""
    return path == task or (path.startswith(task) and path[len(task)] in ".~")
