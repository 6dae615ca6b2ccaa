"""Block tables and slot mappings: `vllm.v1.worker.gpu.block_table` and `buffer_utils`."""

import numpy as np
import torch

from triton_cpu.native.compiled import compiled, words
from triton_cpu.native.launch import native


@compiled("void(uint64[:], int64[:], int32[:], int32[:], int32[:], int32[:], int32[:])")
def _write(addresses, strides, groups, rows, starts, contents, ends):
    begin = 0
    for i in range(len(rows)):
        first = rows[i] * strides[groups[i]] + starts[i]
        to = words(addresses[groups[i]], first + ends[i] - begin)
        for k in range(ends[i] - begin):
            to[first + k] = contents[begin + k]
        begin = ends[i]


@native("gpu.buffer_utils._apply_write_kernel", unused="BLOCK_SIZE")
def apply_write(
    grid, output_ptr, output_stride, write_indices_ptr, write_starts_ptr, write_contents_ptr, write_cu_lens_ptr,
    write_group_ids_ptr, MULTI_GROUP,
):  # fmt: skip
    many = grid[0]
    if write_contents_ptr.element_size() != 4 or not (MULTI_GROUP or output_ptr.dtype == write_contents_ptr.dtype):
        return NotImplemented
    if MULTI_GROUP:
        addresses, strides, groups = output_ptr.numpy(), output_stride.numpy(), write_group_ids_ptr.numpy()[:many]
    else:
        addresses, strides = np.array([output_ptr.data_ptr()], np.uint64), np.array([output_stride])
        groups = np.zeros(many, np.int32)
    rows, starts, ends = (of.numpy()[:many] for of in (write_indices_ptr, write_starts_ptr, write_cu_lens_ptr))
    _write(addresses, strides, groups, rows, starts, write_contents_ptr.view(torch.int32).numpy(), ends)


@compiled(
    "void(int64[:], uint64[:], uint64[:], int64[:], int32[:, :], int64, int64, int32[:], int32[:], int32[:], boolean)"
)
def _gather(requests, sources, to, strides, num_blocks, num_reqs, num_rows, computed, reaches, sizes, masking):
    for group in range(len(sources)):
        stride = strides[group]
        for row in range(num_rows):
            end = (row + 1) * stride
            out = words(to[group], end)[row * stride : end]
            if row >= num_reqs:
                out[:] = 0
                continue
            request = requests[row]
            own = words(sources[group], (request + 1) * stride)[request * stride :]
            null = 0  # blocks that lie before the window, and may belong to others by now
            if masking and reaches[group] > 0:
                null = max(computed[request] - reaches[group], 0) // sizes[group]
            for block in range(num_blocks[group, request]):
                out[block] = own[block] if block >= null else 0


NONE = np.zeros(0, np.int32)


@native("gpu.block_table._gather_block_tables_kernel", unused="num_blocks_stride BLOCK_SIZE")
def gather_block_tables(
    grid, batch_idx_to_req_idx, src_block_table_ptrs, dst_block_table_ptrs, block_table_strides, num_blocks_ptr,
    num_reqs, num_computed_tokens_ptr=None, sliding_window_reach_ptr=None, block_sizes_ptr=None,
    MASK_SLIDING_WINDOW=False,
):  # fmt: skip
    masks = (num_computed_tokens_ptr, sliding_window_reach_ptr, block_sizes_ptr)
    computed, reaches, sizes = (of.numpy() if MASK_SLIDING_WINDOW else NONE for of in masks)
    sources, to = src_block_table_ptrs.numpy()[: grid[0]], dst_block_table_ptrs.numpy()
    _gather(
        batch_idx_to_req_idx.numpy(), sources, to, block_table_strides.numpy(), num_blocks_ptr.numpy(), num_reqs,
        grid[1], computed, reaches, sizes, MASK_SLIDING_WINDOW,
    )  # fmt: skip


@compiled(
    "void(int64, int64[:], int32[:], int64[:], uint64[:], int64[:], int32[:], boolean[:], int64[:, :], int64, int64)"
)
def _slots(max_tokens, requests, starts, positions, tables, strides, sizes, enabled, slots, pad, num_reqs):
    for group in range(len(slots)):
        size = sizes[group]
        for row in range(num_reqs):
            request = requests[row]
            if request < 0 or not enabled[group]:
                slots[group, starts[row] : starts[row + 1]] = pad
                continue
            table = words(tables[group], (request + 1) * strides[group])[request * strides[group] :]
            for token in range(starts[row], starts[row + 1]):
                position = positions[token]
                slots[group, token] = np.int64(table[position // size]) * size + position % size
        slots[group, starts[num_reqs] : max_tokens] = pad


@native(
    "gpu.block_table._compute_slot_mappings_kernel",
    unused="slot_mappings_stride dcp_sharded cp_rank CP_INTERLEAVE TRITON_BLOCK_SIZE",
)
def compute_slot_mappings(
    grid, max_num_tokens, idx_mapping, query_start_loc, pos, block_table_ptrs, block_table_strides, block_sizes,
    slot_mapping_enabled, slot_mappings_ptr, CP_SIZE, PAD_ID,
):  # fmt: skip
    if CP_SIZE != 1:
        return NotImplemented
    _slots(
        max_num_tokens, idx_mapping.numpy(), query_start_loc.numpy(), pos.numpy(), block_table_ptrs.numpy(),
        block_table_strides.numpy(), block_sizes.numpy(), slot_mapping_enabled.numpy(),
        slot_mappings_ptr.numpy()[: grid[0]], PAD_ID, grid[1] - 1,
    )  # fmt: skip


@native("block_table.ComputeSlotMappingKernel.kernel", unused="BLOCK_SIZE TOTAL_CP_RANK CP_KV_CACHE_INTERLEAVE_SIZE")
def compute_slot_mapping_of_runner_v1(
    num_tokens, max_num_tokens, query_start_loc_ptr, positions_ptr, block_table_ptr, block_table_stride,
    slot_mapping_ptr, KV_CACHE_BLOCK_SIZE, TOTAL_CP_WORLD_SIZE, PAD_ID,
):  # fmt: skip
    """vLLM's own C++ for a CPU without Triton."""
    from vllm.utils.cpu_triton_utils import _compute_slot_mapping_kernel_impl

    if TOTAL_CP_WORLD_SIZE != 1:
        return NotImplemented
    _compute_slot_mapping_kernel_impl(
        num_tokens, max_num_tokens, query_start_loc_ptr, positions_ptr, block_table_ptr, block_table_stride,
        slot_mapping_ptr, KV_CACHE_BLOCK_SIZE, PAD_ID=PAD_ID,
    )  # fmt: skip
