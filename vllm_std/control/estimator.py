"""Estimates acceptance by request and draft position, and the tokens that a round of drafts is expected to give.

Acceptance is conditional: the share of drafts accepted among those whose predecessors were. The server's average is
kept by position; of a request is kept how many more, or fewer, of its drafts are rejected than of others. So a new
request is taken to be like the average, and old outcomes fade.
"""

from collections.abc import Sequence

import numpy as np

PRIOR_RATE = 0.7  # acceptance before any outcome
PRIOR_OUTCOMES = 3.0  # outcomes that what is assumed counts as: the prior, the faded past, the average for a request
UNREACHED_RATE = 0.8  # least acceptance assumed at a position that no draft has reached, so that longer ones are tried
DECAY = 0.99  # of a request's counts, by outcome; of the average's counts, by step with outcomes
MAX_WAITING = 4096  # outcomes that wait to be counted


class AcceptanceEstimator:
    """capacity: most requests at a time; longest: draft positions.

    `server`: [2, longest] accepted and verified drafts by position. `requests`: [2, capacity + 1] rejected drafts and
    how many the average would have had rejected; the last row is of requests that found no place.
    """

    def __init__(self, capacity: int, longest: int):
        self.server = np.zeros((2, longest))
        self.server[:, 0] = PRIOR_RATE * PRIOR_OUTCOMES, PRIOR_OUTCOMES
        self.requests = np.zeros((2, capacity + 1))
        self.rows: dict[str, int] = {}
        self.free = list(range(capacity - 1, -1, -1))
        self.waiting: list[tuple[int, int, int]] = []  # row, drafts, accepted ones
        self.outcomes = 0  # counted so far
        self.average = self._rates()

    def rows_of(self, requests: Sequence[str]) -> list[int]:
        """Their rows in `requests`; a request not seen before is given one."""
        for request in requests:
            if request not in self.rows and self.free:
                row = self.rows[request] = self.free.pop()
                self.requests[:, row] = 0
        return [self.rows.get(request, -1) for request in requests]

    def observe(self, request: str, drafted: int, accepted: int) -> None:
        """A request's drafts were verified, to be counted by `count`; without a row, for the average alone."""
        self.waiting.append((self.rows.get(request, -1), drafted, accepted))
        if len(self.waiting) >= MAX_WAITING:
            self.count()

    def forget(self, request: str) -> None:
        """The request has finished; its row is free for another."""
        self.count()
        row = self.rows.pop(request, None)
        if row is not None:
            self.free.append(row)

    def count(self) -> int:
        """Count the outcomes that wait. Returns their number."""
        if not self.waiting:
            return 0
        rows, drafted, accepted = np.array(self.waiting).T
        self.waiting.clear()
        position = np.arange(len(self.average))
        was_accepted = position < accepted[:, None]
        was_verified = position < np.minimum(accepted + 1, drafted)[:, None]
        self.requests *= DECAY ** np.bincount(rows % self.requests.shape[1], minlength=self.requests.shape[1])
        np.add.at(self.requests[0], rows, accepted < drafted)
        np.add.at(self.requests[1], rows, was_verified @ (1 - self.average))
        self.requests[:, -1] = 0
        self.server = DECAY * self.server + np.stack([was_accepted.sum(axis=0), was_verified.sum(axis=0)])
        self.average = self._rates()
        self.outcomes += len(rows)
        return len(rows)

    def fade(self) -> None:
        """Let what comes next say more than the past, because nothing was drafted for a time."""
        self.server *= np.minimum(1, PRIOR_OUTCOMES / self.server[1].clip(min=PRIOR_OUTCOMES))
        self.average = self._rates()

    def acceptance(self) -> list[float]:
        """Of all requests, by position."""
        self.count()
        return self.average.tolist()

    def _rates(self) -> np.ndarray:
        rates = []
        before = PRIOR_RATE
        for accepted, verified in self.server.T.tolist():
            rates.append((accepted + before) / (verified + 1))
            before = max(rates[-1], UNREACHED_RATE)
        return np.array(rates)

    def tokens(self, requests: Sequence[str]) -> np.ndarray:
        """[requests, longest + 1] expected tokens of a round, by draft length from 0 up."""
        rejected, expected = self.requests[:, self.rows_of(requests)]
        prior = PRIOR_OUTCOMES * (1 - self.average[0])
        times = (rejected + prior) / (expected + prior)
        rates = (1 - times[:, None] * (1 - self.average)).clip(min=0)
        tokens = np.ones((len(requests), len(self.average) + 1))
        np.cumprod(rates, axis=1, out=tokens[:, 1:])
        return np.cumsum(tokens, axis=1)
