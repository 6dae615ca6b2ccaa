"""Tensors of draft steps beside vLLM's own, always at the same addresses, as CUDA graphs need them."""

import torch
from torch import Tensor

from vllm_std.config import StdConfig


class DraftBuffers:
    """What draft steps read and write besides vLLM's input buffers.

    query_len: tokens of each request in a draft step.
    no_drafts: [max_num_reqs, gamma] int64, all -1.
    rope_offset: [max_num_reqs] int64, what M-RoPE adds to the positions of text behind a request's videos.
    mrope_positions: [rope dimensions, max_num_tokens + 1] int64, None without M-RoPE.
    true_lens: [max_num_reqs] int32, tokens that windowed layers count as context; has_windows: whether there are such.
    """

    def __init__(self, max_num_reqs: int, options: StdConfig, rope_shape: tuple[int, int] | None, device: torch.device):
        self.query_len = 1 + options.proposals
        drafts = (max_num_reqs, options.num_speculative_tokens)
        self.no_drafts = torch.full(drafts, -1, dtype=torch.int64, device=device)
        self.rope_offset = torch.zeros(max_num_reqs, dtype=torch.int64, device=device)
        self.true_lens = torch.zeros(max_num_reqs, dtype=torch.int32, device=device)
        self.has_windows = False
        self.mrope_positions: Tensor | None = None
        if rope_shape is not None:
            self.mrope_positions = torch.zeros(rope_shape, dtype=torch.int64, device=device)

    def begin(self, rope_state, rows: Tensor) -> None:
        """Prepare a round; rope_state: vLLM's, None without M-RoPE; rows: [reqs] int64 of vLLM's request state."""
        if self.has_windows:
            self.true_lens.zero_()  # for rows that no request has
        if rope_state is not None:
            # The runner keeps the offset of text behind videos in alternating buffers, so a graph cannot read them.
            self.rope_offset[: len(rows)] = rope_state.prefill_delta.gpu[rows]

    def rope_positions(self, positions: Tensor) -> Tensor:
        """[tokens], or [rope dimensions, tokens] with M-RoPE; positions: [tokens] int64, as many of each request."""
        if self.mrope_positions is None:
            return positions
        by_request = positions.view(-1, self.query_len)
        moved = by_request + self.rope_offset[: len(by_request), None]
        self.mrope_positions[:, : len(positions)] = moved.view(-1)
        return self.mrope_positions[:, : len(positions)]

    def update_true_lens(self, idx_mapping: Tensor, positions: Tensor, seq_lens: Tensor) -> None:
        """Context up to the drafted token; `seq_lens`, next to nothing, where a row does not draft.

        All [reqs]: idx_mapping: int32, -1 for a row that does not draft; positions: int64; seq_lens: int32.
        """
        if self.has_windows:
            lens = torch.where(idx_mapping >= 0, positions + 1, seq_lens)
            self.true_lens[: len(lens)].copy_(lens)
