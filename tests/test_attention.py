"""vLLM's paged attention over a masked block table, and keys read back from the cache, against plain torch."""

import functools
from types import SimpleNamespace

import pytest
import torch
from conftest import SIGN_MODEL
from vllm import _custom_ops as ops
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, CPUAttentionMetadata, _get_attn_isa

from vllm_std.mask import MaskShape
from vllm_std.seams.worker import KeyReader
from vllm_std.selection import Observation
from vllm_std.selection.attention import block_attention

pytestmark = [pytest.mark.fast, pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU backend's kernels")]

GRID = [
    pytest.param(block, heads, size, dtype, id=f"block{block}-{heads[0]}q{heads[1]}kv-{size}-{str(dtype)[6:]}")
    for block in (32, 64, 128)
    for heads in ((4, 2), (3, 3), (8, 1))
    for size in (32, 64, 128)
    for dtype in (torch.float32, torch.bfloat16)
]


@functools.cache
def vllm_config():
    return EngineArgs(model=str(SIGN_MODEL), max_model_len=1024).create_engine_config()


class Cache:
    """One attention layer over a paged cache, with requests of given lengths written into scattered blocks."""

    def __init__(self, block_size, heads, head_size, dtype, lengths):
        torch.manual_seed(1)
        self.heads, self.kv_heads = heads
        self.block_size, self.head_size, self.dtype, self.lengths = block_size, head_size, dtype, lengths
        columns = max(lengths) // block_size + 2
        blocks = 1 + torch.randperm(columns * len(lengths))
        self.block_table = blocks.view(len(lengths), columns).int()
        self.keys = [torch.randn(n, self.kv_heads, head_size).to(dtype) for n in lengths]
        self.values = [torch.randn(n, self.kv_heads, head_size).to(dtype) for n in lengths]
        with set_current_vllm_config(vllm_config()):
            impl = CPUAttentionBackendImpl(self.heads, head_size, head_size**-0.5, self.kv_heads, None, None, "auto")
        shape = (len(blocks) + 1, self.kv_heads, block_size, 2 * head_size)
        isa = _get_attn_isa(dtype, block_size, head_size)
        self.layer = SimpleNamespace(
            impl=impl, isa=isa, kv_cache=torch.zeros(shape, dtype=dtype), _k_scale_float=1.0, _v_scale_float=1.0
        )
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
    scores = torch.rand(1, len(lengths), cache.block_table.shape[1])
    chosen = shape.choose(scores, length)
    table = shape.table(chosen, cache.block_table, length, shape.width(1))[0]
    query = torch.randn(len(lengths), heads[0], head_size).to(dtype)
    masked = (torch.tensor(lengths) - shape.dropped_tokens(length)).int()
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
    read = KeyReader(cache.layer)
    for row, n in enumerate(cache.lengths):
        keys = read(cache.layer, cache.block_table[row, : n // block_size])
        assert torch.equal(keys.transpose(1, 2).flatten(0, 1), cache.keys[row])
    assert not cache.layer.kv_cache[0].any(), "the null block is left as it was"


@pytest.mark.parametrize("block_size,heads,head_size,dtype", GRID[::7])
def test_block_attention_is_the_attention_mass_of_each_block(block_size, heads, head_size, dtype):
    n, window, verified = 4 * block_size + 9, 6, 4
    cache = Cache(block_size, heads, head_size, dtype, [n])
    queries = torch.randn(1, 1, window, heads[0], head_size).to(dtype)
    seen = Observation(
        queries=queries, num_queries=torch.tensor([verified]), length=torch.tensor([n]),
        max_length=torch.tensor([n + 3]).numpy(), slots=torch.tensor([0]), drafting=torch.tensor([True]).numpy(),
        prompt_done=torch.tensor([False]).numpy(), block_table=cache.block_table, block_size=block_size,
        keys=lambda _, blocks: KeyReader(cache.layer)(cache.layer, blocks), scales=[head_size**-0.5],
    )  # fmt: skip
    got = block_attention(seen, 0, out=seen.zeros()[:, 0])[0]
    keys = cache.keys[0].double().repeat_interleave(heads[0] // heads[1], 1)
    logits = torch.einsum("whd,khd->whk", queries[0, 0, :verified].double(), keys) * head_size**-0.5
    mass = torch.nn.functional.pad(logits.softmax(-1).sum((0, 1)), (0, len(got) * block_size - n))
    torch.testing.assert_close(got.double(), mass.view(-1, block_size).sum(1), atol=1e-4, rtol=1e-4)
