"""The same draft length in each step, for `adaptive: false`."""

from collections.abc import Collection, Sequence

from vllm_std.control.choice import Choice
from vllm_std.control.estimator import AcceptanceEstimator
from vllm_std.control.proposals import ProposalEstimator


class FixedLength:
    """What `Controller` does, without a choice: acceptance is estimated for the metrics alone."""

    def __init__(self, length: int, proposals: int = 0):
        self.length = length
        self.proposals = ProposalEstimator(proposals)
        self.estimator = AcceptanceEstimator(1, length)

    def choose(self, requests: Sequence[str], kv: int, opted_out: Collection[str] = ()) -> Choice:
        if all(request in opted_out for request in requests):
            return Choice(0, "idle")
        return Choice(self.length, "fixed", steps=self.proposals.steps(self.length))

    def observe(self, request: str, drafted: int, accepted: int, steps: int | None = None) -> None:
        self.estimator.observe(request, drafted, accepted)

    def measured(
        self, length: int, batch: int, kv: int, seconds: float, mixed: bool = False, steps: int | None = None
    ) -> None:
        """What steps take changes nothing."""

    def forget(self, request: str) -> None:
        """Nothing is stored by request."""

    def acceptance(self) -> list[float]:
        return self.estimator.acceptance()
