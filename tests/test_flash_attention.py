"""std on FLASH_ATTN, the backend of Hopper: vLLM's own code of it, tests/fa3.py in place of the CUDA kernels.

Every engine here also checks, by raising, that no kernel was given lengths, tables, slots or plans that do not fit.
"""

from contextlib import contextmanager
from itertools import chain
from unittest.mock import patch

import pytest
import torch
from helpers import (
    SIGN_MODEL,
    Acceptance,
    draft_lengths,
    greedy,
    keep_async,
    runner_of,
    scheduler_of,
    speculator_of,
    std,
    token_prompts,
)

from vllm_std.control import calibration, timing
from vllm_std.tools.demo.sign_video import SignVideo

if torch.cuda.is_available():
    pytest.skip("a GPU has kernels of its own", allow_module_level=True)

import fa3
from cpu_graphs import decode_graphs
from fa3 import FA3Error, flash_attention, flash_attn_varlen_func, get_scheduler_metadata, reshape_and_cache_flash
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.warmup import warmup_kernels

pytestmark = pytest.mark.engine
RUNS = pytest.mark.supports("attention backend FLASH_ATTN (its CUDA kernels stood in for)")

PROMPTS, TOKENS = token_prompts([45, 300, 97], seed=2), 8
CROWD = token_prompts([80, 90, 85, 95], seed=4), 24
ROOM = dict(max_num_seqs=4, max_num_batched_tokens=1024, block_size=16)
CHEAP = dict(selection="streaming")  # where it does not matter which blocks are chosen; interpreting kernels takes time


@pytest.fixture(scope="module", autouse=True)
def backend(engines):
    engines.close()  # it attends by another
    with flash_attention():
        yield
        engines.close()


@pytest.fixture(autouse=True)
def clear_errors():
    fa3.errors.clear()


@pytest.fixture(scope="module")
def expected(plain, models):
    """Plain vLLM's tokens, by model, and for CROWD."""
    crowd = plain(models("llama"), *CROWD, **ROOM)
    return {name: plain(models(name), PROMPTS, TOKENS, **ROOM) for name in ("llama", "qwen3")} | {"crowd": crowd}


@pytest.fixture
def spent(engines):
    """What is done to the engine of a test cannot be undone."""
    yield
    engines.close()


@contextmanager
def graphs(llm, requests=(4,)):
    """tests/cpu_graphs.py's, with metadata builders as vLLM makes them where it captures full graphs: they plan into a
    buffer that graphs read, for up to 32 splits. Selection is by Triton's kernels, which graphs can hold."""
    runner = runner_of(llm)
    full = dict(
        cudagraph_mode=CUDAGraphMode.FULL_DECODE_ONLY,
        max_cudagraph_capture_size=max(requests) * runner.decode_query_len,
    )
    try:
        with patch.multiple(runner.compilation_config, **full), selecting("interpret"):
            make_builders_again(runner)
            with decode_graphs(llm, requests) as target:
                yield target
    finally:
        make_builders_again(runner)


def selecting(way: str):
    return patch("vllm_std.selection.keys.ON_CPU", way)


def make_builders_again(runner) -> None:
    """Where they are, for the configuration as it is now."""
    groups = [*runner.attn_groups, *(runner.speculator.attn_groups if runner.speculator else [])]
    for builder in chain.from_iterable(group.metadata_builders for group in chain.from_iterable(groups)):
        builder.__init__(builder.kv_cache_spec, builder.layer_names, builder.vllm_config, builder.device)


def replayed(speculator) -> int:
    return sum(graph.replays for graph in speculator.decode_cudagraph_manager.graphs.values())


def decoded(llm, prompts=PROMPTS, tokens=TOKENS) -> tuple:
    """(tokens, drafted, accepted), from an empty prefix cache; until then nothing was refused, and no round failed."""
    llm.reset_prefix_cache()
    with Acceptance(llm) as seen:
        got = greedy(llm, prompts, tokens)
    assert not fa3.errors and not speculator_of(llm).std.faults.logged
    return got, seen.drafted, seen.accepted


# ------------------------------------------------------------ the stand-in


def call(**changed) -> dict:
    """A request of one token at the end of 5, and one of three tokens at the end of 33, in pages of 16."""
    cache, queries = torch.randn(6, 16, 2, 8), torch.randn(4, 4, 8)
    one = torch.ones(2, 2)
    arguments = dict(
        q=queries, k=cache, v=cache, out=torch.empty_like(queries), cu_seqlens_q=ints(0, 1, 4), max_seqlen_q=3,
        seqused_k=ints(5, 33), max_seqlen_k=40, softmax_scale=0.3, causal=True, scheduler_metadata=None, num_splits=0,
        block_table=ints(1, 0, 0, 2, 3, 5).view(2, 3), q_descale=one, k_descale=one, v_descale=one, fa_version=3,
        window_size=[-1, -1], alibi_slopes=None, softcap=0, s_aux=None, mask_mod=None, aux_tensors=None,
    )  # fmt: skip
    return arguments | changed


def ints(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def planned(**changed) -> torch.Tensor:
    """The plan of `call`."""
    made = dict(
        batch_size=2, max_seqlen_q=3, max_seqlen_k=40, num_heads_q=4, num_heads_kv=2, headdim=8,
        cache_seqlens=ints(5, 33), qkv_dtype=torch.float32, cu_seqlens_q=ints(0, 1, 4), page_size=16, causal=True,
        num_splits=0, window_size=(-1, -1),
    )  # fmt: skip
    return get_scheduler_metadata(**made | changed)


def test_attention_is_softmax_over_the_pages_of_each_request():
    given = call(scheduler_metadata=planned())
    out = flash_attn_varlen_func(**given)
    keys = given["k"][[2, 3, 5]].flatten(0, 1)[:32]  # what the last but one of three tokens sees
    for head in range(4):
        weights = (0.3 * keys[:, head // 2] @ given["q"][2, head]).softmax(0)
        torch.testing.assert_close(out[2, head], weights @ keys[:, head // 2])


WRONG = {
    "the plan is for": [
        dict(scheduler_metadata=planned(cache_seqlens=ints(5, 34))),
        dict(scheduler_metadata=planned(cu_seqlens_q=ints(0, 2, 4))),
        dict(scheduler_metadata=planned(max_seqlen_q=2)),
        dict(scheduler_metadata=planned(max_seqlen_k=41)),
        dict(scheduler_metadata=planned(num_splits=32)),
        dict(scheduler_metadata=planned()[:-1]),
    ],
    "33 keys, and the table": [dict(block_table=ints(1, 0, 2, 3).view(2, 2))],
    "33 keys, and max_seqlen_k": [dict(max_seqlen_k=32)],
    "3 queries, and max_seqlen_q": [dict(max_seqlen_q=2)],
    "3 queries of 2 keys": [dict(seqused_k=ints(5, 2))],
    "pages .* of 6": [dict(block_table=ints(1, 0, 0, 2, n, 5).view(2, 3)) for n in (-1, 6)],
    "do not go up": [dict(cu_seqlens_q=ints(0, 3, 1)), dict(cu_seqlens_q=ints(1, 2, 4))],
    "queries end at 5": [dict(cu_seqlens_q=ints(0, 1, 5))],
    "of .* requests": [dict(block_table=ints(1, 0, 0).view(1, 3)), dict(seqused_k=ints(5, 33, 0))],
    "has gaps": [dict(block_table=ints(1, 2, 0, 3, 0, 5).view(3, 2).t())],
    "not int32": [dict(seqused_k=torch.tensor([5, 33]))],
    "queries are": [dict(q=torch.randn(4, 4, 8).bfloat16())],
    "neither full attention nor a sliding window": [dict(window_size=[7, 7]), dict(fa_version=2)],
}


@pytest.mark.parametrize("said", WRONG)
def test_what_a_kernel_would_not_notice_is_an_error(said):
    for wrong in WRONG[said]:
        with pytest.raises(FA3Error, match=said):
            flash_attn_varlen_func(**call(**wrong))


def test_the_longest_context_does_not_matter_to_a_plan_of_fixed_splits():
    flash_attn_varlen_func(**call(num_splits=32, scheduler_metadata=planned(num_splits=32, max_seqlen_k=1024)))


@pytest.mark.parametrize("slots", [[0, 96], [3, 3], [0, 1, 2]])
def test_slots_out_of_range_or_written_twice_are_errors(slots):
    new, cache, one = torch.randn(2, 2, 8), torch.zeros(6, 16, 2, 8), torch.ones(())
    with pytest.raises(FA3Error):
        reshape_and_cache_flash(new, new, cache, cache.clone(), torch.tensor(slots), "auto", one, one)


# ------------------------------------------------------------ engines


@RUNS
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_text_models(engines, models, expected, name):
    """Eager, and from graphs, whose drafts are the same."""
    llm = engines(models(name), std(), **ROOM)
    speculator = speculator_of(llm)
    assert speculator.std.group.backend.get_name() == "FLASH_ATTN"
    eager = decoded(llm)
    assert speculator.supports_decode_metadata_update and speculator.std.selector.cache.plain
    assert eager[0] == expected[name] and 0 < eager[2] < eager[1]
    with graphs(llm, (1, 2, 4) if name == "llama" else (4,)):
        assert decoded(llm) == eager
        assert replayed(speculator) > 3


def test_draft_lengths_change_on_one_set_of_graphs(engines, models, expected, monkeypatch):
    llm = engines(models("llama"), std(), **ROOM)
    asked = draft_lengths(llm, monkeypatch, [3, 1, 0, 2])
    with graphs(llm):
        assert decoded(llm)[0] == expected["llama"]
    assert set(asked) == {0, 1, 2, 3}


def test_nothing_is_read_that_was_not_written(engines, models, expected):
    """NaN in the whole KV cache and in all that selection keeps of it, before each run."""
    llm = engines(models("llama"), std(), **ROOM)
    clean = decoded(llm)
    assert clean[0] == expected["llama"]

    def spoil():
        speculator = speculator_of(llm)
        kept = (
            speculator.std.queries.kept,
            speculator.std.selector.summaries.means,
            speculator.std.selector.ranking.scores,
        )
        for tensor in (*kept, *(layer.kv_cache for layer in speculator.std.target.layers)):
            tensor.fill_(torch.nan)

    spoil()
    assert decoded(llm) == clean
    with graphs(llm):
        spoil()
        assert decoded(llm) == clean
    llm.reset_prefix_cache()


@pytest.mark.parametrize("steps", [None, 1])
def test_proposals(engines, models, expected, spent, monkeypatch, steps):
    """Draft steps over several tokens of each request, over a cache full of NaN, eager and from graphs, and in dummy
    passes; steps: of each round, None for one a draft."""
    llm = engines(models("llama"), std(proposals=2, prompt_lookup_min=1), **ROOM)
    speculator, runner = speculator_of(llm), runner_of(llm)
    monkeypatch.setattr(speculator.std, "num_steps", lambda length: min(steps or length, length))

    def spoil():
        for layer in speculator.std.target.layers:
            layer.kv_cache.fill_(torch.nan)

    spoil()
    eager = decoded(llm)
    assert eager[0] == expected["llama"] and 0 < eager[2] < eager[1]
    with graphs(llm):
        spoil()
        assert decoded(llm) == eager
        assert replayed(speculator) > 3
        for arguments in DUMMIES.values():
            runner._dummy_run(skip_eplb=True, **arguments)
        assert decoded(llm) == eager
    llm.reset_prefix_cache()


DUMMIES = {
    "tuning": dict(num_tokens=1024, is_profile=True),
    "compiling": dict(num_tokens=1024),
    "beside a rank with requests": dict(num_tokens=4, uniform_decode=True),
}


def test_dummy_passes(engines, models, expected, spent):
    """vLLM's passes over requests that do not exist, eager and with graphs there."""
    llm = engines(models("llama"), std(), **ROOM)
    eager, runner = decoded(llm), runner_of(llm)
    for arguments in DUMMIES.values():
        runner._dummy_run(skip_eplb=True, **arguments)
    assert decoded(llm) == eager and eager[0] == expected["llama"]
    with graphs(llm):
        for arguments in DUMMIES.values():
            runner._dummy_run(skip_eplb=True, **arguments)
        assert decoded(llm) == eager


def test_what_vllm_does_before_the_first_request(engines, models, expected, spent, monkeypatch):
    """Graphs are captured on a KV cache of a few blocks, to see their memory, and thrown away with it; warm-ups have
    requests of their own, sampled and greedy; then graphs are captured to stay."""
    engines.close()
    llm = engines(models("llama"), std(), **ROOM)
    runner, speculator = runner_of(llm), speculator_of(llm)
    kv_cache_config = runner.kv_cache_config
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.accelerator, name, lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda *_: (2**30, 2**31))
    with graphs(llm):
        cudagraph_utils.profile_cudagraph_memory(runner)
        assert speculator.decode_cudagraph_manager is None
        runner.cache_config.num_gpu_blocks = kv_cache_config.num_blocks
        runner.initialize_kv_cache(kv_cache_config)
        with selecting("native"):
            warmup_kernels(runner, runner.execute_model, runner.sample_tokens)
        assert not runner.req_states.req_id_to_index
        runner.capture_model(profile_only=True)
        assert decoded(llm)[0] == expected["llama"]
        assert replayed(speculator) > 3


def test_calibration(engines, models, expected, monkeypatch, tmp_path):
    """The timed steps at start-up, eager, and as a GPU has them, from graphs; the table is measured in both."""
    monkeypatch.setattr(timing, "STEPS", 1)
    monkeypatch.setattr("vllm.envs.VLLM_CACHE_ROOT", str(tmp_path / "eager"), raising=False)
    llm = engines(models("llama"), std(adaptive=True, **CHEAP), **ROOM)
    assert scheduler_of(llm).std.controller.costs.source == "measured on cpu"
    monkeypatch.setattr("vllm.envs.VLLM_CACHE_ROOT", str(tmp_path / "graphs"), raising=False)
    with graphs(llm):
        engine = llm.llm_engine.engine_core.engine_core
        calibration.calibrate(engine.model_executor)
        assert calibration.cost_model(llm.llm_engine.vllm_config).source == "measured on cpu"
        assert not runner_of(llm).req_states.req_id_to_index
        draft_lengths(llm, monkeypatch, [3, 2])
        assert decoded(llm)[0] == expected["llama"]


def test_an_fp8_cache(engines, models, plain):
    """Queries are quantised as well, which no backend for CPUs does."""
    expected = plain(models("llama"), PROMPTS[1:], TOKENS, **ROOM, kv_cache_dtype="fp8")
    llm = engines(models("llama"), std(), **ROOM, kv_cache_dtype="fp8")
    eager = decoded(llm, PROMPTS[1:])
    assert eager[0] == expected and 0 < eager[2] < eager[1]
    with graphs(llm, (2,)):
        assert decoded(llm, PROMPTS[1:]) == eager


def test_preempted_requests_in_chunks(engines, models, expected):
    small = dict(
        max_num_seqs=4, max_num_batched_tokens=64, block_size=16, max_model_len=256, num_gpu_blocks_override=26
    )
    llm = engines(models("llama"), std(top_k=64, recent=16, **CHEAP), **small)
    with graphs(llm):
        assert decoded(llm, *CROWD)[0] == expected["crowd"]
    assert [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"][0] > 0


def test_async_scheduling(engines, models, expected, monkeypatch):
    keep_async(monkeypatch)
    llm = engines(models("llama"), std(**CHEAP), async_scheduling=True, **ROOM)
    assert type(scheduler_of(llm)).__name__ == "AsyncStdScheduler"
    with graphs(llm):
        assert decoded(llm)[0] == expected["llama"]
        draft_lengths(llm, monkeypatch, [3, 0, 0, 1, 2])
        assert decoded(llm)[0] == expected["llama"]


@RUNS
def test_positions_behind_a_video(engines, plain):
    """M-RoPE, on the bundled model, whose drafts are mostly right only where their positions are."""
    films = [SignVideo(scenes=12 + 4 * n, seed=n) for n in range(2)]
    prompts = [film.prompt(film.ask("range", sentences=1)["question"]) for film in films]
    room = dict(max_model_len=2048, max_num_batched_tokens=4096, max_num_seqs=2)
    expected = plain(SIGN_MODEL, prompts, 12, **room)
    llm = engines(SIGN_MODEL, std(num_speculative_tokens=4, top_k=192), **room)
    eager = decoded(llm, prompts, 12)
    assert eager[0] == expected and eager[2] > 0.7 * eager[1]
    with graphs(llm, (2,)):
        assert decoded(llm, prompts, 12) == eager
