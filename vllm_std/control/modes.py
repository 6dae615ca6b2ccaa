"""Whether steps draft, and with which draft length.

OFF: steps decode plainly. EXPLORE: a few rounds of short drafts show what is accepted; an exploration that lost time is
paid from the exploration budget. ON: steps draft with the length that is expected to gain most. Drafting begins at a
larger gain than it ends at (hysteresis).
"""

from enum import Enum

from vllm_std.control.estimator import AcceptanceEstimator
from vllm_std.control.exploration import Exploration
from vllm_std.control.forecast import Forecast

# A gain is the log of the expected speed over that of plain decoding.
BEGIN_GAIN = 0.03  # gain at which drafting begins
END_GAIN = 0.005  # gain below which drafting ends
UNMEASURED_GAIN = 0.1  # gain that drafting needs where no plain step of such a batch was measured
GIVE_UP_GAIN = -0.1  # gain below which an exploration ends early
PROMISING_GAIN = 0.15  # gain that an exploration needs, if all drafts were accepted
ENOUGH_OUTCOMES = 16  # verified rounds of requests after which acceptance is taken to be known
MAX_ROUNDS = 24  # rounds after which an exploration ends that has shown no gain
MIN_REST = 128  # plain steps from one exploration to the next, at least


class Mode(Enum):
    OFF = "off"
    EXPLORE = "explore"
    ON = "on"


class Modes:
    """The mode of the controller, and what it does in this mode.

    place: of the chosen round among those of a forecast. steps, outcomes: since the mode changed. rest: plain steps
    before the next exploration.
    """

    def __init__(self, estimator: AcceptanceEstimator):
        self.estimator = estimator
        self.exploration = Exploration()
        self.mode = Mode.OFF
        self.place = 0
        self.steps = 0
        self.outcomes = 0
        self.rest = 0

    @property
    def informed(self) -> bool:
        """Whether outcomes tell what the drafts of this mode are worth; before an exploration has any, they do not."""
        return self.mode is Mode.ON or self.outcomes > 0

    def decide(self, forecast: Forecast) -> str:
        """Set the mode and the round. Returns the reason, one of those of `Choice`."""
        self.exploration.cap(float(forecast.seconds[0]))
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
