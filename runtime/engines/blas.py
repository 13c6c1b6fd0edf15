"""A fast BLAS for MLX on Linux, and MLX's import.

Owns which matrix library MLX's CPU back end runs on. MLX's Linux wheel links the reference BLAS, some thirty
times slower than a tuned one; a tuned library that is loaded first, with its symbols global, takes its place.
Never imports MLX before that. The invariant: whoever needs MLX comes through `import_mlx`.
"""

import ctypes
import functools
import importlib
import importlib.metadata
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from treering.events.errors import TreeringError

__all__ = ["Blas", "import_mlx", "preload_blas"]

_MKL = "libmkl_rt.so"
_OPENBLAS = ("libopenblas.so.0", "libopenblas.so")
_CUDA_WHEELS = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")


class Blas(msgspec.Struct, frozen=True):
    """Which matrix library serves MLX's CPU back end.

    `library` is `mkl`, `openblas`, `reference` (slow: nothing better was found) or `native` (macOS, CUDA:
    MLX brings its own). `path` is the file that was loaded, if any; `advice` is what would make it faster.
    """

    library: str
    path: str = ""
    advice: str = ""


@functools.cache
def preload_blas() -> Blas:
    """Load the best BLAS of this machine ahead of MLX, once per process, and tell which."""
    if sys.platform != "linux" or _has_cuda_wheel():
        return Blas("native")
    if "mlx.core" in sys.modules:
        return Blas("reference", advice="mlx was imported before treering: import treering's engine first")
    if platform.machine() == "x86_64":
        for path in _mkl_files():
            if _load_globally(str(path)):
                return Blas("mkl", str(path))
    for name in _OPENBLAS:
        if _load_globally(name):
            return Blas("openblas", name)
    package = "the Python package `mkl`" if platform.machine() == "x86_64" else "OpenBLAS (libopenblas)"
    return Blas("reference", advice=f"install {package}: the model runs about 30 times faster with it")


def import_mlx() -> Any:
    """Import `mlx.core` on the best BLAS and return it.

    Raises TreeringError, in one line that says what to install, where MLX is missing or has no back end.
    """
    preload_blas()
    # transformers greets the absence of PyTorch at import, and both libraries warn about their own futures.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mx = importlib.import_module("mlx.core")
            importlib.import_module("mlx_lm")
    except ImportError as error:
        raise TreeringError(_missing_back_end(error)) from error
    return mx


def _missing_back_end(error: ImportError) -> str:
    if error.name and error.name.partition(".")[0] not in ("mlx", "mlx_lm"):
        return f"MLX needs the module {error.name}, which is not installed: install mlx-lm again"
    wanted = "`mlx`" if sys.platform == "darwin" else "`mlx[cpu]` (or `mlx[cuda13]` for NVIDIA)"
    reason = str(error).splitlines()[0] if str(error) else "no reason given"
    return f"MLX cannot start here ({reason}): install {wanted} and `mlx-lm` with pip"


def _mkl_files() -> Iterator[Path]:
    """Where the `mkl` wheel may have put its library, newest version first."""
    yield from sorted(Path(sys.prefix, "lib").glob(f"{_MKL}*"), reverse=True)
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith(_MKL):
            yield Path(str(file.locate())).resolve()


def _load_globally(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _has_cuda_wheel() -> bool:
    for name in _CUDA_WHEELS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return True
    return False
