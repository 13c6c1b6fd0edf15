"""The command that looks at memory: `treering memory`. It changes nothing and needs no model."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import click
import msgspec

from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import one_line, print_json
from treering.events.catalogue import LogSpan, MemoryRef, Ref, SourceSpan
from treering.events.log import find_run
from treering.memory.recall import Query
from treering.replays.remembering import Found, Known, Remembered, memory_at

__all__ = ["memory"]

_WIDEST = 120
_SHOWN = 40
_REFS = 3


@click.command(short_help="What a task remembers at any event.")
@click.argument("name", metavar="RUN")
@click.option("--at", type=click.IntRange(min=1), default=None, help="After this event; default: the last.")
@click.option("--task", default="", help="As this task sees it, such as 1.2; default: the last root.")
@click.option("--query", default=None, help="Also what a recall would find there, and why.")
@click.option("--deep", is_flag=True, help="With --query: look through the log itself too.")
@click.option("--all", "every", is_flag=True, help=f"More than the first {_SHOWN} memories of a kind.")
@store_option
@json_option
def memory(
    name: str, at: int | None, task: str, query: str | None, deep: bool, every: bool, store: str | None, as_json: bool
) -> None:
    """What a task remembers at any event: hot and cold, with ages, sizes and where each memory came from."""
    asked = None if query is None else Query(query, deep=deep)
    with closing(open_store(store)) as opened:
        run = find_run(opened, name).run
        found = memory_at(opened, run, at, task, asked)
    if as_json:
        print_json(_object(found))
        return
    _print(found, None if every else _SHOWN)
    if asked is not None and found.hits is not None:
        _print_hits(asked.text, found.hits, _names(found))


# --- for programs -----------------------------------------------------------------------------------------


def _object(found: Remembered) -> dict[str, Any]:
    """A view, with keys that stay. `hits` is null where nothing was asked."""
    place = found.place
    return {
        "run": place.run,
        "at": place.at,
        "task": place.task,
        "scope": place.own or "trunk",
        "clock": found.clock,
        "retention": found.retention,
        "digest": found.digest,
        "trunk": found.trunk,
        "hot": _sizes(found.of("hot")),
        "cold": _sizes(found.of("cold")),
        "pinned": _sizes(one for one in found.memories if one.pinned),
        "memories": [
            {**msgspec.to_builtins(one), "scope": one.scope or "trunk", "refs": _ref_objects(one.refs)}
            for one in found.memories
        ],
        "sources": [
            {"name": name, "source": digest, "characters": characters} for name, digest, characters in found.sources
        ],
        "hits": None
        if found.hits is None
        else [{**msgspec.to_builtins(hit), "ref": _ref_objects([hit.ref])[0]} for hit in found.hits],
    }


def _sizes(memories: Iterable[Known]) -> dict[str, int]:
    sizes = [one.tokens for one in memories]
    return {"count": len(sizes), "tokens": sum(sizes)}


def _ref_objects(refs: Iterable[Ref]) -> list[Any]:
    return [msgspec.to_builtins(ref) for ref in refs]


# --- for people -------------------------------------------------------------------------------------------


def _print(found: Remembered, most: int | None) -> None:
    place = found.place
    whose = f"task {place.task}" + ("" if place.own else " (the trunk)")
    click.echo(f"{click.style('memory', bold=True)} of run {place.run} at event {place.at}, as {whose} sees it")
    click.echo(f"token clock {found.clock:,} · retention {found.retention} · digest {found.digest[:12]}")
    names = _names(found)
    for state, color in (("hot", "yellow"), ("cold", "blue")):
        memories = found.of(state)
        pinned = sum(one.pinned for one in memories)
        more = f", {pinned} pinned" if pinned else ""
        size = f"{_count(len(memories), 'memory', 'memories')}, {sum(one.tokens for one in memories):,} tokens{more}"
        click.echo(f"{click.style(state, fg=color, bold=True)}  {size}")
        shown = memories[:most]
        for at, one in enumerate(shown):
            last = at + 1 == len(shown) == len(memories)
            for line in _lines(one, names, "└─ " if last else "├─ ", "   " if last else "│  "):
                click.echo(line)
        if len(shown) < len(memories):
            click.echo(f"└─ and {len(memories) - len(shown):,} more; --all shows them")
    click.echo(f"{click.style('sources', bold=True)}  {len(found.sources)}")
    for name, _, characters in found.sources[:most]:
        click.echo(f"·  {one_line(name, 60)}  {characters:,} characters")


def _lines(one: Known, names: dict[str, str], first: str, rest: str) -> Iterator[str]:
    """A memory in two lines: what it says with its size, age and uses; who wrote it from what."""
    marks = "".join(mark for mark, shown in (("^", one.pinned), ("=", one.held)) if shown)
    figures = f"{one.tokens:>5,} tok  unused {one.unused:>6,}  used {one.uses:>3}x"
    room = _width() - len(first) - len(figures) - 2
    text = one_line(f"{marks} {one.text}" if marks else one.text, room)
    yield f"{first}{text:<{room}}  {figures}"
    where = f" in {one.scope}" if one.scope else ""
    why = " · ".join(word for word, there in (("pinned", one.pinned), ("in the root's window", one.held)) if there)
    parts = [f"{one.id[:9]}{where}", f"by {one.task or '-'} op {one.op} (event {one.event})", f"age {one.age:,}", why]
    if one.refs:
        parts.append("from " + _refs_text(one.refs, names))
    yield rest + click.style(one_line(" · ".join(part for part in parts if part), _width() - len(rest)), dim=True)


def _print_hits(query: str, hits: Sequence[Found], names: dict[str, str]) -> None:
    title = click.style("a recall", bold=True)
    click.echo(f"{title} of {one_line(query, 60)!r} would find {_count(len(hits), 'hit', 'hits')}")
    for number, hit in enumerate(hits, start=1):
        click.echo(f"{number:>2}  {hit.tier:<6} {hit.score:>7.3f}  {one_line(hit.text, _width() - 21)}")
        by = f" · by {hit.task}" if hit.task else ""
        words = ", ".join(hit.words) or "none of the words"
        click.echo("    " + click.style(f"{_refs_text((hit.ref,), names)}{by} · has {words}", dim=True))


def _refs_text(refs: tuple[Ref, ...], names: dict[str, str]) -> str:
    shown = ", ".join(_ref_text(ref, names) for ref in refs[:_REFS])
    return shown if len(refs) <= _REFS else f"{shown} and {len(refs) - _REFS} more"


def _ref_text(ref: Ref, names: dict[str, str]) -> str:
    match ref:
        case SourceSpan():
            return f"{names.get(ref.source, ref.source[:9])}[{ref.start}:{ref.end}]"
        case MemoryRef():
            return ref.id[:9]
        case LogSpan():
            return f"{ref.what} of {ref.task} op {ref.op} [{ref.start}:{ref.end}]"


def _names(found: Remembered) -> dict[str, str]:
    return {digest: name for name, digest, _ in found.sources}


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _width() -> int:
    return max(60, min(_WIDEST, shutil.get_terminal_size((100, 24)).columns))
