"""The commands about this machine: models, doctor."""

import os
import platform
import sqlite3
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from treering.cli.opening import json_option
from treering.cli.printing import note, print_json
from treering.events.errors import TreeringError

__all__ = ["doctor", "models"]


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """The models that can be fetched, and whether they are here."""
    if context.invoked_subcommand is not None:
        return
    from treering.runtime.engines.models import known_models

    for model in known_models():
        if as_json:
            print_json(
                {
                    "name": model.name,
                    "aliases": model.aliases,
                    "present": model.present,
                    "path": str(model.path),
                    "bytes": model.size_bytes,
                }
            )
        else:
            here = f"here: {model.path}" if model.present else "not here; treering models pull " + model.name
            click.echo(f"{model.name}  {', '.join(model.aliases)}  {model.size_bytes / 1e6:.0f} MB  {here}")


@models.command()
@click.argument("name", default="embedded")
@json_option
def pull(name: str, as_json: bool) -> None:
    """Fetch a known model, once."""
    from treering.runtime.engines.models import pull as fetch

    note(f"fetching {name} unless it is here")
    path = fetch(name)
    print_json({"name": name, "path": str(path)}) if as_json else click.echo(str(path))


def _checks() -> list[tuple[str, bool, str]]:
    from treering.runtime.engines.models import known_models

    version = ".".join(map(str, sys.version_info[:3]))
    store = Path(os.environ.get("TREERING_STORE", ".treering/treering.db").removeprefix("sqlite:")).absolute()
    folder = store.parent
    while not folder.exists():
        folder = folder.parent
    model = known_models()[0]
    return [
        ("python", sys.version_info >= (3, 11), f"{version} (3.11 or newer)"),
        ("platform", sys.platform in ("linux", "darwin"), platform.platform()),
        ("sqlite", sqlite3.sqlite_version_info >= (3, 35), sqlite3.sqlite_version),
        ("store", os.access(folder, os.W_OK), f"{store} can be written"),
        ("mlx", find_spec("mlx") is not None and find_spec("mlx_lm") is not None, "mlx and mlx-lm are installed"),
        (
            "model",
            model.present,
            f"{model.path}" + ("" if model.present else f" (treering models pull {model.name})"),
        ),
    ]


def _measures() -> list[tuple[str, bool, str]]:
    """The device, the matrix library and their speed, as measured now."""
    from treering.runtime.engines.mlx_probe import probe

    note("measuring, for some seconds")
    try:
        found = probe()
    except (TreeringError, ImportError) as error:
        return [("device", False, f"MLX does not run here: {error}")]
    blas = found.blas
    speed = f"{found.product_gflops:.0f} GFLOP/s in float32"
    if found.prefill_tokens_s is not None:
        speed += (
            f"; {found.model}: {found.prefill_tokens_s:.0f} tokens/s read, {found.decode_tokens_s:.0f} written, "
            f"{found.batch_decode_tokens_s:.0f} by eight together"
        )
    return [
        ("device", True, f"{found.device}, mlx {found.mlx}"),
        ("blas", blas.library != "reference", " ".join(filter(None, (blas.library, blas.path, blas.advice)))),
        ("speed", True, speed),
    ]


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Whether this machine has what is needed, and how fast it is."""
    checks = _checks()
    if all(good for name, good, _ in checks if name == "mlx"):
        checks += _measures()
    if as_json:
        for name, good, detail in checks:
            print_json({"check": name, "ok": good, "detail": detail})
    else:
        for name, good, detail in checks:
            click.echo(f"{'ok  ' if good else 'MISS'} {name:<9} {detail}")
    raise SystemExit(0 if all(good for _, good, _ in checks) else 1)
