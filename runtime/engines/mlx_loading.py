"""From files to a model in memory: GGUF files, folders and hub names.

Owns the choice of number format and the digests of weights. Called on the engine's thread. Never decides which
model is wanted. The invariant: the same weights give the same digest, wherever they lie.
"""

import hashlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import mlx_lm.utils
import transformers

from treering.runtime.engine import EngineError
from treering.runtime.engines.gguf import load_gguf
from treering.runtime.engines.mlx_batch import LoadedModel

__all__ = ["load_checkpoint", "load_gguf_file", "weights_digest"]

_SAMPLES = 64  # pieces of each weights file that enter its digest
_SAMPLE_BYTES = 4096
_UNKNOWN_CONTEXT = 4096


def load_gguf_file(name: str, path: Path, sha256: str, chat_template: str | None) -> LoadedModel:
    """A llama GGUF: float32 on a CPU, where half precision is slow, float16 elsewhere."""
    loaded = load_gguf(path, half=not _on_cpu(), chat_template=chat_template)
    return LoadedModel(name, sha256, loaded.context_tokens, loaded.model, loaded.tokenizer)


def load_checkpoint(name: str, source: str) -> LoadedModel:
    """A folder in mlx-lm's format, or a model of the hub, which is fetched if need be."""
    # Progress bars of the hub and advice of transformers would land in the middle of ours.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        folder = Path(source) if Path(source).is_dir() else Path(mlx_lm.utils._download(source))
        model, tokenizer, config = mlx_lm.load(str(folder), return_config=True)
    except Exception as error:  # the hub, the file system, a checkpoint: each raises its own kind
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise EngineError(
            f"the model {name} could not be loaded ({reason}): check its name and the network, or give a folder"
        ) from error
    if _on_cpu():
        model = mlx_lm.utils.dequantize_model(model)
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    return LoadedModel(name, weights_digest(folder), _context_tokens(config), model, tokenizer)


def weights_digest(folder: Path) -> str:
    """A digest of a checkpoint: its configuration, and of each weights file size, start and samples.

    Content is sampled, at fixed distances, as reading tens of gigabytes would take longer than loading them.
    """
    digest = hashlib.blake2b(digest_size=32)
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(size * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(size - _SAMPLE_BYTES, 0))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _context_tokens(config: dict[str, Any]) -> int:
    found = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return int(found or _UNKNOWN_CONTEXT)


def _on_cpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.cpu)
