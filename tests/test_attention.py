"""vLLM's paged attention over a masked block table, and keys read back from the cache, against plain torch."""

import functools
from types import SimpleNamespace

import pytest
import torch
from helpers import SIGN_MODEL
from pipelines import Pipeline
from reference import Options
from reference.policies import by_mean_keys, read_by_key, verify
from vllm import _custom_ops as ops
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata, _get_attn_isa

from vllm_std.mask import MaskShape, cdiv
from vllm_std.patches.key_layout import find_keys
from vllm_std.selection.attention import all_queries, block_attention
from vllm_std.selection.batch import Pairs
from vllm_std.selection.reads import CANDIDATES_PER_CHOSEN, KeyReads, granule
from vllm_std.tools.acceptance.policies import last_query

pytestmark = [pytest.mark.unit, pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU backend's kernels")]

GRID = [
    pytest.param(block, heads, size, dtype, id=f"block{block}-{heads[0]}q{heads[1]}kv-{size}-{str(dtype)[6:]}")
    for block in (32, 64, 128)
    for heads in ((4, 2), (3, 3), (8, 1))
    for size in (32, 64, 128)
    for dtype in (torch.float32, torch.bfloat16)
]
PAIRS = GRID[::11]  # five of them, in which each value of each parameter comes up


@functools.cache
def vllm_config():
    return EngineArgs(model=str(SIGN_MODEL), max_model_len=1024).create_engine_config()


class Cache:
    """One attention layer over a paged cache, with requests of given lengths written into scattered blocks."""

    def __init__(self, block_size, heads, head_size, dtype, lengths, kind="auto"):
        torch.manual_seed(1)
        self.heads, self.kv_heads = heads
        self.block_size, self.head_size, self.dtype, self.lengths = block_size, head_size, dtype, lengths
        columns = max(lengths) // block_size + 2
        blocks = 1 + torch.randperm(columns * len(lengths))
        self.block_table = blocks.view(len(lengths), columns).int()
        self.keys = [torch.randn(n, self.kv_heads, head_size).to(dtype) for n in lengths]
        self.values = [torch.randn(n, self.kv_heads, head_size).to(dtype) for n in lengths]
        with set_current_vllm_config(vllm_config()):
            impl = CPUAttentionBackendImpl(self.heads, head_size, head_size**-0.5, self.kv_heads, None, None, kind)
        shape = (len(blocks) + 1, self.kv_heads, block_size, 2 * head_size)
        self.layer = SimpleNamespace(
            impl=impl, isa=_get_attn_isa(dtype, block_size, head_size, kv_cache_dtype=kind), dtype=dtype,
            kv_cache=torch.zeros(shape, dtype=dtype if kind == "auto" else torch.uint8), kv_cache_dtype=kind,
            _k_scale_float=1.0, _v_scale_float=1.0,
        )  # fmt: skip
        for row, n in enumerate(lengths):
            position = torch.arange(n)
            slots = self.block_table[row, position // block_size].long() * block_size + position % block_size
            impl.do_kv_cache_update(self.layer, self.keys[row], self.values[row], self.layer.kv_cache, slots)

    def attend(self, query, table, lengths):
        """[reqs, heads, head size] one query per request over `lengths` tokens of a block table."""
        starts = torch.arange(len(query) + 1, dtype=torch.int32)
        plan = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(query), num_heads=self.heads, num_kv_heads=self.kv_heads, head_dim=self.head_size,
            seq_lens=lengths, dtype=self.dtype, query_start_loc=starts, causal=True, sliding_window_size=-1,
            isa=self.layer.isa, enable_kv_split=False, dynamic_causal=None, kv_cache_dtype="auto",
        )  # fmt: skip
        metadata = CPUAttentionMetadata(
            num_actual_tokens=len(query), max_query_len=1, query_start_loc=starts, max_seq_len=int(lengths.max()),
            seq_lens=lengths, block_table=table, slot_mapping=torch.empty(0), scheduler_metadata=plan, causal=True,
        )  # fmt: skip
        out = torch.empty_like(query)
        return self.layer.impl.forward(self.layer, query, None, None, self.layer.kv_cache, metadata, out)


def reference(query, keys, values):
    """[heads, head size] softmax attention of one query over the given keys, in float64."""
    group = query.shape[0] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    weight = (torch.einsum("hd,khd->hk", query.double(), keys) * query.shape[1] ** -0.5).softmax(-1)
    return torch.einsum("hk,khd->hd", weight, values)


@pytest.mark.parametrize("block_size,heads,head_size,dtype", GRID)
def test_masked_attention_equals_attention_over_the_kept_tokens(block_size, heads, head_size, dtype):
    lengths = [1, block_size, 5 * block_size + 7, 11 * block_size - 1]
    cache = Cache(block_size, heads, head_size, dtype, lengths)
    shape = MaskShape(block_size, sink=1, top=3, recent=block_size)
    length = torch.tensor(lengths) - 1  # verified before the token whose query this is
    pipeline = Pipeline(shape, find_keys([cache.layer]), cache.block_table, heads[0], dtype, gamma=1)
    pipeline.load(length)
    rows, columns = cache.block_table.shape
    pipeline.ranking.keep_top_k(torch.rand(rows, columns), pipeline.batch, Pairs(rows, 0, rows))
    (table,), masked = pipeline.fill()
    # A first token has nothing verified before it, and is not drafted after.
    masked[0], table[0, 0] = 1, cache.block_table[0, 0]
    query = torch.randn(len(lengths), heads[0], head_size).to(dtype)
    out = cache.attend(query, table, masked)
    for row, n in enumerate(lengths):
        physical = table[row, : -(-int(masked[row]) // block_size)].tolist()
        logical = [cache.block_table[row].tolist().index(block) for block in physical]
        token = torch.cat([torch.arange(b * block_size, min((b + 1) * block_size, n)) for b in logical])
        assert len(token) == masked[row]
        expected = reference(query[row], cache.keys[row][token], cache.values[row][token])
        tolerance = 2e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(out[row].double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("block_size,heads,head_size,dtype", GRID)
def test_keys_come_back_as_they_were_written(block_size, heads, head_size, dtype):
    cache = Cache(block_size, heads, head_size, dtype, [3 * block_size, 2 * block_size])
    found = find_keys([cache.layer])
    for row, n in enumerate(cache.lengths):
        keys = found.read(0, cache.block_table[row, : n // block_size])
        assert torch.equal(keys.transpose(1, 2).flatten(0, 1), cache.keys[row])
    assert not cache.layer.kv_cache[0].any(), "the null block is left as it was"


@pytest.mark.parametrize("kind", ["fp8", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_keys_of_a_quantised_cache_come_back_rounded(kind, scale):
    cache = Cache(32, (4, 2), 64, torch.bfloat16, [96], kind)
    found = find_keys([cache.layer])
    cache.layer._k_scale_float = scale
    found.key_scales.fill_(scale)
    slots = torch.arange(32 * int(cache.block_table[0, 0]), 32 * int(cache.block_table[0, 0]) + 32)
    cache.layer.impl.do_kv_cache_update(
        cache.layer, cache.keys[0][:32], cache.values[0][:32], cache.layer.kv_cache, slots
    )
    keys = found.read(0, cache.block_table[0, :1])[0].transpose(0, 1).float()
    step = 2 ** -(2 if kind == "fp8_e5m2" else 3)
    torch.testing.assert_close(keys, cache.keys[0][:32].float(), rtol=step, atol=scale * 2**-6)


@pytest.mark.parametrize("order", ["LBNHC", "LBHNC", "BLNHC"])
def test_keys_are_read_whatever_the_memory_order(order):
    """The logical cache is [blocks, KV heads, block size, 2 * head size]; only its strides differ."""
    blocks, layers, heads, block_size, size = 9, 2, 3, 16, 32
    sizes = {"L": layers, "B": blocks, "N": block_size, "H": heads, "C": 2 * size}
    memory = torch.zeros([sizes[letter] for letter in order])
    cache = memory.permute([order.index(letter) for letter in "LBHNC"])[1]

    def update(layer, keys, values, cache, slots):
        cache.transpose(1, 2)[slots // block_size, slots % block_size] = torch.cat([keys, values], -1)

    impl = SimpleNamespace(do_kv_cache_update=update)
    layer = SimpleNamespace(impl=impl, kv_cache=cache, dtype=torch.float32, kv_cache_dtype="auto", _k_scale_float=1.0)
    found, keys = find_keys([layer]), torch.randn(2 * block_size, heads, size)
    update(layer, keys, keys, cache, torch.arange(4 * block_size, 6 * block_size))
    assert found.plain
    assert torch.equal(found.read(0, torch.tensor([4, 5])).transpose(1, 2).flatten(0, 1), keys)


class Seen(Pipeline):
    """Requests with queries over a `Cache`, and their attention in float64."""

    def __init__(self, block_size, heads, head_size, dtype, top=2):
        torch.manual_seed(2)
        lengths, self.verified = [4 * block_size + 9, 9 * block_size - 1, 12 * block_size], [4, 1, 6]
        self.paged = Cache(block_size, heads, head_size, dtype, lengths)
        mask = MaskShape(block_size, sink=1, top=top, recent=block_size)
        super().__init__(mask, find_keys([self.paged.layer]), self.paged.block_table, heads[0], dtype)
        self.queries.kept.copy_(torch.randn(1, len(lengths), self.gamma + 1, heads[0], head_size))
        self.load(torch.tensor(lengths), last=torch.tensor(self.verified) - 1)
        self.summarise(12)

    def logits(self, row: int, rows) -> torch.Tensor:
        """[queries, heads, keys] float64."""
        keys = self.paged.keys[row].double().repeat_interleave(self.paged.heads // self.paged.kv_heads, 1)
        return torch.einsum("whd,khd->whk", self.queries.kept[0, row, rows].double(), keys) * keys.shape[-1] ** -0.5

    def by_block(self, mass: torch.Tensor) -> torch.Tensor:
        """[keys] -> [blocks of the longest request]"""
        room = self.dense_pass().num_blocks * self.paged.block_size
        return torch.nn.functional.pad(mass, (0, room - len(mass))).view(-1, self.paged.block_size).sum(1)


@pytest.mark.parametrize("block_size,heads,head_size,dtype", PAIRS)
@pytest.mark.parametrize("observed", [last_query, all_queries])
def test_block_attention_is_the_attention_of_the_verified_queries(block_size, heads, head_size, dtype, observed):
    seen = Seen(block_size, heads, head_size, dtype)
    got = block_attention(seen.dense_pass(), 0, *observed(seen.dense_pass(), 0))
    for row, verified in enumerate(seen.verified):
        rows = slice(verified - 1, verified) if observed is last_query else slice(verified)
        mass = seen.logits(row, rows).softmax(-1).sum((0, 1))
        torch.testing.assert_close(got[row].double(), seen.by_block(mass), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block_size,heads,head_size,dtype", PAIRS)
def test_summaries_are_the_mean_keys_of_complete_granules(way, block_size, heads, head_size, dtype):
    seen = Seen(block_size, heads, head_size, dtype)
    size, close = granule(block_size), 1e-6 if dtype == torch.float32 else 1e-2
    for row, n in enumerate(seen.paged.lengths):
        complete = n // block_size
        keys = seen.paged.keys[row][: complete * block_size].float().unflatten(0, (complete, -1, size)).mean(2)
        means = seen.summaries.means[0, seen.paged.block_table[row, :complete].long()].transpose(1, 2)
        torch.testing.assert_close(means.float(), keys, atol=close, rtol=close)
    untouched = torch.ones(len(seen.summaries.means[0]), dtype=torch.bool)
    untouched[torch.cat([t[: n // block_size] for t, n in zip(seen.paged.block_table, seen.paged.lengths)]).long()] = 0
    assert not seen.summaries.means[0, untouched].any()


def by_reference(seen: Seen, row: int) -> tuple[torch.Tensor, list[int]]:
    """([blocks] scores of `verify`, the blocks whose keys are read), by the reference."""
    size, keys = seen.mask.block_size, seen.paged.keys[row].transpose(0, 1)
    options = Options(seen.mask.num_blocks * size, size, sink=1, recent=seen.mask.recent)
    asked = seen.queries.kept[0, row, : seen.verified[row]], keys, float(seen.scales[0]), options
    estimates = by_mean_keys(*asked).softmax(-1).sum(0)
    return verify(*asked), sorted(read_by_key(estimates.tolist(), keys.shape[1], options))


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("block_size,heads,head_size,dtype", PAIRS)
def test_verify_reads_the_best_blocks_and_estimates_the_others(way, block_size, heads, head_size, dtype, at_once):
    """However many (layer, request) pairs go at once."""
    seen, scores, read = Seen(block_size, heads, head_size, dtype, top=1), {}, {}
    seen.scorer.workspace.pairs = at_once
    keep_top_k = seen.ranking.keep_top_k

    def watched(found, batch, pairs):
        for pair in range(pairs.count):
            row = pairs.first + pair
            blocks = cdiv(seen.paged.lengths[row], block_size)
            scores[row] = found[pair, :blocks].clone()
            count = seen.scorer.reads.blocks(torch.tensor(blocks))
            read[row] = seen.scorer.workspace.read_blocks[pair, :count].tolist()
        keep_top_k(found, batch, pairs)

    seen.ranking.keep_top_k = watched
    seen.score()
    for row in range(3):
        expected, expected_read = by_reference(seen, row)
        kept = seen.ranking.blocks[0, row].long()
        assert kept[0] in expected_read
        assert way != "interpret" or dtype != torch.float32 or read[row] == expected_read
        close = 2e-3 if dtype == torch.float32 else 2e-2  # means are rounded to the model's dtype
        torch.testing.assert_close(seen.ranking.scores[0, row], expected[kept], atol=close, rtol=close)
        if way == "interpret":
            torch.testing.assert_close(scores[row], expected, atol=close, rtol=close)


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_rows_not_to_be_scored_keep_what_they_had(way, num_rows):
    seen = Seen(32, (4, 2), 64, torch.float32)
    seen.ranking.blocks.fill_(-7)
    seen.load(torch.tensor(seen.paged.lengths), due=torch.tensor([0, 1, 0]))
    seen.score(num_rows)
    assert [(row != -7).all().item() for row in seen.ranking.blocks[0]] == [False, num_rows > 1, False]


def test_candidates_are_fewer_where_a_good_part_of_the_context_is_chosen_anyway():
    """None where half of the context or more is chosen; all where a fifth or less is."""
    reads, most = KeyReads.plan(MaskShape(16, sink=1, top=59, recent=64)), 6 + CANDIDATES_PER_CHOSEN * 59
    written = torch.tensor([0, 5, 100, 2 * 59, 200, 5 * 59, 10_000])
    assert reads.blocks(written).tolist() == [0, 5, 6, 6, 6 + 200 - 2 * 59, most, most]


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_a_round_reads_one_thirty_second_of_the_kv_bytes_and_the_candidates(block_size):
    seen = Seen(block_size, (4, 2), 64, torch.bfloat16)
    always = seen.mask.sink + 2  # the recent window of one block lies in two
    assert seen.scorer.workspace.read_blocks.shape[1] == CANDIDATES_PER_CHOSEN * seen.mask.top + always
    kv, means = seen.paged.layer.kv_cache, seen.summaries.means[0]
    assert means[0].nbytes * 32 == kv[0].nbytes
