"""Inputs of a pass, and what is kept of its outcome: `vllm.v1.worker.gpu.input_batch` and `mm.rope`."""

import numpy as np

from triton_cpu.native.compiled import compiled
from triton_cpu.native.launch import native


@compiled("void(int32[:], int32[:, :], int64[:], int32[:], int32[:, :], int32[:], int32[:])")
def _prefill(ids, ahead, requests, starts, tokens, prefill, computed):
    for row in range(len(requests)):
        request, begin = requests[row], starts[row]
        done, length = computed[request], starts[row + 1] - starts[row]
        if done >= prefill[request]:
            continue
        for i in range(length):
            ids[begin + i] = tokens[request, done + i]
        for i in range(len(ahead)):
            at = done + length + i
            ahead[i, request] = tokens[request, at] if at < prefill[request] else 0


@native(
    "gpu.input_batch._prepare_prefill_inputs_kernel",
    unused="next_prefill_tokens_stride num_lookahead all_token_ids_stride BLOCK_SIZE LOOKAHEAD_BLOCK",
)
def prepare_prefill_inputs(
    input_ids_ptr, next_prefill_tokens_ptr, idx_mapping_ptr, query_start_loc_ptr, all_token_ids_ptr, prefill_lens_ptr,
    num_computed_tokens_ptr,
):  # fmt: skip
    _prefill(
        input_ids_ptr.numpy(), next_prefill_tokens_ptr.numpy(), idx_mapping_ptr.numpy(), query_start_loc_ptr.numpy(),
        all_token_ids_ptr.numpy(), prefill_lens_ptr.numpy(), num_computed_tokens_ptr.numpy(),
    )  # fmt: skip


@compiled("void(int64[:], int32[:], int64[:], int32[:], int32[:], int64)")
def _positions(positions, lengths, requests, starts, computed, num_reqs):
    for row in range(num_reqs):
        done, begin = computed[requests[row]], starts[row]
        lengths[row] = done + starts[row + 1] - begin
        for i in range(starts[row + 1] - begin):
            positions[begin + i] = done + i
    lengths[num_reqs:] = 0


@native("gpu.input_batch._prepare_pos_seq_lens_kernel", unused="BLOCK_SIZE")
def prepare_pos_seq_lens(
    grid, pos_ptr, seq_lens_ptr, idx_mapping_ptr, query_start_loc_ptr, num_computed_tokens_ptr, max_num_reqs
):
    _positions(
        pos_ptr.numpy(), seq_lens_ptr.numpy()[:max_num_reqs], idx_mapping_ptr.numpy(), query_start_loc_ptr.numpy(),
        num_computed_tokens_ptr.numpy(), grid[0] - 1,
    )  # fmt: skip


@compiled("void(int32[:], int64[:], int64[:], int32[:], int32[:], int32[:], int64[:, :], int32[:], int64[:], int64)")
def _combine(ids, requests, last, starts, lengths, prefill, drafts, firsts, indices, sampled):
    for row in range(len(requests)):
        request, first, end = requests[row], firsts[row], starts[row + 1]
        logits = firsts[row + 1] - first
        for i in range(logits):
            indices[first + i] = end - logits + i
        if lengths[row] <= prefill[request]:
            continue
        if sampled > 0 and lengths[row] - logits >= prefill[request]:
            ids[end - logits] = last[request]
        drafted = logits - sampled
        for i in range(drafted):
            ids[end - drafted + i] = drafts[request, i]


@native("gpu.input_batch._combine_sampled_and_draft_tokens_kernel", unused="draft_tokens_stride BLOCK_SIZE")
def combine_sampled_and_draft_tokens(
    input_ids_ptr, idx_mapping_ptr, last_sampled_tokens_ptr, query_start_loc_ptr, seq_lens_ptr, prefill_len_ptr,
    draft_tokens_ptr, cu_num_logits_ptr, logits_indices_ptr, NUM_NEW_SAMPLED_TOKENS=1,
):  # fmt: skip
    _combine(
        input_ids_ptr.numpy(), idx_mapping_ptr.numpy(), last_sampled_tokens_ptr.view(-1).numpy(),
        query_start_loc_ptr.numpy(), seq_lens_ptr.numpy(), prefill_len_ptr.numpy(), draft_tokens_ptr.numpy(),
        cu_num_logits_ptr.numpy(), logits_indices_ptr.numpy(), NUM_NEW_SAMPLED_TOKENS,
    )  # fmt: skip


@compiled("void(int32[:], int32[:], int32[:], int32[:], int64[:], int32[:])")
def _counts(sampled, rejected, lengths, firsts, requests, prefill):
    for row in range(len(requests)):
        if lengths[row] < prefill[requests[row]]:
            sampled[row] = rejected[row] = 0
        else:
            rejected[row] = firsts[row + 1] - firsts[row] - sampled[row]


@native("gpu.input_batch._get_num_sampled_and_rejected_kernel")
def get_num_sampled_and_rejected(
    num_sampled_ptr, num_rejected_ptr, seq_lens_ptr, cu_num_logits_ptr, idx_mapping_ptr, prefill_len_ptr
):
    _counts(
        num_sampled_ptr.numpy(), num_rejected_ptr.numpy(), seq_lens_ptr.numpy(), cu_num_logits_ptr.numpy(),
        idx_mapping_ptr.numpy(), prefill_len_ptr.numpy(),
    )  # fmt: skip


@compiled(
    "void(int64[:], int32[:], int64[:], int32[:, :], int64[:, :], int32[:], int32[:], int32[:], int32[:, :], int32[:])"
)
def _keep(requests, computed, last, counts, tokens, sampled, rejected, starts, known, total):
    for row in range(len(requests)):
        request, many = requests[row], sampled[row]
        if request < 0:
            continue
        length = total[request]
        if many > 0:
            last[request] = tokens[row, many - 1]
            total[request] = length + many
        for i in range(many):
            known[request, length + i] = tokens[row, i]
            if len(counts):
                counts[request, tokens[row, i]] += 1
        passed = starts[row + 1] - starts[row] if len(starts) else 0
        computed[request] += passed - rejected[row]


NO_ROWS, NO_STARTS = np.zeros((0, 0), np.int32), np.zeros(0, np.int32)


@native(
    "gpu.input_batch._post_update_kernel",
    unused="output_bin_counts_stride sampled_tokens_stride all_token_ids_stride num_draft_tokens",
)
def post_update(
    idx_mapping_ptr, num_computed_tokens_ptr, last_sampled_tokens_ptr, output_bin_counts_ptr, sampled_tokens_ptr,
    num_sampled_ptr, num_rejected_ptr, query_start_loc_ptr, all_token_ids_ptr, total_len_ptr, draft_tokens_ptr=None,
    draft_tokens_out_ptr=None,
):  # fmt: skip
    requests = idx_mapping_ptr
    if draft_tokens_ptr is not None:
        rows = (requests >= 0).nonzero()[:, 0]
        draft_tokens_out_ptr[requests[rows]] = draft_tokens_ptr[rows].to(draft_tokens_out_ptr.dtype)
    _keep(
        requests.numpy(), num_computed_tokens_ptr.numpy(), last_sampled_tokens_ptr.view(-1).numpy(),
        NO_ROWS if output_bin_counts_ptr is None else output_bin_counts_ptr.numpy(), sampled_tokens_ptr.numpy(),
        num_sampled_ptr.numpy(), num_rejected_ptr.numpy(),
        NO_STARTS if query_start_loc_ptr is None else query_start_loc_ptr.numpy(), all_token_ids_ptr.numpy(),
        total_len_ptr.numpy(),
    )  # fmt: skip


@native("gpu.input_batch._post_update_num_computed_tokens_kernel")
def post_update_num_computed_tokens(idx_mapping_ptr, num_computed_tokens_ptr, query_start_loc_ptr):
    lengths = query_start_loc_ptr[1:] - query_start_loc_ptr[:-1]
    num_computed_tokens_ptr[idx_mapping_ptr] += lengths[: len(idx_mapping_ptr)]


@compiled("void(int64[:], int64[:], int32[:], int32[:])")
def _expand(requests, expanded, places, firsts):
    for row in range(len(requests)):
        for i in range(firsts[row], firsts[row + 1]):
            expanded[i], places[i] = requests[row], i - firsts[row]


@native("gpu.input_batch._expand_idx_mapping_kernel", unused="BLOCK_SIZE")
def expand_idx_mapping(idx_mapping_ptr, expanded_idx_mapping_ptr, expanded_local_pos_ptr, cu_num_logits_ptr):
    _expand(
        idx_mapping_ptr.numpy(), expanded_idx_mapping_ptr.numpy(), expanded_local_pos_ptr.numpy(),
        cu_num_logits_ptr.numpy(),
    )  # fmt: skip


@compiled("void(int64[:, :], int32[:, :], int32[:], int64[:], int32[:], int32[:], int32[:], int64)")
def _rope(positions, known, deltas, requests, starts, prefill, computed, dims):
    for row in range(len(requests)):
        request, begin = requests[row], starts[row]
        done = computed[request]
        for dim in range(dims):
            for i in range(starts[row + 1] - begin):
                if done < prefill[request]:
                    positions[dim, begin + i] = known[request * dims + dim, done + i]
                else:
                    positions[dim, begin + i] = done + i + deltas[request]


@native("gpu.mm.rope._prepare_rope_positions_kernel", unused="positions_stride BLOCK_SIZE")
def prepare_rope_positions(
    positions_ptr, prefill_positions_ptr, prefill_positions_stride0, prefill_positions_stride1, prefill_delta_ptr,
    idx_mapping_ptr, query_start_loc_ptr, prefill_lens_ptr, num_computed_tokens_ptr, NUM_DIMS,
):  # fmt: skip
    row = prefill_positions_ptr.stride(0)  # known positions are the rows of one matrix, as many for each request
    if (prefill_positions_stride0, prefill_positions_stride1) != (NUM_DIMS * row, row):
        return NotImplemented
    _rope(
        positions_ptr.numpy(), prefill_positions_ptr.numpy(), prefill_delta_ptr.numpy(), idx_mapping_ptr.numpy(),
        query_start_loc_ptr.numpy(), prefill_lens_ptr.numpy(), num_computed_tokens_ptr.numpy(), NUM_DIMS,
    )  # fmt: skip
