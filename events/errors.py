"""The one hierarchy of errors. Each says what was expected, what was found and what to do."""

__all__ = ["InputError", "StoreError", "TreeringError", "UsageError"]


class TreeringError(Exception):
    """Base of all errors that this package raises on purpose. Its text is one clear line."""


class UsageError(TreeringError):
    """What was asked for cannot be done as asked. The command line exits with 2."""


class InputError(UsageError):
    """A source could not be read as text."""


class StoreError(TreeringError):
    """The log's store refused: locked, full, corrupted, newer than this program."""
