"""Chooses the draft length of each step, so that std is hardly ever slower than plain decoding.

A choice is made of what steps cost (`cost_model`), what is accepted (`estimator`), and the mode (`modes`).
"""

from collections.abc import Collection, Sequence

from vllm_std.control.choice import Choice
from vllm_std.control.cost_model import CostModel, region
from vllm_std.control.estimator import AcceptanceEstimator
from vllm_std.control.forecast import Forecast, forecast, rounds_of
from vllm_std.control.modes import Modes
from vllm_std.control.proposals import ProposalEstimator

REFRESH = 16  # steps of the same requests that one decision serves


class Controller:
    """costs: of steps; lengths: draft lengths to choose from, ascending from 0; capacity: most requests at a time;
    proposals: tokens proposed for a draft step.

    Outcomes and times may come late, for requests that have ended, or not at all.
    """

    def __init__(self, costs: CostModel, lengths: Sequence[int], capacity: int, proposals: int = 0):
        self.costs = costs
        self.rounds = rounds_of(lengths, proposals)
        self.estimator = AcceptanceEstimator(capacity, lengths[-1])
        self.proposals = ProposalEstimator(proposals)
        self.modes = Modes(self.estimator)
        self.choice = Choice(0, "idle")
        self.chosen_for: tuple | None = None  # requests to draft for, number of requests, region
        self.seconds = 0.0  # that a step as chosen takes
        self.loss = 0.0  # seconds that a step as chosen is expected to lose

    def observe(self, request: str, drafted: int, accepted: int, steps: int | None = None) -> None:
        """A request's drafts were verified, at least one; a rejected one ends the accepted prefix. steps: draft steps
        that made them. With proposals, what these do not make on average says nothing of drafts; a request that was
        given fewer makes acceptance look lower than it is."""
        if steps and self.proposals.enabled:
            drafted = min(drafted, int(steps * self.proposals.drafts_a_step))
        self.estimator.observe(request, drafted, min(accepted, drafted))

    def measured(
        self, length: int, batch: int, kv: int, seconds: float, mixed: bool = False, steps: int | None = None
    ) -> None:
        """A step took so long that only decoded, verified `length` drafts of each request and drafted as many in
        `steps` draft steps; mixed: some of its requests opted out."""
        self.costs.correct(length, batch, kv, seconds, mixed, steps)

    def forget(self, request: str) -> None:
        """The request has finished."""
        self._count()
        self.estimator.forget(request)

    def acceptance(self) -> list[float]:
        """Share of drafts accepted after their predecessors were, by position; of all requests, lately."""
        self._count()
        return self.estimator.acceptance()

    def choose(self, requests: Sequence[str], kv: int, opted_out: Collection[str] = ()) -> Choice:
        """requests: that decode next; kv: their cached tokens in all; opted_out: requests not to draft for."""
        self._count()
        drafting = [request for request in requests if request not in opted_out] if opted_out else list(requests)
        if not drafting:
            return Choice(0, "idle")
        self.modes.steps += 1
        choose_for = drafting, len(requests), region(len(requests), kv)
        # While it explores, each outcome counts.
        if self.choice.reason == "explore" or choose_for != self.chosen_for or self.modes.steps % REFRESH == 0:
            self.chosen_for = choose_for
            drafts = self.proposals.drafts(self.rounds.lengths, self.rounds.steps)
            self._choose(forecast(self.costs, self.estimator, self.rounds, drafts, drafting, len(requests), kv))
        self.modes.exploration.pay(self.seconds, self.loss)
        return self.choice

    def _count(self) -> None:
        self.modes.outcomes += self.estimator.count()

    def _choose(self, forecast: Forecast) -> None:
        reason = self.modes.decide(forecast)
        place = self.modes.place
        speedup = float(forecast.speedup[place]) if place else 1.0
        self.choice = Choice(int(self.rounds.lengths[place]), reason, speedup, int(self.rounds.steps[place]))
        self.seconds = float(forecast.seconds[place])
        self.loss = forecast.loss(place, float(forecast.tokens[place]) if self.modes.informed else 1.0)
