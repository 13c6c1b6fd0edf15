"""Leases as locks on files: the right to write to a run, on one host.

Owns the lock, and a look at whether somebody has it. It knows nothing of the store. Invariant: the operating system
frees a lock when its process dies.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from treering.events.errors import StoreError

__all__ = ["FileLease"]


class FileLease:
    """An exclusive lock on one file, which the operating system frees when its process dies."""

    def __init__(self, path: Path, epoch: int) -> None:
        self._path = path
        self._epoch = epoch
        self._file: int | None = None

    @property
    def epoch(self) -> int:
        """Which of the run's leases this is."""
        return self._epoch

    def lock(self) -> bool:
        """Take the lock; whether it was free. Raises StoreError where no lock can be had."""
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"expected to make the lock file {self._path}, found: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise StoreError(f"expected to lock {self._path}, found: {error.strerror}") from error
        self._file = file
        with contextlib.suppress(OSError):  # only a help for whoever finds it locked: a full disk does not matter
            os.truncate(file, 0)
            os.write(file, str(os.getpid()).encode())
        return True

    @property
    def locked(self) -> bool:
        """Whether anyone has the lock."""
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreError(f"expected to read the lock file {self._path}, found: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(file)
        return False

    @property
    def holder(self) -> str:
        """Who has the lock, in words."""
        with contextlib.suppress(OSError, ValueError):
            return f"process {int(self._path.read_text())}"
        return "another process"

    def discard(self) -> None:
        """End the lease and remove its file: nobody asks for a past epoch again."""
        self.release()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def release(self) -> None:
        """Let others have it. Doing it twice is harmless."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
