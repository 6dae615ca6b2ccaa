"""What costs users of std speed without their knowing: sentences for `vllm-std check` and the log at start-up."""

import os
from collections.abc import Iterator
from typing import Any

from vllm_std.mask import MaskShape

SMALL_BLOCK = 32  # tokens of a KV block that all attention backends take
FEW_BLOCKS = 8  # blocks to choose; where there are fewer, most of each block is tokens that get little attention
CROWDED = 2.0  # times the requests that fit: from here on max_num_seqs is said to be too large
# Libraries that vLLM's CPU backend is fast with only if they are preloaded, and how to install them.
PRELOADED = {"libiomp": "pip install intel-openmp", "libtcmalloc": "apt install libtcmalloc-minimal4"}


def machine_advice(device_type: str) -> Iterator[str]:
    """device_type: as vLLM's platform names it."""
    if device_type != "cpu":
        return
    for library, how in PRELOADED.items():
        if library not in os.environ.get("LD_PRELOAD", ""):
            yield f"{library} is not in LD_PRELOAD, which slows speculative decoding on a CPU: {how}, and preload it."
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield "TRITON_INTERPRET=1: kernels that have no native code here run in Triton's interpreter, which is slow."


def mask_advice(options: Any, block_size: int) -> Iterator[str]:
    """options: a StdConfig; block_size: tokens in a KV block."""
    mask: MaskShape = options.mask_shape(block_size)
    if mask.top < FEW_BLOCKS and block_size > SMALL_BLOCK:
        yield (
            f"KV blocks of {block_size} tokens leave a mask of top_k={options.top_k} only {mask.top} to choose: give "
            f"--block-size {SMALL_BLOCK}, or a greater top_k."
        )


def batch_advice(max_num_seqs: int, cache_tokens: int, mask: MaskShape, bytes_each: int) -> Iterator[str]:
    """cache_tokens: that the KV cache holds; bytes_each: that std keeps for each of max_num_seqs requests."""
    fits = max(1, cache_tokens // mask.max_length)  # shorter requests gain nothing by a mask
    if max_num_seqs > CROWDED * fits:
        less = (max_num_seqs - fits) * bytes_each
        yield (
            f"--max-num-seqs {max_num_seqs} is far more than the {fits} requests that fit with contexts longer than "
            f"the mask; with {fits} std would take {less / 2**20:.0f} MiB less."
        )
