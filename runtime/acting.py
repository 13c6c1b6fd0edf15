"""Tool calls: on disk before they act, and never twice where that matters.

Owns the way of a call from its request to its outcome, and the key by which a tool can tell a repetition. It
never chooses a tool. Invariant: a tool that is not idempotent is called at most once for an op.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from treering.events.catalogue import Failure, Refused, ToolCalled, ToolReturned
from treering.events.codec import to_json
from treering.events.errors import UsageError
from treering.runtime.errors import NotRunInFork, refusal
from treering.runtime.journal import OpRecord

if TYPE_CHECKING:
    from treering.runtime.runner import Runner

__all__ = ["Act", "current_call_key", "perform_act"]

_call_key: ContextVar[str] = ContextVar("treering_call_key")


def current_call_key() -> str:
    """For tools: the idempotency key of the call that is being made, the same each time it is made again.

    Raises UsageError outside of a tool that `task.call` called.
    """
    key = _call_key.get("")
    if not key:
        raise UsageError("expected to be in a tool that task.call called, found no call")
    return key


class Act(msgspec.Struct):
    """A tool call as it is asked for. `name` is how the log calls the tool, `encoded` its arguments as JSON."""

    number: int
    tool: Callable[..., Awaitable[Any]]
    name: str
    arguments: dict[str, Any]
    encoded: bytes
    request: str
    idempotent: bool


async def perform_act(runner: "Runner", path: str, act: Act, record: OpRecord) -> ToolReturned:
    """Call the tool, unless a fork takes over what it returned; what it returned, on disk.

    Raises OutcomeUnknown, NotRunInFork, BudgetExceeded.
    """
    runner.need_live(path, act.number, "call")
    before = record.called if isinstance(record.called, ToolCalled) else None
    if before is not None and before.request != act.request:
        before = None
    returned = _taken_over(runner, path, act)
    if returned is None and before is not None and not act.idempotent:
        raise runner.unknown(path, act.number, act.name, record)
    attempt = record.attempts if returned is not None and before is not None else record.attempts + 1
    if attempt > record.attempts:
        # What was begun goes on under the key of its first attempt, in a fork too; another request is another effect.
        again = f"/{attempt}" if attempt > 1 else ""
        key = f"{runner.run}/{path}/{act.number}{again}" if before is None else before.key
        called = ToolCalled(act.name, msgspec.Raw(act.encoded), act.request, key, act.idempotent)
        seq, refused = runner.sequencer.append(called, path, act.number, attempt)
        if isinstance(refused, Refused):
            await runner.sequencer.durable()
            raise refusal(refused, path)
        if returned is None:
            await runner.sequencer.durable(seq)
            returned = await _call(runner, act, key)
    assert returned is not None
    if runner.state.tasks[path].status != "running":
        await checkpoint_if_cancelled()  # ended from above: nothing may follow its end
    # Otherwise it is recorded even if a cancellation waits: the tool has acted.
    await runner.sequencer.record(returned, path, act.number, attempt)
    return returned


def _taken_over(runner: "Runner", path: str, act: Act) -> ToolReturned | None:
    if runner.reuse is None:
        return None
    found = runner.reuse.tool(path, act.number, act.request)
    if found is not None:
        return msgspec.structs.replace(found[1], reused=found[0])
    if runner.live_tools:
        return None
    raise runner.fatal(
        NotRunInFork(
            f"task {path} op {act.number}: expected the parent run to have called {act.name} so, found that it did "
            f"not; to let it act: treering resume {runner.run} --live-tools"
        )
    )


async def _call(runner: "Runner", act: Act, key: str) -> ToolReturned:
    started = runner.seams.monotonic()
    result = msgspec.Raw(b"null")
    failure: Failure | None = Failure(
        "timeout", f"no result within {runner.call_timeout_s:g} s; whether it acted is not known"
    )
    token = _call_key.set(key)
    try:
        with anyio.move_on_after(runner.call_timeout_s):
            result, failure = msgspec.Raw(to_json(await act.tool(**act.arguments))), None
    except Exception as error:
        failure = Failure(type(error).__name__, f"{type(error).__name__}: {error}")
    finally:
        _call_key.reset(token)
    return ToolReturned(result, round(runner.seams.monotonic() - started, 4), failure)
