"""Seconds that may be lost in finding out whether drafting pays."""

import numpy as np

from vllm_std.control.outlook import Outlook

SHARE = 0.004  # earned, of the time that passes
GRANT, MOST, LEAST = 2.0, 16.0, -4.0  # in plain steps: given at first, and kept at most and at least


class Budget:
    """Earns a small share of all time and what drafting gains, pays what drafting loses.

    A step counts with the tokens that it is expected to give; its outcome puts that right.
    """

    def __init__(self, capacity: int):
        self.seconds: float | None = None
        self.worth = np.zeros(capacity + 1)  # seconds that one more token is worth, by a request's row

    def available(self, plain: float) -> float:
        """Seconds; plain: those of a plain step."""
        if self.seconds is None:
            self.seconds = GRANT * plain
        return self.seconds

    def step(self, seconds: float, plain: float, lost: float) -> None:
        """A step that takes `seconds`, of which so much is not expected to be made up for."""
        self.seconds = max(LEAST * plain, min(MOST * plain, self.available(plain) - lost + SHARE * seconds))

    def expect(self, outlook: Outlook, at: int, length: int) -> float:
        """A round of that length, `at` its place, is to be settled. Returns the seconds it is expected to lose."""
        pace = float(outlook.pace[at])
        # Of the mean over requests, as far as it moves with the tokens of one.
        self.worth[outlook.rows] = outlook.plain * (pace / outlook.tokens[:, length]) ** 2 / outlook.batch
        return float(outlook.seconds[at]) - outlook.plain * pace

    def settle(self, rows: np.ndarray, beyond: np.ndarray) -> None:
        """Rounds gave so many tokens beyond what was expected; [n] each."""
        self.pay(-float(self.worth[rows] @ beyond))

    def pay(self, seconds: float) -> None:
        if self.seconds is not None:
            self.seconds -= seconds
