"""Agents by name.

Owns the way from a name in the log to a function and back, and the conversion of JSON to what a function's
annotations ask for. Live as in replay, an agent sees what JSON carries, never the objects of its caller.
"""

import importlib
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from treering.events.errors import UsageError
from treering.runtime.divergence import raised_at

__all__ = ["AgentFunction", "Agents"]

AgentFunction = Callable[..., Awaitable[Any]]
_BUILT_IN = {
    "reader": "treering.runtime.agents.reader:reader",
    "digest": "treering.runtime.agents.digest:digest",
}


class Agents:
    """Finds agents: those given here by name, the built-in ones, and any `MODULE:FUNCTION`."""

    def __init__(self, known: dict[str, AgentFunction] | None = None) -> None:
        self._known = dict(known or {})
        self._shapes: dict[AgentFunction, _Shape] = {}

    def resolve(self, agent: AgentFunction | str) -> tuple[str, AgentFunction]:
        """The name under which an agent is recorded, and its function. Raises UsageError."""
        if callable(agent):
            name = f"{agent.__module__}:{agent.__qualname__}"
            for short, place in _BUILT_IN.items():
                if place == name:
                    return short, agent
            for short, function in self._known.items():
                if function is agent:
                    return short, agent
            return name, agent
        if agent in self._known:
            return agent, self._known[agent]
        return agent, self._import(_BUILT_IN.get(agent, agent))

    def _import(self, name: str) -> AgentFunction:
        module_name, _, function_name = name.partition(":")
        if not function_name:
            raise UsageError(f"expected an agent (reader, digest or MODULE:FUNCTION), found {name!r}")
        try:
            here = str(Path.cwd())
            if here not in sys.path:
                sys.path.insert(0, here)  # a module beside where the person stands
            found = importlib.import_module(module_name)
            for part in function_name.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:  # whatever a module does when it is imported
            where = f" ({line})" if (line := raised_at(error)) else ""
            what = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
            raise UsageError(
                f"expected the agent {name} to be importable, found {type(error).__name__}: {what}{where}"
            ) from error
        if not inspect.iscoroutinefunction(found):
            raise UsageError(f"expected the agent {name} to be an async function, found {type(found).__name__}")
        return typing.cast(AgentFunction, found)

    def check(self, agent: AgentFunction | str, inputs: Iterable[str]) -> None:
        """Raise UsageError unless this agent can be called with inputs of these names."""
        name, function = self.resolve(agent)
        given = dict.fromkeys(inputs)
        second = self._shape(function).second
        goal = ("",) if second and second not in given else ()
        try:
            inspect.signature(function).bind(None, *goal, **given)
        except TypeError as error:
            what = ", ".join(given) or "no inputs"
            raise UsageError(
                f"expected the agent {name} to take a task, a goal and {what}, found: {error}"
            ) from error

    def returns(self, function: AgentFunction) -> Any:
        """What an agent says it returns; Any if it does not say."""
        return self._shape(function).hints.get("return", Any)

    def convert(self, result: bytes | msgspec.Raw, type_: Any) -> Any:
        """A recorded result as the type that its agent announces."""
        plain = msgspec.json.decode(bytes(result))
        if type_ is Any or type_ is None:
            return plain
        return msgspec.convert(plain, type_)

    async def invoke(self, function: AgentFunction, task: Any, goal: str, inputs: bytes) -> Any:
        """Call an agent with what its parameters ask for: the task, the goal, then the inputs by name."""
        shape = self._shape(function)
        given = {
            name: msgspec.convert(value, shape.hints[name]) if name in shape.hints else value
            for name, value in msgspec.json.decode(inputs).items()
        }
        if shape.second and shape.second not in given:
            return await function(task, goal, **given)
        return await function(task, **given)

    def _shape(self, function: AgentFunction) -> "_Shape":
        found = self._shapes.get(function)
        if found is None:
            try:
                hints = typing.get_type_hints(function)
            except NameError:  # an annotation that only a type checker can resolve
                hints = {}
            parameters = [*inspect.signature(function).parameters, "", ""]
            found = _Shape({name: hint for name, hint in hints.items() if hint is not type(None)}, parameters[1])
            self._shapes[function] = found
        return found


class _Shape(NamedTuple):
    """What an agent's annotations say, and the name of its second parameter ("" for none)."""

    hints: dict[str, Any]
    second: str
