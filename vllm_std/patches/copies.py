"""How vLLM's runner copies from host to device without waiting: through pinned memory."""

from vllm.utils.torch_utils import async_tensor_h2d

from vllm_std.patches.wrapping import Patch

__all__ = ["async_tensor_h2d"]

COPIES = Patch(
    name="copies",
    replaces="vllm.utils.torch_utils.async_tensor_h2d (called)",
    why="what the host decides in a round must reach the device without a wait, as the runner's own inputs do",
    upstream="none",
    remove_when="vLLM makes its copy a public utility",
)
