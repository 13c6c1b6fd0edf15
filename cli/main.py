"""The entry: the group of commands, and how errors become one line and an exit code.

0 is ok, 1 a job that failed, 2 bad usage, 3 a log that does not hold (BrokenChain) or a path that differs
(Divergence).
"""

import os
import sys
from collections.abc import Sequence

import click

from treering.cli.comparing import bisect_, diff
from treering.cli.demo import demo
from treering.cli.forking import fork
from treering.cli.lab import lab
from treering.cli.looking import events, runs, show, verify
from treering.cli.model_commands import doctor, models
from treering.cli.printing import note, one_line
from treering.cli.remembering import memory
from treering.cli.running import ask, cancel, resume, run
from treering.cli.sharing import export, import_
from treering.events.errors import BrokenChain, Divergence, TreeringError, UsageError

__all__ = ["cli", "code_of", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="treering")
def cli() -> None:
    """Agent jobs as a tree of tasks on a log: resume, ask again, look at any event, fork.

    RUN is a run's id, a unique beginning of it, or `last`.
    """


for _command in (
    run,
    ask,
    resume,
    runs,
    show,
    memory,
    events,
    verify,
    lab,
    fork,
    diff,
    bisect_,
    export,
    import_,
    cancel,
    models,
    doctor,
    demo,
):
    cli.add_command(_command)


def code_of(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="treering", standalone_mode=False)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        note("interrupted")
        return 1
    except UsageError as error:
        note(f"treering: {error}")
        return 2
    except (BrokenChain, Divergence) as error:
        note(f"treering: {error}")
        return 3
    except TreeringError as error:
        note(f"treering: {error}")
        return 1
    except BrokenPipeError:  # whoever read our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last resort: a person gets one line, whatever it is
        return _unexpected(error)
    return 0


def _unexpected(error: Exception) -> int:
    """One line for an error that nobody expected; the exit code. Raises it where TREERING_DEBUG is set."""
    if os.environ.get("TREERING_DEBUG"):
        raise error
    found: BaseException = error
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    note(
        f"treering: unexpected {type(found).__name__}: {one_line(str(found), 300)}; this is a defect, TREERING_DEBUG=1 "
        "shows where"
    )
    return 1


def main() -> None:
    """The command `treering`."""
    sys.exit(code_of())


if __name__ == "__main__":
    main()
