"""README is short, its links lead somewhere, and each command that it shows is executed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import full_models
import pytest
from helpers import ROOT, SIGN_MODEL
from typer.main import get_command
from typer.testing import CliRunner
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.serve import cmd_init
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_std.config import StdConfig
from vllm_std.tools.cli import app
from vllm_std.tools.demo.sign_video import write_video

TEXT = (ROOT / "README.md").read_text()
WORDS = 1600  # besides tables: six minutes
ELSEWHERE = {"./scripts/demo.sh": "test_demo.py", "./scripts/test.sh": "now", "pip install vllm-std": "test_release.py"}
ELSEWHERE |= {
    'python scripts/examples/client.py clip.mp4 "What happens, and when?"': "test_server.py",
    "python scripts/examples/batch.py FOLDER --model MODEL --out answers.jsonl": "test_batch_example.py",
}
ENGINE = {"dtype": "float32", "block_size": 32, "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 4}
ENGINE |= {"kv_cache_memory_bytes": 2**28, "skip_mm_profiling": True}
FLAGS = ["--engine", json.dumps(ENGINE)]
SHORT = {  # what keeps a command short here, and fits it to a CPU
    "vllm-std acceptance": ["--tokens", 8, "--k", 128, *FLAGS],
}


def commands() -> list[str]:
    """The indented lines outside of fences, without what is said about them."""
    text = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]


@pytest.mark.unit
def test_it_is_short_and_its_links_lead_somewhere():
    assert len(re.sub(r"^\|.*$", "", TEXT, flags=re.MULTILINE).split()) < WORDS
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link.split("#")[0]).exists(), (page.name, link)


@pytest.mark.unit
def test_files_that_the_pages_name_are_there():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"`(?:python )?((?:scripts|configs|tests|docs|vllm_std)/[\w./-]+)", page.read_text()):
            assert (ROOT / name).exists(), (page.name, name)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the commands name: a clip, prompts, videos with questions, and the repository's folders."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "What can be seen at 123?"}) + "\n")
    (folder / "FOLDER").mkdir()
    write_video(folder / "FOLDER/clip.mp4", scenes=12, patches=2, seed=1, sentences=1)
    (folder / "clip.mp4").symlink_to(folder / "FOLDER/clip.mp4")
    (folder / "MODEL").symlink_to(SIGN_MODEL)
    known = {f"Qwen/Qwen{name}-VL-7B-Instruct": full_models.MODELS[f"qwen{name}-vl-7b"] for name in ("2", "2.5")}
    for hub, model in (known | full_models.BASES).items():
        full_models.make(*model, folder / hub)
    return folder


def takes(words: list[str]) -> None:
    """`vllm serve` with std: read by vLLM's parser, and all it is made of but the engine; test_server.py serves."""
    parser = FlexibleArgumentParser()
    (command,) = cmd_init()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(words[1:])
    args.model = args.model_tag or args.model
    args.model = str(Path(args.model).resolve())
    assert type(EngineArgs.from_cli_args(args).create_engine_config().speculative_config) is StdConfig


@pytest.mark.parametrize("command", [command for command in commands() if command not in ELSEWHERE])
def test_a_command_works(command, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0" if "acceptance" in command else "1")
    words = shlex.split(command)
    words += [str(word) for start, more in SHORT.items() if command.startswith(start) for word in more]
    if words[0] == "vllm":
        takes(words)
    elif words[:2] == ["vllm-std", "bench"]:  # its options are taken; test_bench.py has its servers
        get_command(app).commands["bench"].make_context("bench", words[2:])
    else:
        done = CliRunner().invoke(app, words[1:])
        assert words[0] == "vllm-std" and done.exit_code == 0, done.output[-3000:]
        assert done.stdout


@pytest.mark.unit
def test_no_command_is_left_out():
    found = commands()
    assert len(found) > 15 and set(ELSEWHERE) <= set(found)
    assert all(start in " ".join(found) for start in SHORT)


@pytest.mark.unit
def test_the_tables_of_speed_are_made_of_their_records():
    command = [sys.executable, ROOT / "scripts/bench/speed.py", "table", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
