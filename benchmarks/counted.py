"""fsyncs, counted and made free: what is measured is software, and a slow disk of a neighbour is not in it.

Owns a small library that stands in for the system's calls. A benchmark that counts runs in a process of its own
under it.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["run_counted", "syncs"]

_SHIM = """
static long count;
int fsync(int f) { count++; return 0; }
int fdatasync(int f) { count++; return 0; }
long treering_syncs(void) { return count; }
"""
_FLAG = "TREERING_BENCH_COUNTED"


def syncs() -> int:
    """How many fsyncs this process asked for so far."""
    return int(_counter()())


@functools.cache
def _counter() -> Any:
    return ctypes.CDLL(None).treering_syncs


def run_counted(module: str) -> bool:
    """Run a benchmark again under the counting library, unless this is that run; whether it was run here."""
    if os.environ.get(_FLAG):
        return False
    if shutil.which("gcc") is None:
        print(f"{module}: skipped, it needs gcc to count fsyncs")
        return True
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "count.c"), Path(folder, "count.so")
        source.write_text(_SHIM)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), _FLAG: "1"}
        subprocess.run([sys.executable, "-m", module], env=environment, check=True)
    return True
