"""Which batches of the target's dense pass are captured as one CUDA graph, and which graph a batch is padded to."""

import pytest
import torch
from helpers import std
from vllm.config.compilation import CUDAGraphMode

if torch.cuda.is_available():
    pytest.skip("the CPU stand-in is for machines without a GPU", allow_module_level=True)

from cpu_graphs import cpu_graphs
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import SpeculatorCudaGraphManager

from vllm_std.patches import graph_batches, graphs

pytestmark = [pytest.mark.engine, pytest.mark.versions]

SIZES = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]  # vLLM's own for a GPU


@pytest.fixture
def config_of(engines, models):
    engines(models("llama"), std())  # a graph manager asks for the process groups of an engine

    def make(seqs: int, most: int, **options):
        asked = dict(model=str(models("llama")), block_size=32, max_num_seqs=seqs, max_num_batched_tokens=8192)
        speculative = std(num_speculative_tokens=most, adaptive=True, **options)
        config = EngineArgs(**asked, max_model_len=1024, speculative_config=speculative).create_engine_config()
        compilation = config.compilation_config
        compilation.cudagraph_capture_sizes = [size for size in SIZES if size <= 2 * seqs * (most + 1)]
        compilation.max_cudagraph_capture_size = compilation.cudagraph_capture_sizes[-1]
        return config

    return make


def manager_of(config, mixed: bool) -> ModelCudaGraphManager:
    options = config.speculative_config
    with cpu_graphs():
        query = options.num_speculative_tokens + 1
        manager = ModelCudaGraphManager(config, torch.device("cpu"), CUDAGraphMode.FULL_AND_PIECEWISE, query)
    graphs.choose(manager, graph_batches.planned(config, mixed))
    manager._graphs_captured = True
    return manager


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "uniform"])
@pytest.mark.parametrize("most", [1, 3, 5, 8])
@pytest.mark.parametrize("seqs", [1, 12, 64, 256, 1024])
def test_a_batch_finds_the_graph_that_fits_it_best(config_of, seqs, most, mixed):
    """Plain steps find what they find without std; passes that verify any draft length of all requests find a whole
    graph, where there are so few tokens that launches matter."""
    config = config_of(seqs, most)
    manager = manager_of(config, mixed)
    for requests in sorted({1, 2, 3, 5, 8, 30, 64, 100, 256, 500, seqs} & set(range(seqs + 1))):
        if requests <= SIZES[-1]:
            plain = manager.dispatch(requests, requests, 1, 0, 1)
            fits = min(size for size in (*SIZES, seqs) if size >= requests)
            assert (plain.cg_mode.name, plain.num_tokens, plain.uniform_token_count) == ("FULL", fits, 1)
        for length in config.speculative_config.draft_lengths[1:]:
            tokens = requests * (length + 1)
            verify = manager.dispatch(requests, tokens, length + 1, 0, length + 1)
            if mixed and tokens <= config.speculative_config.graph_limit and seqs <= SIZES[-1]:
                assert verify.cg_mode is CUDAGraphMode.FULL and verify.num_reqs >= requests
                assert tokens <= verify.num_tokens <= max(8, 1.25 * tokens)
            elif 2 * tokens <= 512:
                assert verify.cg_mode is CUDAGraphMode.FULL and verify.num_reqs >= requests


def test_requests_of_one_batch_may_have_different_drafts(config_of):
    manager = manager_of(config_of(256, 5), mixed=True)
    some = manager.dispatch(32, 32 * 6 - 5 - 3, None, 0, 6)  # one has none, one has two
    assert some.cg_mode is CUDAGraphMode.FULL and some.max_query_len == 6
    prompts = manager.dispatch(32, 300, None, 0, None)
    assert prompts.cg_mode is CUDAGraphMode.PIECEWISE and prompts.num_tokens == 304
    assert manager.dispatch(32, 192, 7, 0, 7).cg_mode is CUDAGraphMode.PIECEWISE, "longer than any draft"


@pytest.mark.parametrize("seqs", [1, 12, 20, 100, 256])
def test_drafts_of_every_batch_have_a_graph(config_of, seqs):
    config = config_of(seqs, 8)
    with cpu_graphs():
        mode = CUDAGraphMode.FULL_DECODE_ONLY
        manager = graphs.thin(SpeculatorCudaGraphManager(config, torch.device("cpu"), mode, 1), 1)
    manager._graphs_captured = True
    for requests in range(1, seqs + 1):
        found = manager.dispatch(requests, requests, 1, 0)
        least = min(size for size in (*SIZES, seqs) if size >= requests)
        assert found.cg_mode is CUDAGraphMode.FULL and requests <= found.num_reqs <= max(least, 1.25 * requests)
    assert len(manager._capture_descs[CUDAGraphMode.FULL]) <= 25


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "uniform"])
@pytest.mark.parametrize("most", [3, 5, 8])
def test_at_most_twice_as_many_as_without_std(config_of, most, mixed):
    chosen = manager_of(config_of(256, most), mixed)._capture_descs[CUDAGraphMode.FULL]
    plain = sum(size <= 256 for size in SIZES)
    assert plain < len(chosen) <= 2 * plain and len(set(chosen)) == len(chosen)
    assert [batch.num_tokens for batch in chosen] == sorted((batch.num_tokens for batch in chosen), reverse=True)


@pytest.mark.parametrize("sizes,seqs", [([1, 2, 4, 8], 256), ([1, 8], 64), ([1, 25, 50, 100], 100), ([16], 8)])
@pytest.mark.parametrize("mode", ["FULL_AND_PIECEWISE", "FULL_DECODE_ONLY"])
def test_sizes_that_a_user_gave_are_kept_to(engines, models, sizes, seqs, mode):
    """Where plain steps of the whole batch have no graph, none of mixed lengths may catch them; small sizes leave
    plain steps and drafts the graphs that they would have."""
    engines(models("llama"), std())
    asked = dict(model=str(models("llama")), block_size=32, max_model_len=1024, max_num_seqs=seqs)
    compilation = {"cudagraph_capture_sizes": sizes}
    speculative = std(num_speculative_tokens=8, adaptive=True)
    config = EngineArgs(
        **asked, max_num_batched_tokens=2048, speculative_config=speculative, compilation_config=compilation
    ).create_engine_config()
    config.speculative_config.graph_limit = sizes[-1]  # as where graphs are captured, which is not on a CPU
    config.compilation_config.cudagraph_capture_sizes = sizes
    config.compilation_config.max_cudagraph_capture_size = sizes[-1]
    with cpu_graphs():
        manager = ModelCudaGraphManager(config, torch.device("cpu"), CUDAGraphMode[mode], 9)
        draft = graphs.thin(
            SpeculatorCudaGraphManager(config, torch.device("cpu"), CUDAGraphMode.FULL_DECODE_ONLY, 1), 1
        )
    whole = manager._capture_descs[CUDAGraphMode.FULL]
    least = min(sizes[-1], seqs)
    assert least <= max(batch.num_tokens for batch in whole) <= sizes[-1] and manager.needs_capture()
    assert {batch.num_tokens for batch in whole if batch.uniform_token_count == 1} == {min(s, seqs) for s in sizes}
    found = [batch.num_tokens for batch in draft._capture_descs[CUDAGraphMode.FULL]]
    assert found[0] == least and found[-1] == min(sizes[0], seqs)
    mixed = graph_batches.planned(config, mixed=True)
    assert least == seqs or all("uniform_token_count" in batch for batch in mixed)
