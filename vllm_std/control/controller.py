"""Chooses the draft length of each step, so that std is hardly ever slower than plain decoding.

The controller has three modes. OFF: steps decode plainly. EXPLORE: a few rounds of short drafts show what is accepted;
an exploration that lost time is paid from the exploration budget. ON: steps draft with the length that is expected to
gain most. Drafting begins at a larger gain than it ends at (hysteresis).
"""

from collections.abc import Collection, Sequence
from enum import Enum

import numpy as np

from vllm_std.control.choice import Choice
from vllm_std.control.cost_model import CostModel, region
from vllm_std.control.estimator import AcceptanceEstimator
from vllm_std.control.exploration import Exploration
from vllm_std.control.forecast import Forecast, forecast
from vllm_std.control.proposals import ProposalEstimator

# A gain is the log of the expected speed over that of plain decoding.
BEGIN_GAIN = 0.03  # gain at which drafting begins
END_GAIN = 0.005  # gain below which drafting ends
UNMEASURED_GAIN = 0.1  # gain that drafting needs where no plain step of such a batch was measured
GIVE_UP_GAIN = -0.1  # gain below which an exploration ends early
PROMISING_GAIN = 0.15  # gain that an exploration needs, if all drafts were accepted
ENOUGH_OUTCOMES = 16  # verified rounds of requests after which acceptance is taken to be known
MAX_ROUNDS = 24  # rounds after which an exploration ends that has shown no gain
MIN_REST = 128  # plain steps from one exploration to the next, at least
REFRESH = 16  # steps of the same requests that one decision serves


class Mode(Enum):
    OFF = "off"
    EXPLORE = "explore"
    ON = "on"


class Controller:
    """costs: of steps; lengths: draft lengths to choose from, ascending from 0; capacity: most requests at a time;
    proposals: tokens proposed for a draft step.

    Outcomes and times may come late, for requests that have ended, or not at all.
    """

    def __init__(self, costs: CostModel, lengths: Sequence[int], capacity: int, proposals: int = 0):
        self.costs = costs
        self.lengths = np.array(lengths)
        self.estimator = AcceptanceEstimator(capacity, lengths[-1])
        self.proposals = ProposalEstimator(proposals)
        self.exploration = Exploration()
        self.mode = Mode.OFF
        self.place = 0  # of the chosen length among `lengths`
        self.steps = 0  # since the mode changed
        self.outcomes = 0  # since the mode changed
        self.rest = 0  # plain steps before the next exploration
        self.choice = Choice(0, "idle")
        self.chosen_for: tuple | None = None  # requests to draft for, number of requests, region
        self.seconds = 0.0  # that a step as chosen takes
        self.loss = 0.0  # seconds that a step as chosen is expected to lose

    def observe(self, request: str, drafted: int, accepted: int) -> None:
        """A request's drafts were verified, at least one; a rejected one ends the accepted prefix."""
        self.estimator.observe(request, drafted, accepted)

    def measured(
        self, length: int, batch: int, kv: int, seconds: float, mixed: bool = False, steps: int | None = None
    ) -> None:
        """A step took so long that only decoded, verified `length` drafts of each request and drafted as many in
        `steps` draft steps; mixed: some of its requests opted out."""
        self.costs.correct(length, batch, kv, seconds, mixed, steps)

    def forget(self, request: str) -> None:
        """The request has finished."""
        self.outcomes += self.estimator.count()
        self.estimator.forget(request)

    def acceptance(self) -> list[float]:
        """Share of drafts accepted after their predecessors were, by position; of all requests, lately."""
        self.outcomes += self.estimator.count()
        return self.estimator.acceptance()

    def choose(self, requests: Sequence[str], kv: int, opted_out: Collection[str] = ()) -> Choice:
        """requests: that decode next; kv: their cached tokens in all; opted_out: requests not to draft for."""
        self.outcomes += self.estimator.count()
        drafting = [request for request in requests if request not in opted_out] if opted_out else list(requests)
        if not drafting:
            return Choice(0, "idle")
        self.steps += 1
        choose_for = drafting, len(requests), region(len(requests), kv)
        # While it explores, each outcome counts.
        if self.choice.reason == "explore" or choose_for != self.chosen_for or self.steps % REFRESH == 0:
            self.chosen_for = choose_for
            steps = [self.proposals.steps(length) for length in self.lengths.tolist()]
            self._choose(forecast(self.costs, self.estimator, self.lengths, steps, drafting, len(requests), kv))
        self.exploration.pay(self.seconds, self.loss)
        return self.choice

    def _choose(self, forecast: Forecast) -> None:
        self.exploration.cap(float(forecast.seconds[0]))
        reason = self._decide(forecast)
        place = self.place
        speedup = float(forecast.speedup[place]) if place else 1.0
        self.choice = Choice(int(self.lengths[place]), reason, speedup, forecast.steps[place])
        self.seconds = float(forecast.seconds[place])
        # Before an exploration has outcomes, nothing is counted on.
        informed = self.mode is Mode.ON or self.outcomes > 0
        self.loss = forecast.loss(place, float(forecast.tokens[place]) if informed else 1.0)

    def _decide(self, forecast: Forecast) -> str:
        """Set the mode and the draft length. Returns the reason."""
        if self.mode is Mode.OFF:
            return self._decide_off(forecast)
        if self.mode is Mode.EXPLORE:
            return self._decide_exploring(forecast)
        return self._decide_on(forecast)

    def _decide_off(self, forecast: Forecast) -> str:
        gain = forecast.gain[forecast.best]
        if self.estimator.outcomes >= ENOUGH_OUTCOMES and gain > _needed(forecast):
            return self._enter(Mode.ON, forecast.best, "on")
        if gain < BEGIN_GAIN and forecast.highest_gain.max() < PROMISING_GAIN:
            return "cost"
        if self.steps < self.rest or not self.exploration.affordable(forecast):
            return "acceptance"
        if BEGIN_GAIN < gain < _needed(forecast):  # plain steps are to be measured first
            return "explore"
        self.estimator.fade()
        self.exploration.begin(forecast)
        return self._enter(Mode.EXPLORE, forecast.shortest, "explore")

    def _decide_exploring(self, forecast: Forecast) -> str:
        gain = forecast.gain[forecast.best]
        known = self.outcomes >= ENOUGH_OUTCOMES
        if known and gain > BEGIN_GAIN:
            return self._enter(Mode.ON, forecast.best, "on")
        hopeless = known and gain < GIVE_UP_GAIN or self.steps >= MAX_ROUNDS
        if hopeless or self.exploration.used_up:
            return self._stop(MIN_REST, "acceptance")
        return "explore"

    def _decide_on(self, forecast: Forecast) -> str:
        gain = forecast.gain[forecast.best]
        if gain < END_GAIN:
            return self._stop(MIN_REST, "acceptance")
        if not forecast.plain_measured and gain < UNMEASURED_GAIN:  # plain steps are to be measured first
            return self._stop(0, "explore")
        self.place = forecast.best
        return "on"

    def _stop(self, rest: int, reason: str) -> str:
        self.rest = rest
        return self._enter(Mode.OFF, 0, reason)

    def _enter(self, mode: Mode, place: int, reason: str) -> str:
        self.mode = mode
        self.place = place
        self.steps = 0
        self.outcomes = 0
        return reason


def _needed(forecast: Forecast) -> float:
    """Gain at which drafting begins."""
    return BEGIN_GAIN if forecast.plain_measured else UNMEASURED_GAIN
