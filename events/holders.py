"""Holders: which process keeps a file locked.

Owns a look at what Linux says of locks, for error messages. Elsewhere nobody is named. It never takes a lock.
"""

from pathlib import Path

__all__ = ["holder_of"]

_LOCKS = Path("/proc/locks")


def holder_of(path: Path, own: int) -> str:
    """Which process keeps an SQLite database from being written: `process N`, else `another process`.

    `own` is the number of this process, which is not meant.
    """
    wanted = set()
    for file in (path, path.with_name(f"{path.name}-shm")):  # in WAL mode the locks lie on the latter
        try:
            wanted.add(str(file.stat().st_ino))
        except OSError:
            continue
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return "another process"
    for line in lines:
        # "1: POSIX  ADVISORY  WRITE 8412 fe:00:2394372 120 120"; a blocked waiter has "->" after the number.
        fields = line.split()
        if len(fields) != 8 or fields[3] != "WRITE" or fields[4] == str(own):
            continue
        if fields[5].rpartition(":")[2] in wanted:
            return f"process {fields[4]}"
    return "another process"
