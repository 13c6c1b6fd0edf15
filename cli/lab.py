"""The command `lab`: which retention policy would have served this run, or this published trace, best."""

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from treering.cli.opening import json_option, open_store, store_option
from treering.cli.printing import print_json, visible
from treering.events.errors import UsageError
from treering.events.log import find_run

if TYPE_CHECKING:
    from treering.replays.lab import Report

__all__ = ["lab"]


@click.command(short_help="The memory accesses of RUN under every policy.")
@click.argument("name", metavar="RUN", required=False)
@click.option(
    "--trace", type=click.Path(path_type=Path), default=None, help="A published cache trace instead of RUN."
)
@click.option("--policy", "policies", multiple=True, help="As --retention of run, or without :TOKENS. May repeat.")
@click.option("--size", default="10%", show_default=True, help="Tokens, or the share of all tokens, that stay hot.")
@click.option(
    "--plot", type=click.Path(path_type=Path), default=None, help="Draw tokens over time: FILE.svg or .png."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of what is drawn by chance.")
@store_option
@json_option
def lab(
    name: str | None,
    trace: Path | None,
    policies: tuple[str, ...],
    plot: Path | None,
    store: str | None,
    **options: Any,
) -> None:
    """Replay the memory accesses of RUN under every retention policy and the optimum; no model is asked."""
    from treering.memory.retention import POLICIES, parse_retention
    from treering.replays.lab import examine, size_of
    from treering.replays.traces import read_run, read_trace

    for rule in policies:
        parse_retention(f"{rule}:1" if rule in POLICIES else rule)
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise UsageError(f"expected --plot FILE.svg or FILE.png, found {str(plot)!r}")
    if (name is None) == (trace is None):
        raise UsageError("expected a RUN or --trace FILE, " + ("found neither" if name is None else "found both"))
    if trace is not None:
        found = read_trace(trace)
    else:
        with closing(open_store(store)) as opened:
            run = find_run(opened, name or "").run
            found = read_run(run, opened.read(run))
    rules = policies or (*([found.rule] if found.rule else []), *POLICIES, "none")
    size = size_of(found, options["size"])
    report = examine(found, rules, size, time.perf_counter, options["seed"])
    if plot is not None:
        _plot(report, plot)
    if options["as_json"]:
        print_json(msgspec.to_builtins(report))
    else:
        _print(report)


def _print(report: "Report") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("policy", "hits", "95 %", "regret", "evicted", "tokens", "peak", "µs"):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for one in report.policies:
        table.add_row(
            one.policy,
            f"{one.hit_ratio:.3f}",
            f"{one.low:.3f}-{one.high:.3f}",
            f"{one.regret:+.3f}",
            str(one.evictions),
            f"{one.mean_tokens:.0f}",
            str(one.peak_tokens),
            f"{one.ns_per_access / 1000:.2f}",
        )
    table.add_row("optimum", f"{report.optimum:.3f}", "", "", "", "", str(report.size), "")
    click.echo(
        f"{visible(report.name)}: {report.accesses} accesses to {report.distinct_tokens} tokens of memory, of which "
        f"{report.size} may stay hot"
    )
    Console().print(table)
    if not report.exact:
        click.echo("the sizes differ: the optimum is an estimate (farthest next use first), which a policy may beat")
    if report.choice is None:
        click.echo(f"no policy keeps to {report.size} tokens on the mean; give one with --policy, or another --size")
        return
    shares = ", ".join(f"{rule} {share:.0%}" for rule, share in report.choice.shares.items() if share)
    click.echo(
        f"it would choose {report.choice.policy}; over resamples of its {report.part_count} {report.parts}: {shares}"
    )


def _plot(report: "Report", path: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UsageError("expected matplotlib for --plot, found none; pip install 'treering[plot]'") from error
    matplotlib.rcParams["svg.hashsalt"] = "treering"  # the same picture for the same figures
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for one in report.policies:
        clocks, tokens = zip(*one.resident, strict=True)
        axes.plot(clocks, tokens, label=f"{one.policy}  {one.hit_ratio:.3f}", drawstyle="steps-post")
    axes.axhline(report.size, color="grey", linestyle=":", label=f"optimum  {report.optimum:.3f}")
    axes.set(xlabel="token clock", ylabel="hot tokens", title=f"{report.name}: hot tokens, and hit ratios")
    axes.legend()
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise UsageError(f"expected to write the plot to {path}, found: {error}") from error
    finally:
        pyplot.close(figure)
