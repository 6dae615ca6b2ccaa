"""Top-k, top-p and min-p of the requests, for the tokens that are drafted for them.

vLLM verifies against the target's distribution with these applied, and drafts without them: each draft that they leave
out is lost. Here drafts are drawn from the draft pass's distribution with the same left out; what is kept of its logits
for verification is that distribution, so the output's stays the target's (rejection sampling).
"""

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.worker.gpu.sample.gumbel import apply_temperature
from vllm.v1.worker.gpu.sample.min_p import apply_min_p
from vllm.v1.worker.gpu.sample.states import SamplingStates

from vllm_std.patches.wrapping import Patch

TRUNCATION = Patch(
    name="truncation",
    replaces=(
        "GPUModelRunner.load_model (hands the sampler's states on); DraftModelSpeculator.compute_draft_logits; "
        "vLLM's kernels for temperature, min-p, top-k and top-p (called)"
    ),
    why="vLLM draws drafts by temperature alone, and loses those that a request's top-k, top-p or min-p leave out",
    upstream="none",
    remove_when="vLLM's speculators draft with them",
)


class Truncation:
    """What requests leave out, by their rows in vLLM's request state, always at the same addresses.

    needed: whether a request of this round leaves anything out; where graphs are captured they find out themselves.
    """

    def __init__(self, states: SamplingStates, device: torch.device):
        self.states, self.needed = states, False
        self.top_k = torch.full_like(states.top_k.cpu, states.vocab_size, device=device)
        self.top_p = torch.ones_like(states.top_p.cpu, device=device)
        self.min_p = torch.zeros_like(states.min_p.cpu, device=device)

    def begin(self, slots: np.ndarray) -> None:
        """Take over what the requests of a round asked for; slots: [reqs] their rows, on the host."""
        states = self.states
        self.top_k.copy_(states.top_k.gpu)
        self.top_p.copy_(states.top_p.gpu)
        self.min_p.copy_(states.min_p.gpu)
        truncated = (states.top_k.np < states.vocab_size) | (states.top_p.np < 1) | (states.min_p.np > 0)
        self.needed = bool((truncated & (states.temperature.np > 0))[slots].any())

    def apply(self, logits: Tensor, rows: Tensor, temperature: Tensor) -> Tensor:
        """[reqs, vocabulary] logits with -inf for what is left out; rows: [reqs] int32, -1 for no request."""
        rows = rows.clamp(min=0)
        scaled = logits.to(torch.float32, copy=True)
        apply_temperature(scaled, rows, temperature)
        apply_min_p(scaled, rows, self.min_p)
        scaled = apply_top_k_top_p(scaled, self.top_k[rows], self.top_p[rows])
        return logits.masked_fill(scaled == -torch.inf, -torch.inf)


def load_model(original, self, *args, **kwargs):
    """GPUModelRunner.load_model: the runner's sampler, made here, knows what requests leave out."""
    loaded = original(self, *args, **kwargs)
    std = getattr(self.speculator, "std", None)
    if std is not None and self.sampler is not None and self.speculator.draft_logits is not None:
        std.truncation = Truncation(self.sampler.sampling_states, self.device)
    return loaded
