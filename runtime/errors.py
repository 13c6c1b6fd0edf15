"""What agent code may meet: the typed failures of ops and tasks."""

from treering.events.catalogue import Failure, Refused
from treering.events.errors import TreeringError, UsageError

__all__ = [
    "BudgetExceeded",
    "ChildCancelled",
    "ChildFailed",
    "LimitReached",
    "ModelFailed",
    "NotRunInFork",
    "OpMisused",
    "OpTimeout",
    "OutcomeUnknown",
    "ReplayEnded",
    "ToolFailed",
    "WindowTooSmall",
    "refusal",
    "told",
]


class OpMisused(UsageError):
    """Agent code used an op in a way that could not be replayed."""


class WindowTooSmall(UsageError):
    """What must stay in a window, and the reply, do not fit it."""


class BudgetExceeded(TreeringError):
    """A budget did not allow the call. The task may finish with what it has."""


class LimitReached(TreeringError):
    """A cap on the tree (depth, children, tasks) did not allow the child."""


class ChildFailed(TreeringError):
    """A child raised. Its siblings go on. The message is that of the task below which raised first, with its path.

    `line` is the place in that task's code, if it is known.
    """

    def __init__(self, path: str, failure: Failure) -> None:
        first = failure.kind == "ChildFailed"
        super().__init__(failure.message if first else f"task {path} failed: {told(failure, path)}")
        self.path = path
        self.line = failure.line


class ChildCancelled(TreeringError):
    """A child was cancelled before it had a result."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"task {path} was cancelled: {reason}")
        self.path = path


class ModelFailed(TreeringError):
    """The model gave no answer after all attempts."""


class ToolFailed(TreeringError):
    """A tool raised or gave nothing that can be recorded."""


class OpTimeout(TreeringError):
    """A deadline that the agent set passed first."""


class OutcomeUnknown(TreeringError):
    """A tool that may not be repeated was called before a crash, and whether it acted is not known."""


class NotRunInFork(TreeringError):
    """A tool that touches the world is called in a fork otherwise than in its parent; forks leave the world alone."""


class ReplayEnded(TreeringError):
    """A replay reached the end of its log."""


def told(failure: Failure, path: str = "") -> str:
    """A failure in one line, without its place in the code. `path`: the task that the reader knows it is about."""
    message = failure.message.removeprefix(f"task {path}: ")
    return message if failure.kind in ("ChildFailed", message) else f"{failure.kind}: {message}"


def refusal(refused: Refused, path: str) -> BudgetExceeded | LimitReached:
    """What a recorded refusal raises in the task `path`."""
    text = f"task {path}: {refused.what} allows {refused.limit:g}, {refused.needed:g} would be needed"
    if refused.of:
        text += f"; the budget= of the spawn of task {refused.of} sets it"
    elif refused.what not in ("budget_system", "budget_cost"):  # these have no option of their own
        text += f"; --{refused.what.replace('_', '-')} sets it"
    return BudgetExceeded(text) if refused.what.startswith("budget") else LimitReached(text)
