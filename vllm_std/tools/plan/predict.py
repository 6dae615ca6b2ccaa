"""The speed-up over plain decoding, by draft length and K."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_std.control.cost_model import CostModel
from vllm_std.roofline.estimate import estimate, kv_seconds, pass_parts, window_seconds
from vllm_std.tools.plan.workload import Workload, mask_for


@dataclass(frozen=True)
class Prediction:
    """Of one draft length `gamma` and one K, in tokens. speedup: over plain decoding, which is 1.

    step_ms: milliseconds of a step that verifies and drafts `gamma` tokens of each request; its parts are one
    verifying pass (`verify_ms`), one selection (`select_ms`) and `gamma` draft steps (`draft_ms` each).
    """

    gamma: int
    k: int
    speedup: float
    step_ms: float
    draft_ms: float
    select_ms: float
    verify_ms: float


def tokens_per_step(accepted: Sequence[float], gamma: int) -> float:
    """Expected tokens of a request in a step: accepted drafts, and the one that verification adds."""
    if len(accepted) == 1:
        return sum(accepted[0] ** position for position in range(gamma + 1))
    return 1 + sum(accepted[:gamma])


def windows_seconds(workload: Workload) -> float:
    """Of reading the sliding windows of all requests, in any pass."""
    return workload.batch * window_seconds(workload.shape, workload.device, workload.context)


def plain_seconds(workload: Workload) -> float:
    """Of a step without drafts."""
    parts = pass_parts(workload.shape, workload.device, workload.batch)
    attention = workload.kv * kv_seconds(workload.shape, workload.device)
    return sum(parts.values()) + attention + windows_seconds(workload)


def predictions(workload: Workload) -> list[Prediction]:
    """One for each draft length and each K below the context, in this order."""
    found = []
    for k in workload.ks_below_context:
        longest, context = max(workload.gammas), workload.context
        costs = estimate(workload.shape, workload.device, mask_for(k), workload.batch, longest, context)
        found += [_prediction(workload, costs, gamma, k) for gamma in workload.gammas]
    return sorted(found, key=lambda one: (one.gamma, one.k))


def _prediction(workload: Workload, costs: CostModel, gamma: int, k: int) -> Prediction:
    batch, kv = workload.batch, workload.kv
    step = costs.tabulated(gamma, batch, kv)
    return Prediction(
        gamma=gamma,
        k=k,
        speedup=tokens_per_step(workload.accepted, gamma) * plain_seconds(workload) / step,
        step_ms=1e3 * step,
        draft_ms=1e3 * costs.draft[-1],
        select_ms=1e3 * (costs.select[-1] + costs.select_per_kv * kv),
        verify_ms=1e3 * costs.dense_pass(batch * (gamma + 1), kv, batch),
    )


def fastest(found: list[Prediction]) -> Prediction | None:
    """Whether it is faster than plain decoding or not; None where no K is below the context."""
    return max(found, key=lambda one: one.speedup, default=None)
