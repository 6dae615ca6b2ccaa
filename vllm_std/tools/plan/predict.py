"""The speed-up over plain decoding, by draft length and K."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_std.mask import MaskShape, least_tokens
from vllm_std.roofline.estimate import Device, Shape, estimate, kv_seconds, pass_parts, window_seconds

BLOCK, SINK, RECENT = 16, 16, 64  # tokens: vLLM's KV blocks on GPUs, and std's defaults
LEAST_K = least_tokens(SINK, RECENT, BLOCK)


@dataclass(frozen=True)
class Load:
    """`batch` requests that decode with `context` tokens each. gammas, ks: draft lengths and budgets K, in tokens.

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


@dataclass(frozen=True)
class Cell:
    """One draft length and K: milliseconds of a round, of one draft step, of selection and of the verifying pass."""

    gamma: int
    k: int
    speedup: float
    round_ms: float
    draft_ms: float
    select_ms: float
    verify_ms: float


def tokens_a_round(accepted: Sequence[float], gamma: int) -> float:
    """Expected tokens of a request: accepted drafts, and the one that verification adds."""
    if len(accepted) == 1:
        return sum(accepted[0] ** position for position in range(gamma + 1))
    return 1 + sum(accepted[:gamma])


def windows_seconds(load: Load) -> float:
    """Of reading the sliding windows of all requests, in any pass."""
    return load.batch * window_seconds(load.shape, load.device, load.context)


def plain_seconds(load: Load) -> float:
    """Of a step without drafts."""
    parts = pass_parts(load.shape, load.device, load.batch)
    return sum(parts.values()) + load.kv * kv_seconds(load.shape, load.device) + windows_seconds(load)


def mask_of(k: int) -> MaskShape:
    return MaskShape.plan(k, SINK, RECENT, BLOCK, k)


def sparse(load: Load) -> list[int]:
    """The K that are less than the context; with others a draft step would read all of it."""
    return [k for k in load.ks if mask_of(k).num_blocks * BLOCK < load.context]


def cells(load: Load) -> list[Cell]:
    """By draft length, then K."""
    found = []
    for k in sparse(load):
        costs = estimate(load.shape, load.device, mask_of(k), load.batch, max(load.gammas), load.context)
        draft, select = costs.draft[-1], costs.select[-1] + costs.select_per_kv * load.kv
        for gamma in load.gammas:
            whole = costs.table(gamma, load.batch, load.kv)
            verify = costs.dense_pass(load.batch * (gamma + 1), load.kv, load.batch)
            speedup = tokens_a_round(load.accepted, gamma) * plain_seconds(load) / whole
            found.append(Cell(gamma, k, speedup, *(1e3 * seconds for seconds in (whole, draft, select, verify))))
    return sorted(found, key=lambda cell: (cell.gamma, cell.k))


def best_of(found: list[Cell]) -> Cell | None:
    """The fastest, whether it wins or not; None where no K is less than the context."""
    return max(found, key=lambda cell: cell.speedup, default=None)
