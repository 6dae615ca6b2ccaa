"""What works with models of full attention works where sliding windows stand beside it: schedules, caches, graphs."""

import fa3
import pytest
import torch
from cpu_graphs import decode_graphs
from helpers import (
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
from hypothesis import settings
from schedules import POOL, Driver
from test_schedules import PROFILE, hold

from vllm_std.control import timing
from vllm_std.patches import groups

pytestmark = pytest.mark.engine
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has graphs and kernels of its own")

MODEL = "ministral"  # two groups of windowed layers, and one of full ones
PROMPTS = token_prompts([45, 300, 620, 97], seed=2)
ONE_GROUP = {"disable_hybrid_kv_cache_manager": True}


@pytest.fixture
def engine(engines, plain, models):
    """An engine with std, and what plain vLLM answers to PROMPTS."""
    expected = plain(models(MODEL), PROMPTS)
    return engines(models(MODEL), std()), expected


def written_by(speculator, monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The slots that each draft step writes K/V to, by layer, filled in as the engine runs."""
    written, plain = [], speculator._run_model

    def run_model(num_tokens, attn_metadata, slot_mappings, *args, **kwargs):
        if slot_mappings is not None:
            written.append({name: slots[:num_tokens].clone() for name, slots in slot_mappings.items()})
        return plain(num_tokens, attn_metadata, slot_mappings, *args, **kwargs)

    monkeypatch.setattr(speculator, "_run_model", run_model)
    return written


def after_rounds(speculator, monkeypatch, then) -> None:
    plain = speculator.propose

    def propose(input_batch, *args, **kwargs):
        drafts = plain(input_batch, *args, **kwargs)
        then(input_batch)
        return drafts

    monkeypatch.setattr(speculator, "propose", propose)


def test_drafts_write_only_past_the_verified_tokens_in_every_group(engine, monkeypatch):
    llm, expected = engine
    runner, speculator, checked = runner_of(llm), speculator_of(llm), []
    written = written_by(speculator, monkeypatch)
    groups = runner.kv_cache_config.kv_cache_groups
    assert len(groups) == 3

    def check(input_batch):
        for row, slot in enumerate(input_batch.idx_mapping.tolist()):
            verified = int(runner.req_states.num_computed_tokens.gpu[slot])
            for index, group in enumerate(groups):
                table, size = runner.block_tables.block_tables[index].gpu[slot], group.kv_cache_spec.block_size
                for step, slots in enumerate(written):
                    place, position = int(slots[group.layer_names[0]][row]), verified + step
                    if place >= 0:
                        assert place == int(table[position // size]) * size + position % size
                        assert place >= size, "the null block holds no token"
                        checked.append(index)
        written.clear()

    after_rounds(speculator, monkeypatch, check)
    assert greedy(llm, PROMPTS) == expected
    assert all(checked.count(index) > 50 for index in range(3))


def test_the_dense_pass_overwrites_every_drafted_slot_of_every_group(engine, monkeypatch):
    """Rubbish in place of the drafts' K/V, in all layers, changes neither a token nor an accepted draft."""
    llm, expected = engine
    llm.reset_prefix_cache()
    with Acceptance(llm) as clean:
        assert greedy(llm, PROMPTS) == expected
    llm.reset_prefix_cache()
    speculator, layers = speculator_of(llm), groups.attention_layers(runner_of(llm).vllm_config)
    written = written_by(speculator, monkeypatch)

    def poison(_):
        for slots in written:
            for name, layer in layers.items():
                rubbish = torch.full((len(slots[name]), layer.num_kv_heads, layer.head_size), 1e4)
                layer.impl.do_kv_cache_update(layer, rubbish, -rubbish, layer.kv_cache, slots[name])
        written.clear()

    after_rounds(speculator, monkeypatch, poison)
    with Acceptance(llm) as poisoned:
        assert greedy(llm, PROMPTS) == expected
    assert (poisoned.drafted, poisoned.accepted) == (clean.drafted, clean.accepted)


def test_memory_and_selection_are_of_full_layers_alone(engine):
    speculator = speculator_of(engine[0])
    assert len(speculator.std.target.layers) == 1 < len(groups.attention_layers(speculator.vllm_config))
    kept = speculator.std.selector.summaries.means, speculator.std.selector.tables, speculator.std.queries.kept
    assert {len(tensor) for tensor in kept} == {1}


def test_a_lookahead_slot_is_reserved_in_every_group(engine, monkeypatch):
    """And blocks before the window are given back, while drafts go on."""
    llm, expected = engine
    scheduler, blocks = scheduler_of(llm), []
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    plain = scheduler.update_from_output

    def update_from_output(output, *args, **kwargs):
        for name, tokens in output.num_scheduled_tokens.items():
            end = scheduler.requests[name].num_computed_tokens + 3
            held = [manager.req_to_blocks[name] for manager in managers]
            if scheduler.requests[name].num_output_tokens and end < 1024:
                assert all(len(own) * manager.block_size >= end for own, manager in zip(held, managers))
            blocks.append([sum(block.is_null for block in own) for own in held])
        return plain(output, *args, **kwargs)

    monkeypatch.setattr(scheduler, "update_from_output", update_from_output)
    assert greedy(llm, PROMPTS) == expected
    assert max(map(max, blocks)) >= (620 - 64) // 32 and min(map(min, blocks)) == 0


SCHEDULED = {  # a prompt that is computed at once holds blocks of all groups for all of it
    "hybrid": dict(num_gpu_blocks_override=24, max_num_batched_tokens=64),
    "one group": dict(num_gpu_blocks_override=12, **ONE_GROUP),
    "async scheduling": dict(num_gpu_blocks_override=36, async_scheduling=True),
}


@pytest.mark.supports("random schedules: arrivals, aborts, preemption, chunks, draft lengths (hypothesis)")
@pytest.mark.parametrize("kind", SCHEDULED)
def test_greedy_tokens_are_plain_vllms_under_any_schedule(engines, models, monkeypatch, kind):
    llm = engines(models(MODEL), None, max_model_len=352)
    prompts, params = zip(*[({"prompt_token_ids": prompt}, params.clone()) for prompt, params in POOL])
    outputs = llm.generate(list(prompts), list(params), use_tqdm=False)
    answers = [(list(out.outputs[0].token_ids), out.outputs[0].finish_reason) for out in outputs]
    del llm
    if kind == "async scheduling":
        keep_async(monkeypatch)
    llm = engines(models(MODEL), std(), max_model_len=352, max_num_seqs=4, **SCHEDULED[kind])
    driver = Driver(llm, answers, monkeypatch)
    with Acceptance(llm) as seen:
        hold(driver, settings(PROFILE, max_examples=min(PROFILE.max_examples, 30)))
    assert driver.seen["preempted for want of blocks"] and 0 < seen.accepted < seen.drafted


def test_prefix_cache_hits(engines, plain, models):
    """A conversation goes on from blocks that drafts once wrote to, in every group."""
    expected = plain(models(MODEL), PROMPTS, 64)
    longer = [
        {"prompt_token_ids": [*prompt["prompt_token_ids"], *answer, 7, 8, 9]}
        for prompt, answer in zip(PROMPTS, expected)
    ]
    expected_longer = plain(models(MODEL), longer)
    llm = engines(models(MODEL), std())
    assert greedy(llm, PROMPTS, 64) == expected
    hits = {m.name: m.value for m in llm.get_metrics() if m.name == "vllm:prefix_cache_hits"}
    assert greedy(llm, longer) == expected_longer
    after = {m.name: m.value for m in llm.get_metrics() if m.name == "vllm:prefix_cache_hits"}
    assert after["vllm:prefix_cache_hits"] - hits["vllm:prefix_cache_hits"] > 600


@ON_CPU
@pytest.mark.parametrize("mixed", [False, True], ids=["uniform", "mixed"])
def test_graphs_draft_what_eager_steps_do(engine, monkeypatch, mixed):
    llm, expected = engine
    monkeypatch.setattr("vllm_std.selection.keys.ON_CPU", "interpret")
    with Acceptance(llm) as eager:
        llm.reset_prefix_cache()
        assert greedy(llm, PROMPTS, 12) == [tokens[:12] for tokens in expected]
    with decode_graphs(llm, (1, 4), mixed=mixed), Acceptance(llm) as replayed:
        llm.reset_prefix_cache()
        assert greedy(llm, PROMPTS, 12) == [tokens[:12] for tokens in expected]
        assert sum(graph.replays for graph in speculator_of(llm).decode_cudagraph_manager.graphs.values()) > 3
    assert (replayed.drafted, replayed.accepted) == (eager.drafted, eager.accepted)


def test_draft_lengths_that_change(engine, monkeypatch):
    llm, expected = engine
    turns = draft_lengths(llm, monkeypatch, [3, 0, 1, 2])
    assert greedy(llm, PROMPTS) == expected
    assert set(turns) == {0, 1, 2, 3}


@pytest.mark.parametrize("options", [{}, ONE_GROUP], ids=["hybrid", "one group"])
def test_steps_are_timed_at_start_up(engines, plain, models, tmp_path, monkeypatch, options):
    """With blocks of every group, as many as a request of that length would have."""
    expected = plain(models(MODEL), PROMPTS)
    monkeypatch.setattr(timing, "STEPS", 1)
    monkeypatch.setattr("vllm.envs.VLLM_CACHE_ROOT", str(tmp_path), raising=False)
    small = dict(max_num_seqs=4, kv_cache_memory_bytes=2**25)
    llm = engines(models(MODEL), std(adaptive=True), **small, **options)
    costs = scheduler_of(llm).std.controller.costs
    assert costs.source == "measured on cpu" and costs.windows > 0
    assert not runner_of(llm).req_states.req_id_to_index
    draft_lengths(llm, monkeypatch, [3])
    assert greedy(llm, PROMPTS) == expected


@ON_CPU
@pytest.mark.supports("attention backend FLASH_ATTN (its CUDA kernels stood in for)")
@pytest.mark.parametrize("name", ["ministral", "gpt_oss", "gemma2"])
def test_flash_attention(engines, plain, models, name):
    """Windows, attention sinks and softcaps by FLASH_ATTN, eager and from graphs."""
    from test_flash_attention import decoded, graphs

    room = dict(max_num_seqs=4, max_num_batched_tokens=1024, block_size=16)
    engines.close()
    fa3.errors.clear()
    with fa3.flash_attention():
        expected = plain(models(name), PROMPTS[:2], 8, **room)
        llm = engines(models(name), std(), **room)
        assert speculator_of(llm).std.group.backend.get_name() == "FLASH_ATTN"
        eager = decoded(llm, PROMPTS[:2], 8)
        assert eager[0] == expected and eager[2] > 0
        with graphs(llm, (2,)):
            assert decoded(llm, PROMPTS[:2], 8) == eager
        del llm
        engines.close()
