"""Configuring: from options to a run's configuration and its engine.

Owns the options that `run` and `fork` share, and which engine a name means. It never writes to a log.
"""

import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from treering.cli.printing import note
from treering.events.catalogue import RunConfig
from treering.events.errors import UsageError

if TYPE_CHECKING:
    from treering.runtime.engine import Engine

__all__ = ["changed", "check_window", "loaded", "on_engine", "settings_options"]

_F = TypeVar("_F", bound=Callable[..., Any])
_SIZE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)
_DEFAULTS = RunConfig("reader", model="embedded")
_UNKNOWN_CONTEXT_TOKENS = 8192
_LEAST_BATCH = 32
_ASK_SERVER = "server"
"""The TREERING_TOKENIZER that lets a llama.cpp server count."""

_Field = tuple[str, str]
"""Where a setting stands in the configuration: ("", name), or the part and its name."""

_SETTINGS: tuple[tuple[str, _Field, Any, str], ...] = (
    ("--agent", ("", "agent"), str, "reader, digest or MODULE:FUNCTION."),
    ("--model", ("", "model"), str, "A known model, folder, hub name or openai:NAME."),
    ("--base-url", ("", "base_url"), str, "Where an openai:NAME model is served."),
    ("--window", ("", "window_tokens"), _SIZE, "Tokens of a task's window."),
    ("--seed", ("", "seed"), int, "The seed of sampled replies."),
    ("--concurrency", ("", "concurrency"), _SIZE, "Model calls at the same time."),
    ("--max-depth", ("limits", "depth"), _SIZE, "Levels of tasks, the question's own included."),
    ("--max-children", ("limits", "children"), _SIZE, "Children of one task."),
    ("--max-tasks", ("limits", "tasks"), _SIZE, "Tasks under one question."),
    ("--budget-tokens", ("budget", "tokens"), _SIZE, "Tokens, prompts included, that it may cost."),
    (
        "--budget-seconds",
        ("budget", "seconds"),
        _SECONDS,
        "Seconds in models and tools that it may cost, those of parallel calls added up.",
    ),
    ("--call-timeout", ("", "call_timeout_s"), _SECONDS, "Seconds that one call of a model or tool may take."),
    ("--retention", ("", "retention"), str, "window:, lru:, sieve:, s3fifo: or actr:TOKENS, or none."),
)


def settings_options(inherited: bool) -> Callable[[_F], _F]:
    """The options of a run's configuration. `inherited`: what is not given stays as in the parent run."""

    def decorate(function: _F) -> _F:
        for name, field, type_, text in reversed(_SETTINGS):
            default = None if inherited else _value(_DEFAULTS, field)
            show = default not in (None, "")
            option = click.option(name, _key(name), default=default, show_default=show, type=type_, help=text)
            function = option(function)
        return function

    return decorate


def changed(config: RunConfig | None, options: dict[str, Any]) -> RunConfig:
    """`config` (None: the defaults) with what the options say otherwise. Raises UsageError."""
    from treering.memory.retention import parse_retention
    from treering.runtime.registry import Agents

    config = config or _DEFAULTS
    for name, (part, field), _, _ in _SETTINGS:
        if (value := options[_key(name)]) is not None:
            inner = msgspec.structs.replace(getattr(config, part) if part else config, **{field: value})
            config = msgspec.structs.replace(config, **{part: inner}) if part else inner
    parse_retention(config.retention)
    Agents().resolve(config.agent)
    return config


def _key(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _value(config: RunConfig, field: _Field) -> Any:
    part, name = field
    return getattr(getattr(config, part) if part else config, name)


def on_engine(config: RunConfig, engine: "Engine") -> RunConfig:
    """The configuration on this engine. Raises UsageError if the window is larger than what it can read."""
    from treering.runtime.engine import ScoringEngine

    found = engine.info
    config = msgspec.structs.replace(
        config,
        weights=found.weights,
        template=found.template,
        context_tokens=found.context_tokens,
        overhead_tokens=found.overhead_tokens,
        scoring=isinstance(engine, ScoringEngine),
    )
    check_window(config)
    return config


def check_window(config: RunConfig) -> None:
    """Raise UsageError if the window is larger than what the model is known to read."""
    if 0 < config.context_tokens < config.window_tokens:
        raise UsageError(
            f"expected --window within the {config.context_tokens} tokens that {config.model} can read, "
            f"found {config.window_tokens}"
        )


@asynccontextmanager
async def loaded(config: RunConfig) -> "AsyncIterator[Engine]":
    """The engine of a configuration, ready to be asked; closed at the end, also of a cancellation. Seconds."""
    from anyio import CancelScope

    if config.model != "scripted":
        note(f"loading the model {config.model}")
    engine = await _load(config)
    try:
        yield engine
    finally:
        with CancelScope(shield=True):
            await engine.aclose()


async def _load(config: RunConfig) -> "Engine":
    if config.model == "scripted":
        from treering.runtime.testing import ScriptedEngine

        return ScriptedEngine()
    if config.model.startswith("openai:"):
        return await _connect(config)
    from anyio import to_thread

    from treering.runtime.engines.models import load_engine

    most = max(config.concurrency, _LEAST_BATCH)
    return await to_thread.run_sync(lambda: load_engine(config.model, batch_size=most))


def _calls_a_minute() -> float | None:
    given = os.environ.get("TREERING_CALLS_PER_MINUTE")
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"expected TREERING_CALLS_PER_MINUTE to be a number above 0, found {given!r}")
    return value


async def _connect(config: RunConfig) -> "Engine":
    if not config.base_url:
        raise UsageError(f"expected --base-url with the model {config.model}, found none")
    from treering.runtime.engines.openai import OpenAIEngine

    tokenizer = os.environ.get("TREERING_TOKENIZER") or None
    engine = OpenAIEngine(
        config.model.removeprefix("openai:"),
        config.base_url,
        # A server that does not say how much its model can read is taken to be able to read the window.
        assumed_context_tokens=max(config.window_tokens, _UNKNOWN_CONTEXT_TOKENS),
        timeout_s=max(config.call_timeout_s, 600.0),  # the run itself limits each attempt
        max_concurrent=config.concurrency,
        requests_per_minute=_calls_a_minute(),
        tokenizer=None if tokenizer == _ASK_SERVER else tokenizer,
        tokenize=tokenizer == _ASK_SERVER,
    )
    try:
        await engine.connect()
    except BaseException:
        await engine.aclose()
        raise
    return engine
