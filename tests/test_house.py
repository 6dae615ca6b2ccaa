"""The house plan of CONTRIBUTING.md is the house; its rules of size and its packaging hold."""

import re
import tomllib

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.fast, pytest.mark.once]
PACKAGE = ROOT / "vllm_std"


def test_contributing_names_every_module_and_nothing_else():
    named = re.findall(r"^\| `([\w/.]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(named) == sorted(modules | packages)


def test_only_the_seams_import_vllms_worker_and_scheduler():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "seams":
            assert not re.search(r"^\s*(from|import) vllm\.v1\.(worker|core|engine)", path.read_text(), re.MULTILINE), (
                path
            )


def test_the_version_is_said_once_in_each_place():
    from vllm_std import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
