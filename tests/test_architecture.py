"""The shape of the package: who may import whom, who may look at the world, what is public."""

import ast
import importlib
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["cli", "replays", "runtime", "tools", "memory", "events"]
"""From the top down: a folder imports those below it, never those above."""

WORLD = {"time", "random", "uuid", "os", "secrets", "datetime"}
MAY_SEE_THE_WORLD = (
    "runtime/seams.py",
    "runtime/engines/",
    "cli/",
    "events/sqlite.py",
    "events/file_leases.py",
    "tools/",
)
LATER_IMPORTS: set[tuple[str, str]] = set()
"""(module, folder) pairs that may point up. None, and each one to come needs a reason here."""

LINES = 450
LONGER = {
    "runtime/task.py": "all that agent code sees, in one place; model calls live beside it",
    "runtime/runner.py": "the life of a run; summaries and texts can leave it",
    "runtime/state.py": "one fold over the closed union, read from top to bottom",
    "events/catalogue.py": "the catalogue is one file on purpose",
}

RUNS_ONLY_WHERE_THERE = {"trio", "pytest"}
"""Imported only while its own loop runs, or by pytest itself."""

USED_EXTRAS = ("otel", "plot")
"""Extras that the package imports late, with a line that says how to install them."""

BROUGHT = {"transformers", "tokenizers"}
"""What a declared distribution always brings: mlx-lm the first, and that one the second."""

MODULES = sorted(path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TREES = {name: ast.parse((ROOT / name).read_text(encoding="utf-8")) for name in MODULES}


def imports(name: str) -> list[str]:
    """Every module that this one imports, wherever it does so."""
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found


def top_level(name: str) -> list[ast.stmt]:
    return TREES[name].body


def announced(name: str) -> list[str] | None:
    for node in top_level(name):
        if isinstance(node, ast.Assign) and [getattr(to, "id", "") for to in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def test_there_is_something_to_check():
    """A test of nothing would always hold."""
    assert {"events/codec.py", "memory/windows.py", "runtime/task.py"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    """A folder imports those below it, always by the name of the package."""
    own = FOLDERS.index(name.split("/")[0])
    for module in imports(name):
        first, *rest = module.split(".")
        assert first, f"{name} has a relative import"
        assert first not in FOLDERS, f"{name} imports {module} without its package"
        if first == "treering" and rest:
            above = FOLDERS.index(rest[0]) < own
            assert not above or (name, rest[0]) in LATER_IMPORTS, f"{name} imports {module}, which is above it"


@pytest.mark.parametrize("name", MODULES)
def test_what_is_imported_is_there(name):
    """Also where an import stands inside a function and is only met on a rare way."""
    for module in imports(name):
        if module.startswith("treering."):
            path = ROOT / module.removeprefix("treering.").replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), f"{name} imports {module}, which is not there"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(MAY_SEE_THE_WORLD)])
def test_the_core_sees_the_world_only_through_seams(name):
    """No clock, no chance, no operating system in what has to be the same twice."""
    assert not WORLD & {module.split(".")[0] for module in imports(name)}


@pytest.mark.parametrize(
    "name",
    [name for name in MODULES if not name.rsplit("/", 1)[1].startswith("_") and not name.endswith("__main__.py")],
)
def test_public_names_are_announced(name):
    """Every module has `__all__`; what is defined there without an underscore and used elsewhere is in it."""
    public = announced(name)
    assert public is not None, f"{name} has no __all__"
    defined = {
        node.name
        for node in top_level(name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for node in top_level(name):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        defined |= {to.id for to in targets if isinstance(to, ast.Name)}
    imported = {
        alias.asname or alias.name
        for node in top_level(name)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert set(public) <= defined | imported, f"{name} announces what it does not define"


@pytest.mark.parametrize("name", MODULES)
def test_only_announced_names_are_imported_elsewhere(name):
    """What one module takes from another is public there."""
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("treering."):
            continue
        there = node.module.removeprefix("treering.").replace(".", "/") + ".py"
        public = announced(there) if there in TREES else None
        if public is not None:
            taken = {alias.name for alias in node.names}
            assert taken <= set(public), f"{name} takes {sorted(taken - set(public))} from {there}"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("runtime/engines/")])
def test_files_stay_short(name):
    """At most 450 lines, but for those that say why."""
    lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
    assert lines <= LINES or name in LONGER, f"{name} has {lines} lines"


@pytest.mark.parametrize("folder", ["events", "memory"])
def test_the_lower_folders_import_without_the_rest(folder):
    """They load by themselves."""
    for name in MODULES:
        if name.startswith(folder + "/"):
            importlib.import_module("treering." + name.removesuffix(".py").replace("/", "."))


def test_what_is_imported_is_declared():
    """A plain install brings all that the package imports; what only the tests need hides nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [wanted for extra in USED_EXTRAS for wanted in project["optional-dependencies"][extra]]
    declared = {re.split(r"[^\w-]", wanted, maxsplit=1)[0].lower() for wanted in [*project["dependencies"], *extras]}
    names = {imported.split(".")[0] for name in MODULES for imported in imports(name)}
    foreign = names - set(sys.stdlib_module_names) - {"treering"} - RUNS_ONLY_WHERE_THERE
    brought_by = packages_distributions()
    missing = {
        name for name in foreign if not {d.lower() for d in brought_by.get(name, [name])} & (declared | BROUGHT)
    }
    assert not missing
