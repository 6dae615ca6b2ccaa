"""What `vllm-std plan` predicts for: a model's shape, a device, and requests that decode together."""

from dataclasses import dataclass

from vllm_std.mask import MaskShape, least_tokens
from vllm_std.roofline.devices import Device
from vllm_std.roofline.shape import Shape

BLOCK = 16  # tokens of a KV block: vLLM's default on GPUs
SINK = 16  # tokens: std's default
RECENT = 64  # tokens: std's default
LEAST_K = least_tokens(SINK, RECENT, BLOCK)  # tokens: sink, recent window and one block to choose


@dataclass(frozen=True)
class Workload:
    """`batch` requests that decode with `context` tokens each; gammas, ks: draft lengths and budgets K, in tokens.

    accepted: the chance that a draft is accepted once those before it were; or, if there are several, the shares of
    drafts accepted at each position.
    """

    shape: Shape
    device: Device
    batch: int
    context: int
    gammas: tuple[int, ...]
    ks: tuple[int, ...]
    accepted: tuple[float, ...]

    @property
    def kv(self) -> int:
        """Cached tokens in all."""
        return self.batch * self.context

    @property
    def ks_below_context(self) -> list[int]:
        """With the others a draft step would read the whole context."""
        return [k for k in self.ks if mask_for(k).num_blocks * BLOCK < self.context]


def mask_for(k: int) -> MaskShape:
    """The mask of std's defaults with a budget of `k` tokens, at a context that is longer."""
    return MaskShape.plan(k, SINK, RECENT, BLOCK, k)
