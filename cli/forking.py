"""The command that makes another of a run: fork.

Owns which configuration a fork gets. It changes no run that is there.
"""

from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from treering.cli.configuring import changed, check_window, loaded, on_engine, settings_options
from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import note, print_json, print_outcome
from treering.cli.running import go_on
from treering.events.errors import UsageError
from treering.events.log import LogStore, find_run

if TYPE_CHECKING:
    from treering.cli.interrupting import Job
    from treering.events.catalogue import RunConfig

__all__ = ["fork"]


@click.command()
@click.argument("name", metavar="RUN")
@click.option(
    "--at", type=click.IntRange(min=1), help="The last event to share. Default: all, or up to the first edit."
)
@click.option("--set", "edits", multiple=True, metavar="SEQ=TEXT", help="Let this outcome of a model be TEXT.")
@click.option("--start", is_flag=True, help="Go on in the fork at once.")
@click.option("--live-tools", is_flag=True, help="With --start: tools may act where RUN did not call them so.")
@settings_options(inherited=True)
@store_option
@json_option
def fork(
    name: str,
    at: int | None,
    edits: tuple[str, ...],
    start: bool,
    live_tools: bool,
    store: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """A new run that shares the past of RUN and can go another way.

    What the options say holds after the shared part, and is as in RUN where they are not given. With --agent, the
    question is asked again from its beginning, and what stays the same is taken over.
    """
    from treering.cli.interrupting import finish_job
    from treering.runtime.forking import fork_run

    async def work(job: "Job") -> int:
        parent = find_run(opened, name).run
        where = at if at is not None else opened.head(parent)[0]
        wanted = _edits(edits)
        config = _config(opened, parent, where, [seq for seq, _ in wanted], options)
        # Another model's weights are part of the configuration, so it is loaded before the fork is made.
        another = options["model"] is not None or options["base_url"] is not None
        async with AsyncExitStack() as stack:
            engine = None
            if config is not None and another:
                engine = await stack.enter_async_context(loaded(config))
                config = on_engine(config, engine)
            made = fork_run(opened, parent, where, wanted, config=config, agent=options["agent"] or "")
            job.run = made
            if start:
                return print_outcome(await go_on(opened, made, None, engine=engine, live_tools=live_tools), as_json)
        if as_json:
            print_json({"run": made, "parent": parent, "cut": opened.row(made).cut})
        else:
            click.echo(made)
            note(f"go on with: treering resume {made}")
        return 0

    with closing(open_store(store)) as opened:
        code = finish_job(work)
    raise SystemExit(code)


def _config(store: LogStore, parent: str, at: int, edited: list[int], options: dict[str, Any]) -> "RunConfig | None":
    """The configuration of the parent where it is cut, with what the options say otherwise; None: nothing."""
    from treering.replays.showing import state_at
    from treering.runtime.forking import cut_before

    if all(value is None for value in options.values()):
        return None
    config = changed(state_at(store, parent, cut_before(store, parent, at, edited)).config, options)
    if options["window"] is not None:
        check_window(config)
    return config


def _edits(given: tuple[str, ...]) -> list[tuple[int, str]]:
    edits = []
    for one in given:
        seq, sign, text = one.partition("=")
        if not sign or not seq.isdecimal():
            raise UsageError(f"expected --set SEQ=TEXT, found {one!r}")
        edits.append((int(seq), text))
    return edits
