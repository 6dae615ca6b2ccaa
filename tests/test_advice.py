"""What costs speed without being noticed is said by `vllm-std check` and when an engine starts."""

import json

import pytest
from helpers import SIGN_MODEL
from typer.testing import CliRunner

from vllm_std import advice
from vllm_std.mask import MaskShape
from vllm_std.tools.cli import app

pytestmark = pytest.mark.versions


def slow(*arguments: str) -> list[str]:
    said = json.loads(CliRunner().invoke(app, ["check", "--json", "--model", str(SIGN_MODEL), *arguments]).stdout)
    return [finding["says"] for finding in said["findings"] if finding["name"] == "slow"]


@pytest.mark.parametrize("preloaded", ["", "/lib/libiomp5.so", "/lib/libtcmalloc_minimal.so.4:/lib/libiomp5.so"])
@pytest.mark.unit
def test_libraries_that_a_cpu_needs_preloaded(preloaded, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", preloaded)
    missing = [library for library in ("libiomp", "libtcmalloc") if library not in preloaded]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    said = list(advice.machine_advice("cpu"))
    assert len(said) == len(missing) and all(library in says for library, says in zip(missing, said))
    assert not list(advice.machine_advice("cuda"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in list(advice.machine_advice("cpu"))[-1]


@pytest.mark.parametrize("block_size, top_k, few", [(128, 1024, True), (128, 4096, False), (32, 1024, False)])
@pytest.mark.unit
def test_blocks_so_large_that_the_mask_has_few(block_size, top_k, few):
    options = {"method": "std", "top_k": top_k}
    engine = {"max_model_len": 8192, "block_size": block_size, "speculative_config": options}
    said = [says for says in slow("--engine", json.dumps(engine)) if "--block-size 32" in says]
    assert bool(said) == few
    assert not few or f"KV blocks of {block_size} tokens leave a mask of top_k={top_k} only 6 to choose" in said[0]


@pytest.mark.parametrize("reqs, said", [(1024, True), (64, False)])
@pytest.mark.unit
def test_more_sequences_than_fit(reqs, said):
    mask = MaskShape.plan(1024, 16, 64, 16, 32768)
    found = list(advice.batch_advice(reqs, 40 * mask.max_length, mask, 2**20))
    assert bool(found) == said
    if said:
        assert f"--max-num-seqs {reqs} is far more than the 40 requests" in found[0] and "984 MiB less" in found[0]


@pytest.mark.engine
def test_an_engine_says_it_when_it_starts(engines, models, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    monkeypatch.setenv("LD_PRELOAD", "")
    engines(models("llama"), {"method": "std", "top_k": 256, "adaptive": False}, max_num_seqs=7, block_size=64)
    said = " ".join(record.getMessage() for record in caplog.records if record.getMessage().startswith("std: "))
    assert "libiomp" in said and "only 2 to choose" in said
