"""Inputs of a draft step: `vllm.v1.worker.gpu.spec_decode.target_dependent_ar`."""

from triton_cpu.native.compiled import compiled
from triton_cpu.native.launch import native

SPECULATOR = "gpu.spec_decode.target_dependent_ar.speculator"


@compiled("void(int64[:], int32[:], int32[:], int32[:], int64[:], int64[:], int32[:], int32[:], int64, int64, boolean)")
def _first(drafts, target_lengths, rejected, ids, positions, sources, starts, lengths, limit, most, advance):
    reqs = len(drafts)
    for row in range(most + 1):
        starts[row] = min(row, reqs)
    lengths[reqs:most] = 0
    for row in range(reqs):
        ids[row] = drafts[row]
        sources[row] += 1
        length = target_lengths[row] - rejected[row]
        if advance:
            positions[row] = min(positions[row] + 1, limit - 1)
            length = min(length + 1, limit)
        lengths[row] = length


@native(f"{SPECULATOR}._prepare_decode_inputs_kernel", unused="draft_tokens_stride BLOCK_SIZE")
def prepare_decode_inputs(
    draft_tokens_ptr, target_seq_lens_ptr, num_rejected_ptr, input_ids_ptr, positions_ptr, sample_src_positions_ptr,
    query_start_loc_ptr, seq_lens_ptr, max_model_len, max_num_reqs, ADVANCE_DRAFT_POSITIONS,
):  # fmt: skip
    _first(
        draft_tokens_ptr.numpy(), target_seq_lens_ptr.numpy(), num_rejected_ptr.numpy(), input_ids_ptr.numpy(),
        positions_ptr.numpy(), sample_src_positions_ptr.numpy(), query_start_loc_ptr.numpy(), seq_lens_ptr.numpy(),
        max_model_len, max_num_reqs, ADVANCE_DRAFT_POSITIONS,
    )  # fmt: skip


@compiled("void(int64[:, :], int32[:], int64[:], int64[:], int32[:], int64[:], int64, int64, boolean, boolean)")
def _next(to, ids, positions, sources, lengths, drafts, step, limit, goes_on, advance):
    for row in range(len(drafts)):
        to[row, step] = drafts[row]
        if goes_on:
            sources[row] += 1
            ids[row] = drafts[row]
        if goes_on and advance:
            positions[row] = min(positions[row] + 1, limit - 1)
            lengths[row] = min(lengths[row] + 1, limit)


@native(
    f"{SPECULATOR}._update_draft_inputs_kernel",
    unused="output_draft_tokens_stride next_input_hidden_states_stride hidden_states_stride BLOCK_SIZE",
)
def update_draft_inputs(
    grid, output_draft_tokens_ptr, next_input_hidden_states_ptr, input_ids_ptr, positions_ptr,
    sample_src_positions_ptr, seq_lens_ptr, draft_tokens_ptr, current_draft_step_ptr, hidden_states_ptr, hidden_size,
    max_model_len, num_speculative_steps, ADVANCE_DRAFT_POSITIONS,
):  # fmt: skip
    reqs, step = grid[0], int(current_draft_step_ptr)
    goes_on = step < num_speculative_steps - 1
    _next(
        output_draft_tokens_ptr.numpy(), input_ids_ptr.numpy(), positions_ptr.numpy(),
        sample_src_positions_ptr.numpy(), seq_lens_ptr.numpy(), draft_tokens_ptr.numpy()[:reqs], step, max_model_len,
        goes_on, ADVANCE_DRAFT_POSITIONS,
    )  # fmt: skip
    if goes_on:
        next_input_hidden_states_ptr[:reqs, :hidden_size] = hidden_states_ptr[:reqs, :hidden_size]
