"""From logits to tokens, and what requests ask to be done to logits: `vllm.v1.worker.gpu.sample`."""

import numpy as np
import torch

from triton_cpu.native.compiled import as_float, compiled, raw
from triton_cpu.native.launch import native
from triton_cpu.native.noise import DRAFTING, noised_argmax, steps_have_seeds


@native("gpu.sample.gumbel._temperature_kernel", unused="logits_stride BLOCK_SIZE")
def apply_temperature(logits_ptr, expanded_idx_mapping_ptr, temperature_ptr, vocab_size):
    temperatures = temperature_ptr[expanded_idx_mapping_ptr]
    logits_ptr[:, :vocab_size] /= temperatures.masked_fill(temperatures == 0, 1.0)[:, None]


@compiled(
    *(
        f"boolean({kind}[:, :], int64[:], float32[:], {kind}[:, :, :], {kind}[:, :], int64[:], int64, int64[:, :],"
        " float32[:, :])"
        for kind in ("float32", "int16")
    )
)
def _greedy(logits, requests, temperatures, kept, source, columns, block, argmax, most):
    """Keep logits that a draft was sampled from, and take the best token of each block where the temperature is 0.
    int16 is bfloat16. Returns whether there are other rows."""
    others, vocabulary = False, logits.shape[1]
    for row in range(len(logits)):
        request = requests[row]
        if len(kept) and request >= 0:
            kept[request, columns[row], :vocabulary] = source[row]
        if request >= 0 and temperatures[request] != 0:
            others = True
            continue
        for part in range(most.shape[1]):
            best, at = np.float32(-np.inf), part * block
            for token in range(part * block, min((part + 1) * block, vocabulary)):
                value = as_float(logits[row, token])
                if value > best:
                    best, at = value, token
            argmax[row, part], most[row, part] = at, best
    return others


@native(
    "gpu.sample.gumbel._gumbel_sample_kernel",
    unused="local_argmax_stride local_max_stride logits_cache_stride_0 logits_cache_stride_1 logits_stride "
    "logits_cache_source_stride PER_TOKEN_COL",
)
def gumbel_sample(
    local_argmax_ptr, local_max_ptr, logits_cache_ptr, logits_cache_col_ptr, logits_cache_source_ptr, logits_ptr,
    expanded_idx_mapping_ptr, seeds_ptr, pos_ptr, temp_ptr, vocab_size, BLOCK_SIZE, IS_DRAFTING, APPLY_TEMPERATURE,
    USE_FP64,
):  # fmt: skip
    logits, requests, kept, source = logits_ptr, expanded_idx_mapping_ptr, logits_cache_ptr, logits_cache_source_ptr
    if USE_FP64 or logits.dtype not in (torch.float32, torch.bfloat16):
        return NotImplemented
    columns = torch.zeros(len(requests), dtype=torch.int64)
    if kept is not None:
        if kept.dtype != logits.dtype:
            return NotImplemented
        columns += logits_cache_col_ptr
    else:
        kept, source = logits.new_empty(0, 0, 0), logits
    argmax, most = local_argmax_ptr.numpy(), local_max_ptr.numpy()
    others = _greedy(
        raw(logits[:, :vocab_size]), requests.numpy(), temp_ptr.numpy(), raw(kept), raw(source[:, :vocab_size]),
        columns.numpy(), BLOCK_SIZE, argmax, most,
    )  # fmt: skip
    if not others:
        return
    owned = requests >= 0
    temperatures, seeds = (torch.where(owned, of[requests], 0) for of in (temp_ptr, seeds_ptr))
    if logits_cache_ptr is not None and steps_have_seeds():
        seeds = seeds ^ columns << 32
    values = logits[:, :vocab_size].float()
    if APPLY_TEMPERATURE:
        values = values / torch.where(temperatures == 0, 1.0, temperatures)[:, None]
    positions = pos_ptr + DRAFTING if IS_DRAFTING else pos_ptr
    noised_argmax(
        values.contiguous().numpy(), seeds.numpy(), positions.numpy(), temperatures.numpy(), BLOCK_SIZE, argmax, most
    )


@native("gpu.sample.min_p._min_p_kernel", unused="logits_stride BLOCK_SIZE")
def apply_min_p(logits_ptr, expanded_idx_mapping_ptr, min_p_ptr, vocab_size):
    logits = logits_ptr[:, :vocab_size]
    least = logits.amax(1, keepdim=True).float() + min_p_ptr[expanded_idx_mapping_ptr, None].log()
    logits.masked_fill_(logits < least, -torch.inf)  # log(0) is -inf, which masks nothing


@compiled(
    "void(float32[:, :], int64[:], int32[:], int32[:], float32[:], float32[:], float32[:], int32[:, :], int32[:, :],"
    " int64)"
)
def _penalise(logits, requests, ids, places, repetition, frequency, presence, in_prompt, in_output, vocabulary):
    counts = np.empty(vocabulary, np.int32)
    for row in range(len(requests)):
        request = requests[row]
        repeated, often, there = repetition[request], frequency[request], presence[request]
        if repeated == 1 and often == 0 and there == 0:
            continue
        counts[:] = in_output[request, :vocabulary]
        for back in range(places[row]):
            token = ids[row - places[row] + back + 1]
            if 0 <= token < vocabulary:
                counts[token] += 1
        for token in range(vocabulary):
            value, count = logits[row, token], np.float32(counts[token])
            if repeated != 1 and (count > 0 or in_prompt[request, token >> 5] >> (token & 31) & 1):
                value *= np.float32(1) / repeated if value > 0 else repeated
            value -= often * count
            logits[row, token] = value - there * np.float32(count > 0)


@native(
    "gpu.sample.penalties._penalties_kernel",
    unused="logits_stride prompt_bin_mask_stride output_bin_counts_stride BLOCK_SIZE",
)
def apply_penalties(
    logits_ptr, expanded_idx_mapping_ptr, token_ids_ptr, expanded_local_pos_ptr, repetition_penalty_ptr,
    frequency_penalty_ptr, presence_penalty_ptr, prompt_bin_mask_ptr, output_bin_counts_ptr, vocab_size,
):  # fmt: skip
    if logits_ptr.dtype != torch.float32:
        return NotImplemented
    _penalise(
        logits_ptr.numpy(), expanded_idx_mapping_ptr.numpy(), token_ids_ptr.numpy(), expanded_local_pos_ptr.numpy(),
        repetition_penalty_ptr.numpy(), frequency_penalty_ptr.numpy(), presence_penalty_ptr.numpy(),
        prompt_bin_mask_ptr.numpy(), output_bin_counts_ptr.numpy(), vocab_size,
    )  # fmt: skip


@compiled("void(int64[:], int32[:, :], int32[:], int32[:], int32[:, :], int32[:, :])")
def _count(requests, tokens, prompt, prefill, in_prompt, in_output):
    for request in requests:
        for i in range(prefill[request]):
            token = tokens[request, i]
            if i < prompt[request]:
                in_prompt[request, token >> 5] |= np.int32(1) << np.int32(token & 31)
            else:
                in_output[request, token] += 1


@native(
    "gpu.sample.penalties._bincount_kernel",
    unused="all_token_ids_stride prompt_bin_mask_stride output_bin_counts_stride BLOCK_SIZE",
)
def bincount(
    expanded_idx_mapping_ptr, all_token_ids_ptr, prompt_len_ptr, prefill_len_ptr, prompt_bin_mask_ptr,
    output_bin_counts_ptr,
):  # fmt: skip
    _count(
        expanded_idx_mapping_ptr.numpy(), all_token_ids_ptr.numpy(), prompt_len_ptr.numpy(), prefill_len_ptr.numpy(),
        prompt_bin_mask_ptr.numpy(), output_bin_counts_ptr.numpy(),
    )  # fmt: skip


# ------------------------------------------------------------ log probabilities

ROWS = 64  # of logits at once in float32


@native(
    "gpu.sample.logprob._topk_log_softmax_kernel", unused="logits_stride topk_ids_stride BLOCK_SIZE TOPK_BLOCK_SIZE"
)
def compute_token_logprobs(output_ptr, logits_ptr, topk_ids_ptr, topk, vocab_size):
    for some, ids, out in zip(*(of.split(ROWS) for of in (logits_ptr, topk_ids_ptr, output_ptr))):
        logits = some[:, :vocab_size].float()
        top = logits.amax(1, keepdim=True)
        total = (logits - top).exp_().sum(1, keepdim=True)
        out[:, :topk] = logits.gather(1, ids[:, :topk]) - top - total.log()


@native("gpu.sample.logprob._ranks_kernel", unused="logits_stride BLOCK_SIZE")
def compute_ranks(output_ptr, logits_ptr, token_ids_ptr, vocab_size):
    logits = logits_ptr[:, :vocab_size]
    output_ptr[:] = (logits >= logits_ptr.gather(1, token_ids_ptr[:, None])).sum(1)


@native(
    "gpu.sample.logprob._fill_logprob_token_ids_kernel",
    unused="out_token_ids_stride out_valid_mask_stride topk_indices_stride per_req_token_ids_stride PADDED_COLS",
)
def fill_logprob_token_ids(
    out_token_ids_ptr, out_valid_mask_ptr, sampled_token_ids_ptr, topk_indices_ptr, expanded_idx_mapping_ptr,
    num_per_req_token_ids_ptr, per_req_token_ids_ptr, NUM_TOPK,
):  # fmt: skip
    out_token_ids_ptr[:, 0], out_valid_mask_ptr[:, 0] = sampled_token_ids_ptr, True
    for row, request in enumerate(expanded_idx_mapping_ptr.tolist()):
        own = int(num_per_req_token_ids_ptr[request])
        ids = per_req_token_ids_ptr[request, :own] if own else topk_indices_ptr[row, :NUM_TOPK] if NUM_TOPK else ()
        if len(ids):
            out_token_ids_ptr[row, 1 : len(ids) + 1], out_valid_mask_ptr[row, 1 : len(ids) + 1] = ids.long(), True


@compiled("void(int64[:], int32[:], int64[:], int32[:], int32[:, :])")
def _next_tokens(to, starts, requests, computed, tokens):
    for row in range(len(requests)):
        first = computed[requests[row]] + 1
        for i in range(starts[row + 1] - starts[row]):
            to[starts[row] + i] = tokens[requests[row], first + i]


@native("gpu.sample.prompt_logprob._prompt_logprobs_token_ids_kernel", unused="all_token_ids_stride BLOCK_SIZE")
def get_prompt_logprobs_token_ids(
    prompt_logprobs_token_ids_ptr, query_start_loc_ptr, idx_mapping_ptr, num_computed_tokens_ptr, all_token_ids_ptr
):
    _next_tokens(
        prompt_logprobs_token_ids_ptr.numpy(), query_start_loc_ptr.numpy(), idx_mapping_ptr.numpy(),
        num_computed_tokens_ptr.numpy(), all_token_ids_ptr.numpy(),
    )  # fmt: skip
