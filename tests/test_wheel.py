"""The wheel and the sdist: what is built, and that it works where nothing of the repository can be seen."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cli", "events", "memory", "replays", "runtime", "tools")


def _call(command, folder, **environment):
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _files(*folders):
    """All files below these folders, as paths below the repository."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with one wheel and one sdist. The backend is called itself: no network, no second build tree."""
    folder = tmp_path_factory.mktemp("dist")
    _call([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The `bin` of a fresh environment: the wheel, and the libraries of the tests without the editable install."""
    folder = tmp_path_factory.mktemp("environment")
    _call([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder)
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    _call(install, folder)
    site = Path(_call([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    # A folder named in a .pth file is searched, but its own .pth files, such as the editable install's, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_the_packages_and_nothing_else(built):
    """Every file of the six folders, data and py.typed included; no tests, no benchmarks."""
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {f"treering/{name}" for name in _files(*PACKAGES)}
    assert {f"treering/{package}/py.typed" for package in PACKAGES} <= names


def test_the_sdist_holds_what_a_build_and_a_test_need(built):
    """The packages, their tests, and the metadata; no benchmarks."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    extra = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
    assert names == _files(*PACKAGES, "tests") | extra


def test_the_installed_command_works_away_from_the_repository(installed, tmp_path):
    """It shows its help, answers a question, and runs the wheel's code."""
    assert "Commands:" in _call([installed / "treering", "--help"], tmp_path)
    (tmp_path / "town.md").write_text("Tomas Varga kept a parrot named Admiral.\n")
    asked = [installed / "treering", "run", "Who kept a parrot?", "--input", "town.md", "--model", "scripted"]
    assert json.loads(_call([*asked, "--json"], tmp_path))["status"] == "finished"
    where = "import treering.cli.main, treering.runtime.task as t; print(treering.cli.main.__file__, t.__file__)"
    for path in _call([installed / "python", "-c", where], tmp_path).split():
        assert Path(path).is_relative_to(installed.parent)
