"""Key summaries are the mean keys of the cache in every round, however blocks came to be filled; and their bytes."""

import pytest
import torch
from helpers import SIGN_MODEL, Acceptance, draft_lengths, greedy, runner_of, speculator_of, std, token_prompts
from vllm.v1.executor import Executor

from vllm_std.selection.reads import granule, share_of_kv
from vllm_std.tools.demo.sign_video import SignVideo

PROMPTS = token_prompts([700, 90, 333, 512], seed=3)


class Watch:
    """Compares, in each round, the summaries of all complete blocks of each drafting request with its keys."""

    def __init__(self, llm, monkeypatch):
        self.speculator, self.blocks, self.rounds = speculator_of(llm), 0, 0
        original = self.speculator.std.selector.begin

        def begin(dense_pass, slots, *args):
            original(dense_pass, slots, *args)
            for row in self.speculator.std.selector.batch.context_lens[: len(slots)].nonzero()[:, 0].tolist():
                complete = int(dense_pass.context_lens[row]) // self.speculator.std.selector.block_size
                self.check(dense_pass.read_keys, dense_pass.block_table[row, :complete].long())
            self.rounds += 1

        monkeypatch.setattr(self.speculator.std.selector, "begin", begin)

    def check(self, read_keys, blocks: torch.Tensor) -> None:
        means = self.speculator.std.selector.summaries.means
        close = 1e-6 if means.dtype == torch.float32 else 1e-2
        for layer, kept in enumerate(means):
            keys = read_keys(layer, blocks).unflatten(2, (means.shape[3], -1)).float()
            torch.testing.assert_close(kept[blocks].float(), keys.mean(3), rtol=close, atol=close)
        self.blocks += len(blocks)


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 64}, {"async_scheduling": False}], ids=str)
@pytest.mark.engine
def test_summaries_are_the_mean_keys_of_the_cache(engines, plain, models, monkeypatch, options):
    expected = plain(models("llama"), PROMPTS, 48)
    llm = engines(models("llama"), std(), **options)
    watch = Watch(llm, monkeypatch)
    assert greedy(llm, PROMPTS, 48) == expected
    assert watch.rounds > 10 and watch.blocks > 200


@pytest.mark.engine
def test_a_request_that_resumes_in_other_blocks_is_summarised_anew(engines, plain, models, monkeypatch):
    prompts = token_prompts([200, 220, 240, 260], seed=4)
    expected = plain(models("llama"), prompts, 120)
    llm = engines(models("llama"), std(), num_gpu_blocks_override=36)
    watch = Watch(llm, monkeypatch)
    assert greedy(llm, prompts, 120) == expected
    assert watch.blocks > 200
    assert [m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"][0] > 0


@pytest.mark.engine
def test_blocks_found_in_the_prefix_cache_or_taken_from_others_are_summarised_anew(engines, plain, models, monkeypatch):
    """Shared prefixes inside a batch and from one to the next, in a cache so small that blocks change hands."""
    shared = PROMPTS[0]["prompt_token_ids"][:416]
    ends = [[end["prompt_token_ids"] for end in token_prompts((7, 60, 99), seed=seed)] for seed in (4, 5, 6)]
    batches = [[{"prompt_token_ids": shared + end} for end in three] for three in ends]
    expected = [plain(models("llama"), batch) for batch in batches]
    llm = engines(models("llama"), std(), kv_cache_memory_bytes=2**22 + 2**21)
    watch = Watch(llm, monkeypatch)
    for batch, tokens in zip(batches, expected):
        assert greedy(llm, batch) == tokens
        speculator_of(llm).std.selector.summaries.means.fill_(1e3)  # what stands there between requests must not matter
    assert watch.blocks > 300


@pytest.mark.engine
def test_rounds_without_drafts_leave_no_gap(engines, plain, models, monkeypatch):
    expected = plain(models("llama"), PROMPTS, 48)
    llm = engines(models("llama"), std())
    watch = Watch(llm, monkeypatch)
    turns = draft_lengths(llm, monkeypatch, [0] * 17 + [3] * 3)
    assert greedy(llm, PROMPTS, 48) == expected
    assert 0 < watch.rounds < len(turns) / 2


@pytest.mark.parametrize("kind", ["fp8", "fp8_e5m2"])
@pytest.mark.engine
def test_a_quantised_cache_drafts_as_well(engines, monkeypatch, kind):
    film = SignVideo(scenes=60, seed=11)
    prompt = film.prompt(film.ask("range", sentences=3)["question"])
    room = dict(max_model_len=2048, max_num_batched_tokens=2048, dtype="bfloat16")
    llm = engines(SIGN_MODEL, std(num_speculative_tokens=5, top_k=192), kv_cache_dtype=kind, **room)
    watch = Watch(llm, monkeypatch)
    with Acceptance(llm) as seen:
        greedy(llm, [prompt], 60)
    assert seen.rate > 0.8 and watch.blocks > 300


@pytest.mark.parametrize(
    "block_size,itemsize,cached,share", [(16, 2, 2, 1 / 32), (128, 4, 4, 1 / 32), (32, 2, 1, 1 / 16)]
)
@pytest.mark.unit
def test_a_summary_takes_one_thirty_second_of_the_kv_bytes(block_size, itemsize, cached, share):
    assert share_of_kv(itemsize, cached, block_size) == share
    assert granule(block_size) == 16


@pytest.mark.engine
def test_the_store_is_part_of_the_memory_that_vllm_gives_to_the_kv_cache(engines, models):
    """KV cache and summaries together take what plain vLLM's KV cache takes, to within a block."""
    sizes = {}
    for selection in (None, "streaming", "verify"):
        runner = runner_of(engines(models("llama"), selection and std(selection=selection)))
        kv = sum(layer.kv_cache.nbytes for layer in runner.compilation_config.static_forward_context.values())
        sizes[selection] = kv + taken(runner.speculator), kv / runner.kv_cache_config.num_blocks
        del runner
    for selection in ("streaming", "verify"):
        assert 0 <= sizes[None][0] - sizes[selection][0] < 2 * sizes[None][1]
    assert hasattr(Executor.determine_available_memory, "__vllm_std__")


def taken(speculator) -> int:
    """Bytes of what selection keeps, observation queries apart."""
    if speculator is None:
        return 0
    selector, ranking = speculator.std.selector, speculator.std.selector.ranking
    kept = [selector.tables, ranking.blocks, ranking.scores]
    if selector.scorer:
        workspace = selector.scorer.workspace
        kept += [selector.summaries.means, workspace.log_sums, workspace.scores, workspace.read_blocks]
    return sum(tensor.nbytes for tensor in kept)
