"""How vLLM's runner copies from host to device without waiting: through pinned memory."""

from vllm.utils.torch_utils import async_tensor_h2d

__all__ = ["async_tensor_h2d"]
