"""Opening: which store a command reads, and the options that all commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from treering.events.errors import UsageError
from treering.events.log import LogStore

__all__ = ["json_option", "open_store", "store_option"]

_DEFAULT = ".treering/treering.db"
_BUSY_TIMEOUT_S = 6.0  # two runs in one file never fail in under five seconds, and nobody waits in silence for long

_F = TypeVar("_F", bound=Callable[..., Any])


def store_option(function: _F) -> _F:
    """The option that names the store."""
    return click.option("--store", default=None, help=f"The log's file. [TREERING_STORE, or {_DEFAULT}]")(function)


def json_option(function: _F) -> _F:
    """The option that asks for JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, or one a line.")(function)


def open_store(name: str | None, create: bool = False) -> LogStore:
    """The store that `name`, TREERING_STORE or the default means. Unless `create`, it must be there."""
    from treering.events.sqlite import SQLiteStore

    where = (name or os.environ.get("TREERING_STORE") or _DEFAULT).removeprefix("sqlite:")
    if "://" in where:
        raise UsageError(f"expected a path as the store, found {where!r}")
    path = Path(where).expanduser()
    if not create and not path.is_file():
        raise UsageError(f"expected a store at {path}, found none; `treering run` makes one, --store names another")
    return SQLiteStore(path, _BUSY_TIMEOUT_S)
