"""Which matrix library MLX runs on, and what is said where MLX does not run."""

import subprocess
import sys

from treering.runtime.engines.blas import preload_blas

_LIBRARIES = {"mkl", "openblas", "reference", "native"}


def python(code: str, path: str = "") -> subprocess.CompletedProcess[str]:
    prefix = f"import sys; sys.path.insert(0, {path!r});" if path else ""
    return subprocess.run([sys.executable, "-c", prefix + code], capture_output=True, text=True, timeout=60)


def test_what_was_loaded_is_told():
    """The answer is one of the known libraries, and a loaded one has its file."""
    found = preload_blas()
    assert found.library in _LIBRARIES
    assert bool(found.path) == (found.library in {"mkl", "openblas"})
    assert preload_blas() is found


def test_a_slow_library_comes_with_advice():
    """MLX that was imported first keeps the reference BLAS, and that is said."""
    code = (
        "import mlx.core; from treering.runtime.engines.blas import preload_blas; print(preload_blas().advice,"
        "preload_blas().library)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "native" in done.stdout or "imported before" in done.stdout


def test_mlx_without_a_back_end_is_one_clear_line(tmp_path):
    """Plain `mlx` on Linux fails at import: the error says what to install."""
    broken = tmp_path / "mlx"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "core.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')")
    code = (
        "from treering.events.errors import TreeringError\n"
        "from treering.runtime.engines.blas import import_mlx\n"
        "try:\n    import_mlx()\nexcept TreeringError as error:\n    print(error)\n"
    )
    done = python("\n" + code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "libmlx.so" in done.stdout
    assert "install `mlx" in done.stdout


def test_the_registry_does_not_import_mlx():
    """Listing models and importing the engine's module stays cheap."""
    code = (
        "import sys, treering.runtime.engines.models as m, treering.runtime.engines.mlx; m.known_models();"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('mlx', 'mlx_lm', 'transformers')))"
    )
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr
