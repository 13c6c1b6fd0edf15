"""The one hierarchy of errors. Each says what was expected, what was found and what to do."""

__all__ = [
    "BrokenChain",
    "Divergence",
    "InputError",
    "LeaseHeld",
    "LeaseLost",
    "RunNotFound",
    "StoreError",
    "TreeringError",
    "UsageError",
]


class TreeringError(Exception):
    """Base of all errors that this package raises on purpose. Its text is one clear line."""


class UsageError(TreeringError):
    """What was asked for cannot be done as asked. The command line exits with 2."""


class InputError(UsageError):
    """A source could not be read as text."""


class RunNotFound(UsageError):
    """No run, or more than one, answers to a name."""


class StoreError(TreeringError):
    """The log's store refused: locked, full, corrupted, newer than this program."""


class LeaseHeld(StoreError):
    """Another process writes to this run. `holder` says which, in words."""

    def __init__(self, message: str, holder: str = "another process") -> None:
        super().__init__(message)
        self.holder = holder


class LeaseLost(StoreError):
    """Another process took this run over while we held it; nothing was appended."""


class BrokenChain(TreeringError):
    """A log is not what was written. `seq` is the first event that does not fit. Exit code 3."""

    def __init__(self, seq: int, why: str) -> None:
        super().__init__(f"the log is broken at event {seq}: {why}")
        self.seq = seq


class Divergence(TreeringError):
    """Code asked for something else than what is recorded. Exit code 3.

    `task` and `op` say where, `difference` is a text diff of what was recorded and what was asked, `line`
    the place in the agent's code.
    """

    def __init__(
        self, task: str, op: int, recorded: str, asked: str, difference: str, line: str, advice: str
    ) -> None:
        super().__init__(
            f"task {task} op {op} asked for {asked} where {recorded} is recorded, at {line}; {advice}\n{difference}"
        )
        self.task = task
        self.op = op
        self.difference = difference
        self.line = line
