"""The commands that compare: diff, which changes nothing and needs no model, and bisect, which forks and asks one."""

import os
import shlex
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from treering.cli.configuring import loaded
from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import answer_of, note, one_line, print_json
from treering.events.codec import to_json
from treering.events.errors import UsageError
from treering.events.log import find_run

if TYPE_CHECKING:
    from treering.replays.bisecting import Found
    from treering.replays.explaining import Comparison, Difference
    from treering.runtime.runner import Outcome

__all__ = ["bisect_", "diff"]

_SHOWN = 8
_SHOWN_LINES = 24
_SHOWN_MEMORIES = 10
_COLOURS = {"+": "green", "-": "red"}


@click.command(short_help="Where runs A and B parted, and why.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--all", "everything", is_flag=True, help="Show all tasks that differ, and whole texts.")
@store_option
@json_option
def diff(first: str, second: str, everything: bool, store: str | None, as_json: bool) -> None:
    """Where runs A and B parted: per task the first event that differs, its cause, and what its call saw."""
    from treering.replays.explaining import compare

    with closing(open_store(store)) as opened:
        a, b = find_run(opened, first).run, find_run(opened, second).run
        found = compare(opened, a, b, None if everything or as_json else _SHOWN)
    if as_json:
        print_json(found)
        return
    _print_sides(found)
    if found.equal:
        click.echo("equal: the same outcomes by task and op, the same results, the same memory")
        return
    shown = found.differences if everything else found.differences[:_SHOWN]
    for one in shown:
        _print_difference(one, everything)
    if len(shown) < len(found.differences):
        click.echo(f"\n… and {len(found.differences) - len(shown)} more tasks that differ; --all shows them")
    _print_rest(found, everything)


def _print_sides(found: "Comparison") -> None:
    a, b = found.a, found.b
    rows: list[tuple[str, str, str]] = [
        ("", "A", "B"),
        ("run", a.run, b.run),
        ("status", a.status, b.status),
        ("answer", one_line(_as_text(a.result), 40), one_line(_as_text(b.result), 40)),
        ("events", str(a.events), str(b.events)),
        ("tasks", str(a.tasks), str(b.tasks)),
        ("prompt tokens", f"{a.prompt} ({a.cached} cached)", f"{b.prompt} ({b.cached} cached)"),
        ("generated", str(a.generated), str(b.generated)),
        ("replies reused", str(a.reused), str(b.reused)),
        ("model seconds", f"{a.seconds:.1f}", f"{b.seconds:.1f}"),
        *(
            [("cost", f"{a.cost_micros / 1e6:.4f}", f"{b.cost_micros / 1e6:.4f}")]
            if a.cost_micros + b.cost_micros
            else []
        ),
        ("memory", f"{a.hot} hot, {a.cold} cold", f"{b.hot} hot, {b.cold} cold"),
    ]
    width = max(len(row[1]) for row in rows)
    for name, one, other in rows:
        differs = one != other and name not in ("", "run")
        click.echo(f"{name:<15} {one:<{width}}  " + (click.style(other, bold=True) if differs else other))
    if found.shared:
        click.echo(f"they share the events up to {found.shared}")


def _as_text(result: Any) -> str:
    answer = answer_of(result)[0]
    return answer if isinstance(answer, str) else "-" if answer is None else to_json(answer).decode()


def _print_difference(one: "Difference", whole: bool) -> None:
    task = one.task_b if one.task_a == one.task_b else f"{one.task_b} (in A {one.task_a})"
    where = f"op {one.op}" if one.op else "its end"
    what = {
        "asked": "asked for something else",
        "answered": "had another outcome",
        "joined": "took another result",
        "compacted": "was compacted otherwise",
        "ended": "is another",
    }.get(one.what, f"is in {one.what.removeprefix('only ').upper()} only")
    click.echo()
    click.echo(click.style(f"task {task}, {where}: {one.kind} {what}", bold=True) + _events(one.a, one.b))
    upstream = "" if one.upstream is None else f"  <- task {one.upstream[0]} {_place(one.upstream[1])}"
    click.echo(f"  because: {one.cause}{upstream}")
    _print_diff(one.diff, whole)
    if one.call is not None:
        brought = f" because of {'; '.join(one.call.because)}" if one.call.because else ""
        click.echo(f"  what the call of op {one.call.op} saw differs{brought}:{_events(one.call.a, one.call.b)}")
        _print_diff(one.call.diff, whole)
    if one.others:
        click.echo(f"  {one.others} later op{'s differ' if one.others > 1 else ' differs'} in this task")


def _events(a: int, b: int) -> str:
    return f"  [A {a or '-'}, B {b or '-'}]"


def _place(op: int) -> str:
    return f"op {op}" if op else "its end"


def _print_diff(text: str, whole: bool) -> None:
    lines = [line for line in text.splitlines() if not line.startswith(("---", "+++"))]
    for line in lines if whole else lines[:_SHOWN_LINES]:
        shown = line if whole or len(line) <= 160 else line[:159] + "…"
        click.echo("    " + click.style(shown, fg=_COLOURS.get(line[:1])))
    if not whole and len(lines) > _SHOWN_LINES:
        click.echo(f"    … {len(lines) - _SHOWN_LINES} more lines")


def _print_rest(found: "Comparison", whole: bool) -> None:
    for name, tasks in (("A", found.only_a), ("B", found.only_b)):
        if tasks:
            listed = tasks if whole else tasks[:_SHOWN]
            more = f" and {len(tasks) - len(listed)} more" if len(listed) < len(tasks) else ""
            click.echo(f"\ntasks in {name} only: {', '.join(listed)}{more}")
    if found.memory:
        click.echo(f"\nmemory: {len(found.memory)} differ{'s' if len(found.memory) == 1 else ''}")
    shown: Any = found.memory if whole else found.memory[:_SHOWN_MEMORIES]
    for change in shown:
        click.echo(f"  {change.id}  A {change.a or '-':<4}  B {change.b or '-':<4}  {one_line(change.text, 70)}")
    if len(shown) < len(found.memory):
        click.echo(f"  … and {len(found.memory) - len(shown)} more")


@click.command("bisect")
@click.argument("good", metavar="GOOD")
@click.argument("bad", metavar="BAD")
@click.option("--check", required=True, metavar="COMMAND", help="Exits with 0 if the answer on its stdin is good.")
@store_option
@json_option
def bisect_(good: str, bad: str, check: str, store: str | None, as_json: bool) -> None:
    """Find the reply of run BAD that makes the result go bad.

    Forks of GOOD take the first of BAD's replies and go on, half of what is left each time. The check is run by the
    shell with the answer on stdin, and RUN and STATUS in its environment. The forks stay in the store.
    """

    import anyio

    from treering.replays.bisecting import bisect
    from treering.runtime.runner import check_own, open_log

    def judge(run: str, outcome: "Outcome") -> bool:
        passed = _check(check, store, run, outcome)
        note(f"{run}: {'good' if passed else 'bad'}")
        return passed

    with closing(open_store(store)) as opened:
        names = [find_run(opened, name).run for name in (good, bad)]
        config = open_log(opened, names[0])[0].config
        check_own(names[0], config)

        async def search() -> "Found":
            async with loaded(config) as engine:
                return await bisect(opened, names[0], names[1], judge, engine)

        found = anyio.run(search)
    if as_json:
        print_json(found)
        return
    _print_found(names, found)


def _check(command: str, store: str | None, run: str, outcome: "Outcome") -> bool:
    answer = _as_text(outcome.result) if outcome.status == "finished" else outcome.error
    seen = {**os.environ, "RUN": run, "STATUS": outcome.status, **({"TREERING_STORE": store} if store else {})}
    done = subprocess.run(
        command, shell=True, input=answer, text=True, env=seen, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode in (126, 127):
        raise UsageError(f"expected a check that can be run, found {command!r} (exit code {done.returncode})")
    return done.returncode == 0


def _print_found(names: list[str], found: "Found") -> None:
    from treering.replays.text_diffs import text_diff

    one = found.culprit
    click.echo(click.style(f"task {one.task}, op {one.op}: this reply makes the result go bad", bold=True), nl=False)
    click.echo(_events(one.a, one.b))
    _print_diff(text_diff(one.before, one.after), True)
    if not found.alone:
        click.echo(f"  not alone: together with the {found.place - 1} replies before it that differ")
    calls = sum(trial.calls for trial in found.trials)
    click.echo(f"  {found.candidates} replies differ; {len(found.trials)} forks tried, {calls} calls of the model")
    if found.alone:
        click.echo(f"  see it: treering fork {names[0]} --set {shlex.quote(f'{one.a}={one.after}')} --start")
