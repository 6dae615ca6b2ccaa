"""The exploration budget: seconds that may be lost to find out what share of the drafts is accepted."""

from vllm_std.control.forecast import Forecast

SHARE = 0.004  # of the time that passes, which the budget earns
MAX_BUDGET = 4.0  # most that the budget grows to, in plain steps
MAX_LOSS = 3.0  # loss at which an exploration ends, in rounds of which nothing is accepted
MORE_PROMISING = 0.2  # gain by which a batch must promise more than the last one explored, to be explored on credit


class Exploration:
    """The budget begins at nothing. It earns a share of the time that passes, and pays what steps with drafts lose.

    An exploration begins when the budget covers the most that it may lose. One of a batch that promises clearly more
    than the last explored one may borrow this: where verifying takes as long as several plain steps, as on a CPU, a
    server would save for it longer than most answers last. For the same reason the first may.
    """

    def __init__(self):
        self.budget = 0.0  # seconds
        self.least_budget = 0.0  # seconds of the budget at which this exploration ends
        self.explored_gain = 0.0  # highest gain that the last exploration could have shown

    def affordable(self, forecast: Forecast) -> bool:
        """Whether one may begin."""
        more_promising = float(forecast.highest_gain.max()) > self.explored_gain + MORE_PROMISING
        return more_promising or self.budget >= self._most_loss(forecast)

    def begin(self, forecast: Forecast) -> None:
        self.explored_gain = float(forecast.highest_gain.max())
        self.least_budget = self.budget - self._most_loss(forecast)

    @property
    def used_up(self) -> bool:
        """Whether the exploration that was begun has lost what it may."""
        return self.budget < self.least_budget

    def pay(self, seconds: float, loss: float) -> None:
        """A step takes so long, and is expected to lose so many seconds; a gain is a negative loss."""
        self.budget += SHARE * seconds - loss

    def cap(self, plain_seconds: float) -> None:
        """Cut off what exceeds the most that the budget may hold."""
        self.budget = min(self.budget, MAX_BUDGET * plain_seconds)

    def _most_loss(self, forecast: Forecast) -> float:
        return MAX_LOSS * forecast.loss(forecast.shortest)
