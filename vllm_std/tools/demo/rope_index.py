"""Positions for transformers that are those of vLLM: the bundled model was taught these."""

import itertools

import numpy as np
import torch


def original_rope_index(input_ids, mm_token_type_ids, video_grid_thw, **_) -> tuple[torch.Tensor, torch.Tensor]:
    """M-RoPE positions as in vLLM and Qwen2-VL's own code: text goes on at a video's largest position + 1.

    transformers 5 goes on at max(height, width). Returns [3, 1, tokens] and the offset of text that follows.
    """
    parts, start, grids = [], 0, iter(video_grid_thw.tolist())
    for is_video, run in itertools.groupby(mm_token_type_ids[0].tolist()):
        part = torch.arange(len(list(run))).expand(3, -1)
        if is_video:
            frames, height, width = next(grids)
            part = torch.from_numpy(np.indices((frames, height // 2, width // 2)).reshape(3, -1))
        parts.append(part + start)
        start = int(parts[-1].max()) + 1
    positions = torch.cat(parts, dim=1)[:, None]
    return positions, torch.tensor([[start - positions.shape[-1]]])
