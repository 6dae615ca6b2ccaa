"""Chooses the draft length of each step, so that std is hardly ever slower than plain decoding.

The controller has three modes. OFF: steps decode plainly. EXPLORE: a few rounds of short drafts show what is accepted;
after an exploration that lost time the next one waits until that loss is a small share of the time that passed. ON:
steps draft with the length that is expected to gain most. Drafting begins at a larger gain than it ends at.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from vllm_std.control.cost_model import CostModel, region
from vllm_std.control.estimator import AcceptanceEstimator

# A gain is the log of the expected speed over that of plain decoding.
BEGIN_GAIN = 0.03  # gain at which drafting begins
END_GAIN = 0.005  # gain below which drafting ends
CHANGE_GAIN = 0.01  # gain of one draft length over another that makes a change worth it
UNMEASURED_GAIN = 0.1  # gain that drafting needs where no plain step of such a batch was measured
GIVE_UP_GAIN = -0.1  # gain below which an exploration ends early
WORTH_EXPLORING = 0.15  # gain if all drafts were accepted that makes an exploration worth its cost
MORE_PROMISING = 0.2  # by how much that gain must exceed the last exploration's for the next one not to wait
FIRST_OUTCOMES = 4  # outcomes after which an exploration tries longer drafts
ENOUGH_OUTCOMES = 16  # outcomes after which acceptance is taken to be known
MAX_LOSS = 3.0  # loss at which an exploration ends, in rounds of which nothing is accepted
FIRST_BUDGET = 0.0  # exploration budget at first, in plain steps
MAX_BUDGET = 4.0  # most that it grows to, in plain steps
MAX_ROUNDS = 32  # rounds after which an exploration ends that shows no gain
SHARE = 0.004  # of the time that passes, which the exploration budget earns
MIN_REST = 128  # plain steps from one exploration to the next, at least
REFRESH = 4, 16  # steps of the same requests that one decision serves, while drafting and not


class Mode(Enum):
    OFF = "off"
    EXPLORE = "explore"
    ON = "on"


@dataclass(frozen=True)
class Choice:
    """What the next step does.

    length: tokens to draft for each request, one of the controller's lengths.
    reason: "on"; "explore", an exploration, or plain steps whose time is to be measured; or why it does not draft:
        "cost", no acceptance could pay enough at this batch and context; "acceptance", too few drafts are accepted, or
        an exploration has to wait; "idle", there is nobody to draft for.
    speedup: tokens/s expected, over those of plain decoding; 1.0 where length is 0.
    """

    length: int
    reason: str
    speedup: float = 1.0


@dataclass(frozen=True)
class Forecast:
    """By draft length: seconds of a step; gain; most, the gain if all drafts were accepted; speedup, in tokens/s."""

    seconds: np.ndarray
    gain: np.ndarray
    pace: np.ndarray
    most: np.ndarray
    speedup: np.ndarray
    needed: float  # gain at which drafting begins here


class Controller:
    """costs: of steps; lengths: draft lengths to choose from, ascending from 0; capacity: most requests at a time.

    Outcomes and times may come late, for requests that have ended, or not at all.
    """

    def __init__(self, costs: CostModel, lengths: Sequence[int], capacity: int):
        self.costs = costs
        self.lengths = np.array(lengths)
        self.estimator = AcceptanceEstimator(capacity, lengths[-1])
        self.mode = Mode.OFF
        self.place = 0  # of the chosen length among `lengths`
        self.steps = 0  # since the mode changed
        self.outcomes = 0  # since the mode changed
        self.budget = 0.0  # seconds that explorations may lose
        self.least_budget = 0.0  # seconds at which this exploration ends
        self.earned = 0.0  # seconds that the budget earns by a step as chosen, before anything is accepted
        self.rest = 0  # plain steps before the next exploration
        self.explored = 0.0  # gain that the last exploration could have shown
        self.token = 0.0  # seconds of plain decoding that an accepted draft saves
        self.decided_for: tuple | None = None
        self.choice = Choice(0, "idle")

    def observe(self, request: str, drafted: int, accepted: int) -> None:
        """A request's drafts were verified, at least one; a rejected one ends the accepted prefix."""
        self.estimator.observe(request, drafted, accepted)

    def measured(self, length: int, batch: int, kv: int, seconds: float, mixed: bool = False) -> None:
        """A step took so long that only decoded, verified `length` drafts of each request and drafted as many."""
        self.costs.correct(length, batch, kv, seconds, mixed)

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
        self.steps += 1
        decide_for = drafting, len(requests), region(len(requests), kv)
        refresh = REFRESH[self.mode is Mode.OFF]
        if self.choice.reason == "explore" or decide_for != self.decided_for or self.steps % refresh == 0:
            forecast = self._forecast(drafting, len(requests), kv)
            self.decided_for = decide_for
            reason = self._decide(forecast)
            speedup = float(forecast.speedup[self.place]) if self.place else 1.0
            self.choice = Choice(int(self.lengths[self.place]), reason, speedup)
            taken, plain = float(forecast.seconds[self.place]), float(forecast.seconds[0])
            pace = float(forecast.pace[self.place]) if self.mode is Mode.ON or self.outcomes else 1.0
            self.earned = SHARE * taken - (taken - plain * pace)
            self.budget = min(self.budget, MAX_BUDGET * plain)
        self.budget += self.earned
        return self.choice

    def _count(self) -> None:
        outcomes, accepted = self.estimator.count()
        self.outcomes += outcomes

    def _forecast(self, drafting: Sequence[str], batch: int, kv: int) -> Forecast:
        tokens = self.estimator.tokens(drafting)[:, self.lengths]
        others = batch - len(drafting)
        seconds = self.costs.predict(self.lengths, batch, kv, mixed=others > 0)
        price = seconds / seconds[0]
        if self.decided_for is None:
            self.budget = FIRST_BUDGET * float(seconds[0])
        # Harmonic: the mean time that a request waits for a token. Those whose drafts fail are not slowed for the others.
        pace = batch / ((1 / tokens).sum(axis=0) + others)
        most = batch / (len(drafting) / (1 + self.lengths) + others)
        needed = BEGIN_GAIN if self.costs.has_measured("plain", batch, kv) else UNMEASURED_GAIN
        self.token = float(seconds[0]) / batch
        speedup = (tokens.sum(axis=0) + others) / batch / price
        return Forecast(seconds, np.log(pace / price), pace, np.log(most / price), speedup, needed)

    def _decide(self, forecast: Forecast) -> str:
        """Set mode and length. Returns the reason."""
        best = 1 + int(forecast.gain[1:].argmax())
        if self.mode is Mode.OFF:
            return self._while_off(forecast, best)
        if self.mode is Mode.EXPLORE:
            return self._while_exploring(forecast, best)
        gain = forecast.gain[best]
        if gain < END_GAIN:
            return self._stop(MIN_REST)
        if forecast.needed > BEGIN_GAIN and gain < forecast.needed:
            self._stop(0)
            return "explore"
        if gain > forecast.gain[self.place] + CHANGE_GAIN:
            self.place = best
        return "on"

    def _while_off(self, forecast: Forecast, best: int) -> str:
        gain = forecast.gain[best]
        most = float(forecast.most.max())
        known = self.estimator.outcomes >= ENOUGH_OUTCOMES
        if known and gain > forecast.needed:
            self._enter(Mode.ON, best)
            return "on"
        if gain < BEGIN_GAIN and most < WORTH_EXPLORING:
            return "cost"
        first = 1 + int((forecast.gain[1:] > 0).argmax())  # the shortest that should not lose
        cost = MAX_LOSS * float(forecast.seconds[first] - forecast.seconds[0])
        affordable = self.budget >= cost or most > self.explored + MORE_PROMISING
        if not affordable or self.steps < self.rest:
            return "acceptance"
        if BEGIN_GAIN < gain < forecast.needed:  # plain steps are to be measured first
            return "explore"
        self._enter(Mode.EXPLORE, first)
        self.estimator.fade()
        self.explored = most
        self.least_budget = self.budget - cost
        return "explore"

    def _while_exploring(self, forecast: Forecast, best: int) -> str:
        gain = forecast.gain[best]
        if self.outcomes >= FIRST_OUTCOMES and gain > BEGIN_GAIN:
            self.place = best
            if self.outcomes >= ENOUGH_OUTCOMES:
                self._enter(Mode.ON, best)
                return "on"
        hopeless = self.outcomes >= ENOUGH_OUTCOMES and gain < GIVE_UP_GAIN
        if hopeless or self.budget < self.least_budget or self.steps > MAX_ROUNDS:
            return self._stop(MIN_REST)
        return "explore"

    def _stop(self, rest: int) -> str:
        self.rest = rest
        self._enter(Mode.OFF, 0)
        return "acceptance"

    def _enter(self, mode: Mode, place: int) -> None:
        self.mode = mode
        self.place = place
        self.steps = 0
        self.outcomes = 0
