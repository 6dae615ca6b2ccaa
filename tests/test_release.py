"""Wheel and sdist hold what they should, install into a clean environment, and work there."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT

MODEL_FILES = {path.name for path in (ROOT / "vllm_std/tools/demo/tiny-sign-vlm").iterdir()}


def run(*command, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """(wheel, sdist); the wheel is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def test_they_hold_modules_licence_and_the_demo_model(built):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "vllm_std").rglob("*.py")}
    for archive in built:
        held = names(archive)
        assert modules | {f"vllm_std/tools/demo/tiny-sign-vlm/{name}" for name in MODEL_FILES} <= held
        assert any(name.endswith("LICENSE") for name in held)
    wheel, sdist = map(names, built)
    assert not [name for name in wheel if not name.startswith("vllm_std")]
    assert {f"configs/{path.name}" for path in (ROOT / "configs").iterdir()} | {"CHANGELOG.md"} <= sdist
    metadata = next(name for name in wheel if name.endswith("METADATA"))
    said = zipfile.ZipFile(built[0]).read(metadata).decode()
    assert "License-Expression: Apache-2.0" in said and "# vllm-std" in said
    assert "Requires-Dist: vllm" not in said and "Requires-Dist: torch" not in said, "a user's vLLM stays what it is"


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory) -> Path:
    """The folder of commands of an environment that holds vLLM, as one of a user does, and the wheel."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder)
    python, here = folder / "bin/python", Path(sysconfig.get_path("purelib"))
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    run(sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-deps", "--ignore-installed", built[0])
    Path(site, "users_vllm.pth").write_text(f"import site; site.addsitedir('{here}')\n")
    return folder / "bin"


def test_a_clean_environment_passes_the_check(clean, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = run(clean / "python", "-c", "import vllm_std; print(vllm_std.__file__)", cwd=tmp_path, env=env).stdout
    assert Path(where.strip()).is_relative_to(clean.parent)
    model = Path(where.strip()).parent / "tools/demo/tiny-sign-vlm"
    engine = json.dumps({"max_model_len": 4096, "block_size": 32})
    done = run(clean / "vllm-std", "check", "--json", "--model", model, "--engine", engine, cwd=tmp_path, env=env)
    said = json.loads(done.stdout)
    assert said["ok"] and {"plugin", "patches", "model"} <= {finding["name"] for finding in said["findings"]}
