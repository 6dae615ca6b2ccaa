"""FlashAttention 3 without a GPU: vLLM's FLASH_ATTN runs unchanged over plain torch that checks what it is given.

    with flash_attention():    # engines that start within attend by FLASH_ATTN
        llm = LLM(...)

The CUDA kernels trust their caller: they read where tables and lengths point, and share out the work by a plan
("scheduler metadata") that was made before. The operators here raise FA3Error where a kernel would leave its tensors
or follow the plan of another call. tests/cpu_graphs.py records each of them as one launch.
"""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.library import custom_op
from vllm.platforms import current_platform
from vllm.v1.attention import selector
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends import flash_attn

errors: list[str] = []  # that were raised: std goes on without the drafts of a round that fails


class FA3Error(RuntimeError):
    """A CUDA kernel would have gone wrong here without saying so."""


def need(holds: bool, otherwise: str) -> None:
    if not holds:
        errors.append(otherwise)
        raise FA3Error(otherwise)


@custom_op("fa3::plan", mutates_args=())
def get_scheduler_metadata(
    batch_size: int, max_seqlen_q: int, max_seqlen_k: int, num_heads_q: int, num_heads_kv: int, headdim: int,
    cache_seqlens: Tensor, qkv_dtype: torch.dtype, cu_seqlens_q: Tensor, page_size: int, causal: bool, num_splits: int,
    window_size: list[int],
) -> Tensor:  # fmt: skip
    """All that the work depends on, within the size of a real plan: [query lengths | key lengths | the rest |
    semaphore], the first three with places for all requests, rounded up to 4."""
    need(len(cu_seqlens_q) - 1 == len(cache_seqlens) == batch_size, f"{batch_size} requests are not of the lengths")
    longest = max_seqlen_k if num_splits <= 0 else 0  # by which the kernel chooses the number of splits
    sees = causal + 2 * (window_size[0] + 1)
    rest = [max_seqlen_q, longest, num_heads_q, num_heads_kv, headdim * qkv_dtype.itemsize, page_size, sees]
    places = -(-batch_size // 4) * 4
    plan = torch.zeros(4 * places + 1, dtype=torch.int32)
    plan[:batch_size], plan[places : places + batch_size] = cu_seqlens_q.diff(), cache_seqlens
    plan[2 * places : 2 * places + 8] = torch.tensor([*rest, num_splits])
    return plan


@custom_op("fa3::attend", mutates_args=("out",))
def attend(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, cu_seqlens_q: Tensor, max_seqlen_q: int, seqused_k: Tensor,
    max_seqlen_k: int, softmax_scale: float, causal: bool, block_table: Tensor, scheduler_metadata: Tensor | None,
    num_splits: int, q_descale: Tensor, k_descale: Tensor, v_descale: Tensor, window_size: list[int], softcap: float,
    s_aux: Tensor | None,
) -> None:  # fmt: skip
    """q, out: [tokens, heads, size]; k, v: [pages, page, KV heads, size]; descale: [requests, KV heads]; window_size:
    tokens seen before and after a query's own, -1 for all; s_aux: [heads] attention sinks."""
    check_batch(q, k, v, out, cu_seqlens_q, seqused_k, block_table)
    if scheduler_metadata is not None:
        sizes = q.shape[1], k.shape[2], q.shape[2], seqused_k, q.dtype, cu_seqlens_q, k.shape[1], causal, num_splits
        plan = get_scheduler_metadata(len(seqused_k), max_seqlen_q, max_seqlen_k, *sizes, window_size)
        same = torch.equal(plan, scheduler_metadata)
        need(same, f"the plan is for {scheduler_metadata.tolist()}, and the call is {plan.tolist()}")
    starts = cu_seqlens_q.tolist()
    for row, (start, end, length) in enumerate(zip(starts, starts[1:], seqused_k.tolist())):
        if start < end:
            need(end - start <= max_seqlen_q, f"{end - start} queries, and max_seqlen_q is {max_seqlen_q}")
            need(length <= max_seqlen_k, f"{length} keys, and max_seqlen_k is {max_seqlen_k}")
            seen = length if window_size[0] < 0 else min(length, end - start + window_size[0])
            pages = pages_of(block_table[row], length, *k.shape[:2], seen)
            inputs = q[start:end], *(cache[pages].flatten(0, 1)[:length] for cache in (k, v))
            scales = (scale[row, 0] for scale in (q_descale, k_descale, v_descale))
            inputs = (x.float() * scale if x.dtype.itemsize == 1 else x for x, scale in zip(inputs, scales))
            out[start:end] = softmax_attention(*inputs, softmax_scale, causal, window_size[0], softcap, s_aux)


def check_batch(q, k, v, out, starts, lengths, table) -> None:
    need(all(x.stride(-1) == 1 for x in (q, k, v, out, starts, lengths, table)), "a last dimension has gaps")
    need(starts.dtype == lengths.dtype == table.dtype == torch.int32, "the table or the lengths are not int32")
    need(q.dtype == k.dtype == v.dtype, f"queries are {q.dtype}, keys {k.dtype}, values {v.dtype}")
    need(q.shape == out.shape and k.shape == v.shape, "shapes differ")
    sizes = len(starts) - 1, len(lengths), len(table)
    need(len(set(sizes)) == 1, f"queries, lengths and the table are of {sizes} requests")
    need(starts[0] == 0 and bool((starts.diff() >= 0).all()), f"queries do not go up from 0: {starts.tolist()}")
    need(starts[-1] <= len(q), f"queries end at {starts[-1]} of {len(q)}")


def pages_of(row: Tensor, length: int, num_pages: int, page: int, seen: int) -> list[int]:
    """The pages that hold so many keys; row: of the block table. Of those before the last `seen` keys, which a kernel
    does not read, any that are there."""
    need(0 <= length <= len(row) * page, f"{length} keys, and the table has room for {len(row)} pages of {page}")
    pages, first = row[: -(-length // page)].tolist(), (length - seen) // page
    need(all(0 <= index < num_pages for index in pages[first:]), f"pages {pages} of {num_pages}")
    return [0] * first + pages[first:]


def softmax_attention(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, causal: bool, before: int, softcap: float,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """[tokens, heads, size]; the last query sees all keys, or as many as the window has before it, and its own. Without
    keys it is zero, as the kernel leaves it."""
    if not len(keys):
        return torch.zeros_like(query)
    need(causal and len(query) <= len(keys), f"{len(query)} queries of {len(keys)} keys, causal: {causal}")
    sees = torch.ones(len(query), len(keys), dtype=torch.bool).tril(len(keys) - len(query))
    if before >= 0:
        sees = sees.triu(len(keys) - len(query) - before)
    first = int(sees[0].int().argmax())  # what no query sees is not read
    query, keys, values = (x.transpose(0, 1) for x in (query, keys[first:], values[first:]))
    keys, values = (x.repeat_interleave(len(query) // len(x), 0) for x in (keys, values))
    logits = query @ keys.mT * scale
    logits = softcap * (logits / softcap).tanh() if softcap else logits
    logits = logits.masked_fill(~sees[:, first:], -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.to(logits)[:, None, None].expand(-1, len(sees), 1)], -1)
    weights = logits.softmax(-1)[..., : keys.shape[1]]
    return (weights @ values).transpose(0, 1)


def flash_attn_varlen_func(fa_version, window_size, alibi_slopes, softcap, s_aux, mask_mod, aux_tensors, **call):
    sides = tuple(window_size)
    plain = fa_version == 3 and call.pop("dynamic_causal", None) is None and (sides == (-1, -1) or sides[1] == 0)
    need(plain and alibi_slopes is mask_mod is aux_tensors is None, "neither full attention nor a sliding window")
    attend(**call, window_size=list(sides), softcap=float(softcap or 0), s_aux=s_aux)
    return call["out"]


@custom_op("fa3::store", mutates_args=("key_cache", "value_cache"))
def reshape_and_cache_flash(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, kind: str, k_scale: Tensor,
    v_scale: Tensor,
) -> None:  # fmt: skip
    """Put [tokens, KV heads, size] into [pages, page, KV heads, size] at the slots that are not negative."""
    kept, (pages, page) = slots >= 0, key_cache.shape[:2]
    at = slots[kept]
    need(len(slots) <= len(key) and bool((at < pages * page).all()), f"slots {at.tolist()} of {pages * page}")
    need(len(at.unique()) == len(at), f"a slot is written twice: {at.tolist()}")
    for new, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        new = new[: len(slots)][kept]
        if cache.dtype.itemsize == 1:
            new, cache = (new.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn), cache.view(torch.float8_e4m3fn)
        cache[at // page, at % page] = new


@contextmanager
def flash_attention():
    """Engines that start within attend by FLASH_ATTN as on Hopper; they must be gone when it ends."""
    names = dict(
        get_flash_attn_version=lambda *_, **__: 3, flash_attn_supports_kv_cache_dtype=lambda *_, **__: True,
        get_scheduler_metadata=get_scheduler_metadata, flash_attn_varlen_func=flash_attn_varlen_func,
        reshape_and_cache_flash=reshape_and_cache_flash, flash_attn_supports_sinks=lambda: True,
    )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(selector._cached_get_attn_backend.cache_clear)
        for name, function in names.items():
            stack.enter_context(patch.object(flash_attn, name, function, create=True))
        path = f"{flash_attn.__name__}.FlashAttentionBackend"
        builder, always = flash_attn.FlashAttentionMetadataBuilder, AttentionCGSupport.ALWAYS
        stack.enter_context(patch.object(builder, "_cudagraph_support", always))
        stack.enter_context(patch.object(type(current_platform), "get_attn_backend_cls", lambda *_, **__: path))
        selector._cached_get_attn_backend.cache_clear()
        yield
