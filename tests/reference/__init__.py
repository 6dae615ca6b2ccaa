"""Sparse-to-dense decoding (arXiv 2505.19155) on transformers alone, one greedy request: the definition in plain words.

    model = AutoModelForCausalLM.from_pretrained(NAME, dtype=torch.float32)
    decoded = Reference(model, Options(top_k=1024, block_size=16)).decode({"input_ids": ids}, max_tokens=64)

Tests hold the vLLM path against it: blocks, drafts and accepted lengths are the same in float32. So it shares no code
with `vllm_std`, and prefers lists to speed.
"""

from reference.attention import paged_attention
from reference.decoding import Reference
from reference.options import Decoded, Options, Round
from reference.policies import POLICIES

__all__ = ["POLICIES", "Decoded", "Options", "Reference", "Round", "paged_attention"]
