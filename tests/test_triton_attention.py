"""std on TRITON_ATTN, a backend that GPUs have: real engines, its kernels interpreted where there is no GPU."""

import pytest
import torch
from helpers import Acceptance, greedy, speculator_of, std, token_prompts
from vllm.platforms import current_platform
from vllm.v1.attention import selector

pytestmark = pytest.mark.engine

PROMPTS, TOKENS = token_prompts([170, 45], seed=2), 6
ROOM = dict(max_num_seqs=2, max_num_batched_tokens=1024)


@pytest.fixture(scope="module")
def elsewhere(engines, models):
    """What is decoded on the backend that vLLM chooses here."""
    return decoded(engines(models("llama"), std(), **ROOM))


@pytest.fixture(scope="module")
def triton_attention(elsewhere, engines):
    """Engines that start now attend by TRITON_ATTN."""
    if torch.cuda.is_available():
        yield {"attention_backend": "TRITON_ATTN"}
        return
    path = "vllm.v1.attention.backends.triton_attn.TritonAttentionBackend"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(current_platform), "get_attn_backend_cls", lambda *_, **__: path)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        selector._cached_get_attn_backend.cache_clear()
        yield {"seed": 1}  # engines of another backend are not these
        engines.close()
    selector._cached_get_attn_backend.cache_clear()


def decoded(llm) -> tuple:
    """(tokens, drafted, accepted)"""
    llm.reset_prefix_cache()
    with Acceptance(llm) as seen:
        tokens = greedy(llm, PROMPTS, TOKENS)
    return tokens, seen.drafted, seen.accepted


@pytest.mark.supports("attention backend TRITON_ATTN (its kernels interpreted)")
def test_drafts_are_those_of_another_backend(engines, models, elsewhere, triton_attention):
    """The same tokens, drafts and accepted drafts; metadata is updated in place from step to step."""
    plain = greedy(engines(models("llama"), None, **ROOM, **triton_attention), PROMPTS, TOKENS)
    llm = engines(models("llama"), std(), **ROOM, **triton_attention)
    speculator = speculator_of(llm)
    assert speculator.std.group.backend.get_name() == "TRITON_ATTN"
    got = decoded(llm)
    assert speculator.supports_decode_metadata_update and speculator.std.selector.cache.plain
    assert got[0] == plain and got[2] > 0
    assert got == elsewhere or torch.cuda.is_available()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has graphs of its own")
def test_its_drafts_replay_from_graphs(engines, models, elsewhere, triton_attention, monkeypatch):
    from cpu_graphs import decode_graphs

    llm = engines(models("llama"), std(), **ROOM, **triton_attention)
    monkeypatch.setattr("vllm_std.selection.keys.ON_CPU", "interpret")
    with decode_graphs(llm, (2,)):
        assert decoded(llm) == elsewhere
        assert sum(graph.replays for graph in speculator_of(llm).decode_cudagraph_manager.graphs.values()) > 3
