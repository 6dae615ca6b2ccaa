"""The plugin is invisible to those who did not ask for std, and fails in one sentence where it cannot work."""

import os
import re
import subprocess
import sys

import pytest
import vllm
from helpers import SIGN_MODEL
from ledger import ledger
from vllm.engine.arg_utils import EngineArgs

from vllm_std import plugin

pytestmark = [pytest.mark.unit, pytest.mark.versions]


def engine_args(**options) -> EngineArgs:
    return EngineArgs(model=str(SIGN_MODEL), max_model_len=1024, **options)


def test_vllm_finds_the_plugin_by_itself():
    from importlib.metadata import entry_points

    (found,) = entry_points(group="vllm.general_plugins", name="std")
    assert found.load() is plugin.register
    engine_args()  # vLLM loads general plugins here
    assert hasattr(EngineArgs.create_speculative_config, "__vllm_std__")


def test_register_is_re_entrant():
    plugin.register()
    once = EngineArgs.create_engine_config, EngineArgs.add_cli_args
    for _ in range(3):
        plugin.register()
    assert (EngineArgs.create_engine_config, EngineArgs.add_cli_args) == once


def test_without_std_vllm_gets_its_own_objects():
    plugin.register()
    assert engine_args().create_engine_config().speculative_config is None
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    config = engine_args(speculative_config=ngram).create_engine_config().speculative_config
    assert type(config) is vllm.config.SpeculativeConfig


def test_without_std_nothing_of_the_draft_loop_is_imported():
    """A whole plain engine, in a process of its own: same tokens with and without the plugin, none of its modules."""
    code = f"""
import sys
from vllm import LLM, SamplingParams
options = dict(dtype="float32", enforce_eager=True, max_model_len=512, kv_cache_memory_bytes=2**26)
options["skip_mm_profiling"] = True
llm = LLM(model={str(SIGN_MODEL)!r}, **options)
params = SamplingParams(temperature=0, max_tokens=8)
out = llm.generate({{"prompt_token_ids": list(range(5, 105))}}, params, use_tqdm=False)
loaded = sorted(name for name in sys.modules if name.startswith("vllm_std"))
print("RESULT", out[0].outputs[0].token_ids, loaded)
"""

    def run(plugins: str) -> tuple[str, str]:
        env = os.environ | {"VLLM_PLUGINS": plugins}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        tokens, _, modules = line.removeprefix("RESULT ").partition("] [")
        return tokens, modules

    with_plugin, without = run("std,triton_cpu"), run("triton_cpu")
    assert with_plugin[0] == without[0]
    assert without[1] == "]"
    patches = {f"vllm_std.patches{name}" for name in ("", ".install", ".wrapping")}
    assert set(re.findall(r"[\w.]+", with_plugin[1])) == {"vllm_std", "vllm_std.plugin"} | patches


def test_a_missing_patch_is_one_sentence_and_vllm_goes_on(monkeypatch, caplog):
    monkeypatch.delattr(EngineArgs, "create_speculative_config")
    vllm_logger = __import__("logging").getLogger("vllm")
    monkeypatch.setattr(vllm_logger, "propagate", True)
    plugin.register()
    (message,) = {record.getMessage() for record in caplog.records if "vllm-std" in record.getMessage()}
    assert "create_speculative_config" in message and "vLLM itself is not affected" in message


def test_every_patch_is_explained():
    for patch in ledger():
        assert all((patch.replaces, patch.why, patch.upstream, patch.remove_when)), patch
