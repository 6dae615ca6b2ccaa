"""What std may reach: no code from outside, no network, no file but its cost tables; clients only switch it off.

As a script (`test_security.py MODEL ...`) it serves a few prompts under an audit hook and prints what std's code did.
"""

import ast
import gc
import json
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from helpers import ROOT, scheduler_of, speculator_of, std, token_prompts

PACKAGE = ROOT / "vllm_std"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Modules that open files for writing: the cost table, and what a user of the command line names.
WRITERS = {
    "control/cost_file.py",
    "tools/acceptance/command.py",
    "tools/acceptance/plot.py",
    "tools/acceptance/records.py",
    "tools/bench/command.py",
    "tools/bench/plot.py",
    "tools/demo/questions.py",
    "tools/demo/sign_video.py",
    "tools/plan/plot.py",
}
NO_IMPORTS = {
    "pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "ctypes", "cffi", "subprocess", "socket", "ssl",
    "socketserver", "urllib", "urllib3", "requests", "http", "httpx", "aiohttp", "ftplib", "smtplib", "xmlrpc",
    "multiprocessing", "runpy", "code", "pty", "shutil", "tempfile",
}  # fmt: skip
NO_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
NO_ATTRIBUTES = {
    "os": {"system", "popen", "fork", "remove", "unlink", "rename", "kill", "putenv"},
    "torch": {"load", "save"}, "np": {"load", "save"}, "numpy": {"load", "save"},
    "importlib": {"import_module", "reload"},
}  # fmt: skip
WRITING = {"write_text", "write_bytes", "savefig", "mkdir", "touch", "unlink", "rename", "symlink_to", "tofile"}


def calls(module: Path):
    return (node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call))


def name_of(module: Path) -> str:
    return str(module.relative_to(PACKAGE))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
@pytest.mark.unit
def test_nothing_is_imported_that_runs_or_fetches_code(module):
    for node in ast.walk(ast.parse(module.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module] if node.module != "urllib.parse" else []
        assert not NO_IMPORTS.intersection(name.split(".")[0] for name in names), f"line {node.lineno}"
        assert "importlib" not in names, f"line {node.lineno}: importlib.util looks for a module, importlib runs it"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
@pytest.mark.unit
def test_no_text_is_run_as_code(module):
    for call in calls(module):
        function = call.func
        if isinstance(function, ast.Name):
            assert function.id not in NO_CALLS, f"line {call.lineno}"
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            forbidden = function.attr in NO_ATTRIBUTES.get(function.value.id, ())
            assert not forbidden and not function.attr.startswith(("exec", "spawn")), f"line {call.lineno}"


def writes(call: ast.Call) -> bool:
    """Whether a call may write to a file; an open() whose mode is not written out may."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name != "open":
        return name in WRITING
    given = call.args[(0 if isinstance(call.func, ast.Attribute) else 1) :]
    given += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in given[:1])


@pytest.mark.unit
def test_files_are_written_in_few_places():
    assert {name_of(module) for module in MODULES if any(map(writes, calls(module)))} == WRITERS


# ---------------------------------------------------------------- a served engine, watched

EVENTS = {
    "open", "exec", "compile", "pickle.find_class", "marshal.loads", "socket.connect", "socket.bind", "os.system",
    "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen", "os.rename", "os.remove", "os.mkdir",
    "os.link", "os.symlink", "os.chmod", "urllib.Request",
}  # fmt: skip
STDLIB = (sysconfig.get_path("stdlib"), "<frozen")
# Those through which anybody's code is made: a module is imported, a dataclass written out, a kernel compiled.
MAKERS = ("<frozen importlib", "dataclasses.py", "typing.py", "collections/__init__.py", "/triton/", "/torch/")
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND


def callers() -> list[str]:
    """Files of the frames that led to an audit event, the nearest first."""
    frame, files = sys._getframe(2), []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return files


def is_ours(files: list[str]) -> bool:
    """Whether std is the nearest caller beside the standard library, torch and Triton."""
    for file in files:
        library = file.startswith(STDLIB) and "site-packages" not in file
        if not library and not any(f"site-packages/{name}/" in file for name in ("torch", "triton", "numpy")):
            return file.startswith(str(PACKAGE))
    return False


def watch(seen: list) -> None:
    """Collect what std's code does from now on, until the process ends: [event, what of it]."""

    def hook(event: str, args: tuple) -> None:
        if event not in EVENTS:
            return
        if event == "open" and not (args[2] & WRITE_FLAGS if isinstance(args[2], int) else True):
            return
        files = callers()
        if not is_ours(files):
            return
        made = event in ("exec", "compile", "marshal.loads", "open", "os.rename", "os.mkdir")
        if made and any(maker in file for maker in MAKERS for file in files[: files.index(nearest(files))]):
            return
        seen.append([event, str(args[0])])

    sys.addaudithook(hook)


def nearest(files: list[str]) -> str:
    return next(file for file in files if file.startswith(str(PACKAGE)))


PROBE = """
import os, pickle, socket, subprocess
open(path, "w").close()
os.open(path, os.O_WRONLY)
os.mkdir(path + ".d")
subprocess.run(["true"])
eval("1 + 1")
pickle.loads(pickle.dumps(os.getcwd))
try:
    socket.create_connection(("127.0.0.1", 9), timeout=0.1)
except OSError:
    pass
"""


def serve(model: str, **options) -> None:
    """A few prompts, through an engine of its own that is shut down afterwards."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model, dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=4, block_size=32,
        kv_cache_memory_bytes=2**26, speculative_config=std(**options),
    )  # fmt: skip
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, max_tokens=12, ignore_eos=True)
        llm.generate(token_prompts([45, 300, 97]), params, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()


def main(model: str, path: str) -> None:
    seen: list = []
    watch(seen)
    if model == "probe":
        exec(compile(PROBE, str(PACKAGE / "probe.py"), "exec"), {"path": path})
    else:
        serve(model, adaptive=True)
        serve(model, adaptive=False)
    print("\n" + json.dumps(list(seen)))


def watched(tmp_path: Path, *arguments: str) -> list[tuple[str, str]]:
    env = os.environ | {"VLLM_CACHE_ROOT": str(tmp_path)}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [tuple(event) for event in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.unit
def test_the_watch_sees_what_it_watches_for(tmp_path):
    kinds = {event for event, _ in watched(tmp_path, "probe", str(tmp_path / "probe"))}
    assert kinds >= {"open", "os.mkdir", "subprocess.Popen", "exec", "compile", "pickle.find_class", "socket.connect"}


def test_a_served_engine_writes_cost_tables_and_nothing_else(models, tmp_path):
    seen = watched(tmp_path, str(models("llama")), "")
    ours = tmp_path / "vllm_std"
    assert {event for event, _ in seen} == {"open", "os.mkdir", "os.rename"}
    for event, path in seen:
        assert Path(path) == ours or Path(path).parent == ours and Path(path).name.startswith("costs-"), (event, path)
    (table,) = ours.iterdir()
    assert table.name.startswith("costs-") and table.suffix == ".json"
    assert set(json.loads(table.read_text())) >= {"batch", "draft"}


# ---------------------------------------------------------------- what a client can say

IGNORED = [
    {"top_k": 1}, {"num_speculative_tokens": 99}, {"adaptive": True}, {"method": "ngram"}, {"costs": [1, 2]},
    {"selection": "text", "refresh": 2**63}, {"std.top_k": 1}, {"Std": False, "STD": 0}, {"": "", "\x00": "\x00"},
    {"a": {"std": {"std": False}}}, {"b": [[[["std"]]]] * 50}, {"x" * 10**6: "y" * 10**6},
]  # fmt: skip
REFUSED = [2, -1, 0.5, float("nan"), 2**63, "no", "", "\ud800", "x" * 10**6, None, [], [False], {"top_k": 1}, b"0"]


class Drafts:
    """with Drafts(llm) as seen: ...; then seen.counts, drafted tokens by request."""

    def __init__(self, llm):
        self.scheduler = scheduler_of(llm)

    def __enter__(self):
        self.counts, plain = Counter(), self.scheduler.make_spec_decoding_stats

        def make(*args, **kwargs):
            self.counts[kwargs["request_id"].split("-")[0]] += kwargs["num_draft_tokens"]
            return plain(*args, **kwargs)

        self.scheduler.make_spec_decoding_stats = make
        return self

    def __exit__(self, *exc):
        del self.scheduler.make_spec_decoding_stats


def drafts_and_tokens(llm, *extra_args) -> list[tuple[int, list[int]]]:
    """(drafted tokens, answer) of requests that say so, in one batch."""
    from vllm import SamplingParams

    llm.reset_prefix_cache()
    prompts = token_prompts([45, 120, 20])[: len(extra_args)]
    params = [SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, extra_args=args) for args in extra_args]
    with Drafts(llm) as seen:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    return [(seen.counts[out.request_id.split("-")[0]], list(out.outputs[0].token_ids)) for out in outputs]


@pytest.mark.engine
def test_a_client_changes_nothing_by_options_that_are_not_for_clients(engines, models):
    llm = engines(models("llama"), std())
    expected = drafts_and_tokens(llm, None, None, None)
    options = speculator_of(llm).vllm_config.speculative_config
    before = {name: getattr(options, name) for name in options.OPTIONS}
    assert all(drafted > 0 for drafted, _ in expected)
    for args in IGNORED:
        assert drafts_and_tokens(llm, None, args, None) == expected, str(args)[:80]
    assert {name: getattr(options, name) for name in options.OPTIONS} == before


@pytest.mark.engine
def test_a_client_switches_std_off_for_its_own_request_only(engines, models):
    llm = engines(models("llama"), std())
    expected = drafts_and_tokens(llm, None, None, None)
    for said in (False, 0, 0.0, "false", "FALSE"):
        first, off, last = drafts_and_tokens(llm, None, {"std": said}, None)
        assert off == (0, expected[1][1])
        assert [first, last] == [expected[0], expected[2]]


@pytest.mark.engine
def test_nonsense_of_std_is_refused_shortly_and_leaves_nothing_behind(engines, models):
    from vllm.exceptions import VLLMValidationError

    llm = engines(models("llama"), std())
    expected = drafts_and_tokens(llm, None, None)
    for said in REFUSED:
        with pytest.raises(VLLMValidationError, match="std=.* is neither true nor false") as refused:
            drafts_and_tokens(llm, {"std": said})
        assert len(str(refused.value)) < 300 and not llm.llm_engine.has_unfinished_requests(), repr(said)[:40]
    with pytest.raises(VLLMValidationError, match="extra_args integers"):  # vLLM's own
        drafts_and_tokens(llm, {"std": 10**400})
    assert drafts_and_tokens(llm, None, None) == expected


if __name__ == "__main__":
    main(*sys.argv[1:])
