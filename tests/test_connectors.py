"""KV connectors: blocks that left the KV cache come back, and requests go on from them with plain vLLM's tokens."""

import pytest
from helpers import Acceptance, greedy, std, token_prompts
from host_offload import HostWorker
from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

pytestmark = pytest.mark.engine

PROMPTS = token_prompts([45, 300, 97, 620], seed=6)


@pytest.fixture(autouse=True)
def one_connector(engines):
    """An engine in this process leaves its connector to the next one."""
    yield
    engines.close()
    ensure_kv_transfer_shutdown()


def offloading(_) -> dict:
    """vLLM's CPU offloading, its copies made on the host."""
    extra = {"cpu_bytes_to_use": 2**27, "offload_prompt_only": False}
    extra |= {"spec_name": "HostOffloadingSpec", "spec_module_path": "host_offload"}
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def shared_storage(folder) -> dict:
    """vLLM's example, which keeps prompts in files and hooks into every layer."""
    extra = {"shared_storage_path": str(folder)}
    return {"kv_connector": "ExampleConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def loaded(llm) -> int:
    (hits,) = [m.value for m in llm.get_metrics() if m.name == "vllm:external_prefix_cache_hits"]
    return hits


@pytest.mark.supports("KV connectors: OffloadingConnector (copies on the host), ExampleConnector")
@pytest.mark.parametrize("connector", [offloading, shared_storage])
def test_requests_go_on_from_loaded_blocks(engines, plain, models, tmp_path, connector):
    """Asked again without the prefix cache, and, as a conversation, with the answer in the prompt."""
    expected = plain(models("llama"), PROMPTS)
    longer = [{"prompt_token_ids": [*p["prompt_token_ids"], *a, 7, 8]} for p, a in zip(PROMPTS, expected)]
    expected_longer = plain(models("llama"), longer)
    llm = engines(models("llama"), std(), kv_transfer_config=connector(tmp_path))
    with Acceptance(llm) as first:
        assert greedy(llm, PROMPTS) == expected
    llm.reset_prefix_cache()
    before = loaded(llm)
    with Acceptance(llm) as again:
        assert greedy(llm, PROMPTS) == expected
    assert loaded(llm) - before >= sum(len(p["prompt_token_ids"]) // 32 - 1 for p in PROMPTS) * 32
    assert again.rate > 0.8 * first.rate, "loaded blocks are summarised as computed ones are"
    llm.reset_prefix_cache()
    assert greedy(llm, longer) == expected_longer


@pytest.mark.supports(
    "KV connectors: OffloadingConnector (copies on the host), ExampleConnector", "preemption and recompute"
)
def test_preempted_requests_come_back_from_the_host(engines, plain, models, tmp_path):
    prompts = token_prompts([200, 220, 240, 260], seed=4)
    expected = plain(models("llama"), prompts, 120)
    llm = engines(
        models("llama"), std(), kv_transfer_config=offloading(tmp_path), num_gpu_blocks_override=20, max_model_len=512
    )
    before = HostWorker.loaded
    assert greedy(llm, prompts, 120) == expected
    (preemptions,) = [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
    assert preemptions > 0 and HostWorker.loaded > before
