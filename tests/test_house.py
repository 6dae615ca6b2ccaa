"""The house plan of CONTRIBUTING.md is the house; its rules of size and its packaging hold."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

pytestmark = pytest.mark.unit
PACKAGE = ROOT / "vllm_std"
FILES = sorted(PACKAGE.rglob("*.py"))


def test_contributing_names_every_module_and_nothing_else():
    named = re.findall(r"^\| `([\w/.]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(named) == sorted(modules | packages)


def imported(path: Path) -> set[str]:
    """Modules and packages of vllm_std that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vllm_std"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


MODULES = {".".join(path.with_suffix("").relative_to(ROOT).parts).removesuffix(".__init__"): path for path in FILES}
IMPORTS = {module: imported(path) - {module} for module, path in MODULES.items()}


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    "package, not_imported",
    [("control", "draft selection tools"), ("selection", "draft control tools patches.install"), ("draft", "control")],
)
def test_imports_go_one_way(package, not_imported):
    for module in (module for module in IMPORTS if module.startswith(f"vllm_std.{package}")):
        for other in not_imported.split():
            assert not any(f"{name}.".startswith(f"vllm_std.{other}.") for name in IMPORTS[module]), module


def test_nothing_but_tools_imports_tools():
    for module in (module for module in IMPORTS if not module.startswith("vllm_std.tools")):
        assert not any(name.startswith("vllm_std.tools") for name in IMPORTS[module]), module


def test_only_patches_and_subclasses_of_vllms_import_its_inside():
    inside = re.compile(r"^\s*(from|import) vllm\.v1\.(worker|core|engine)", re.MULTILINE)
    for path in FILES:
        if path.parent.name != "patches" and path.relative_to(PACKAGE).as_posix() != "control/scheduler.py":
            assert not inside.search(path.read_text()), path


def test_the_version_is_said_once_in_each_place():
    from vllm_std import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
