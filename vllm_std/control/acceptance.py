"""What share of drafts is accepted, by request and draft position, and the tokens that a round is expected to give.

A rate is conditional: of the drafts at a position whose predecessors were all accepted. A request is first taken to be
like the server's average; its own outcomes replace that, and old ones fade.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

START, START_TRIES = 0.7, 8.0  # acceptance before anything was seen, and the outcomes that this is worth
LATER = 0.8  # at the least, of a position not reached so far, so that it is tried
KEEP, SERVER_KEEP = 0.98, 0.99  # of what is known of a request, and of all, from one round to the next
SKIPPED_KEEP = 0.98  # of what is known of a request that is skipped, from one decision to the next
SHARED = 4.0  # outcomes that the server's average is worth to a request
STALE, SERVER_STALE = 2.0, 6.0  # outcomes that the past is worth, at most, after a time without drafts
UNLIKE = 0.1  # a server that fails more seldom says little of how often a request may
MOST = 0.999
ODD_KEEP, SPREAD, ODD = 0.95, 0.5, 3.0  # from round to round; of tokens over expected ones; and how many such are odd
WAITING = 4096  # outcomes kept, of those that nobody counts


class Acceptance:
    """counts: [hits and tries, capacity + 1, positions], decayed; the last row is of requests that found no place."""

    def __init__(self, capacity: int, longest: int):
        self.counts = np.zeros((2, capacity + 1, longest))
        self.server = np.zeros((2, longest))
        self.server[:, 0] = START * START_TRIES, START_TRIES
        self.rows: dict[str, int] = {}
        self.free = list(range(capacity - 1, -1, -1))
        self.waiting: deque[int] = deque(maxlen=3 * WAITING)  # row, drafted, accepted of each outcome
        self.position = np.arange(longest)
        self.expected = np.ones((capacity + 1, longest + 1))  # tokens of a round by draft length, when last asked for
        self.odd = np.zeros(2)  # sum of what rounds gave beyond that, relative to it, and their number; decayed
        self.average = np.array(self._rates())
        self.known = 0  # outcomes so far, of all requests

    def rows_of(self, requests: Sequence[str]) -> np.ndarray:
        """[n] their rows; a request not seen before is given one."""
        rows = list(map(self.rows.get, requests))
        if None in rows:
            rows = [self._place(request) if row is None else row for request, row in zip(requests, rows)]
        return np.array(rows)

    def _place(self, request: str) -> int:
        if not self.free:
            return self.counts.shape[1] - 1
        row = self.rows[request] = self.free.pop()
        self.counts[:, row], self.expected[row] = 0, 1
        return row

    def observe(self, request: str, drafted: int, accepted: int) -> None:
        """To be counted by `take_in`; for the server's average alone, if the request has no row."""
        self.waiting += self.rows.get(request, self.counts.shape[1] - 1), drafted, accepted

    def take_in(self) -> tuple[np.ndarray, np.ndarray]:
        """Count the outcomes that wait. Returns their rows, and the tokens beyond what was expected; [n] each."""
        rows, drafted, accepted = np.array(self.waiting).reshape(-1, 3).T
        self.waiting.clear()
        beyond = 1 + accepted - self.expected[rows, drafted]
        self._compare(beyond, self.expected[rows, drafted])
        tried = np.minimum(accepted + 1, drafted)
        new = (self.position < np.stack([accepted, tried])[:, :, None]).astype(float)
        self.counts *= KEEP ** np.bincount(rows, minlength=self.counts.shape[1])[:, None]
        for counts, more in zip(self.counts, new):
            np.add.at(counts, rows, more)
        self.counts[:, -1] = 0
        self.server = SERVER_KEEP * self.server + new.sum(axis=1)
        self.average = np.array(self._rates())
        self.known += len(rows)
        return rows, beyond

    def _compare(self, beyond: np.ndarray, expected: np.ndarray) -> None:
        """Where rounds give other than was expected, and not by chance, the past says little any more."""
        known = expected > 1
        self.odd = ODD_KEEP * self.odd + np.array([(beyond / expected) @ known, np.count_nonzero(known)])
        if abs(self.odd[0]) > ODD * SPREAD * self.odd[1] ** 0.5:
            self.stale()

    def forget(self, request: str) -> None:
        row = self.rows.pop(request, None)
        if row is not None:
            self.free.append(row)

    def stale(self) -> None:
        """What comes now says more than what was: nothing was drafted for a time, or it is no more as it was."""
        self.odd[:] = 0
        self.counts *= np.minimum(1, STALE / self.counts[1].clip(min=STALE))
        self.server *= np.minimum(1, SERVER_STALE / self.server[1].clip(min=SERVER_STALE))
        self.average = np.array(self._rates())

    def skip(self, rows: np.ndarray) -> None:
        """These are not drafted for now. In time they are no longer known well enough for that."""
        self.counts[:, rows] *= SKIPPED_KEEP

    def tries(self, rows: np.ndarray) -> np.ndarray:
        """[n] rounds of the requests that still count."""
        return self.counts[1, rows, 0]

    def acceptance(self) -> list[float]:
        """Of all requests, by position."""
        if self.waiting:
            self.take_in()
        return self.average.tolist()

    def _rates(self) -> list[float]:
        """The same; a position never reached is taken to be like the one before."""
        rates, before = [], START
        for hits, tries in self.server.T.tolist():
            rates.append((hits + before) / (tries + 1))
            before = max(rates[-1], LATER)
        return rates

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """[n, positions + 1] expected tokens of a round, by draft length from 0 up."""
        hits, tries = self.counts[:, rows]
        # A request fails so many times as often as others do, at every position until more is known of that one.
        fails, prior = 1 - self.average, SHARED * max(1 - self.average[0], UNLIKE)
        worse = (prior + (tries - hits).sum(axis=1)) / (prior + tries @ fails)
        alike = np.maximum(1 - worse[:, None] * fails, 0)
        tokens = np.ones((len(rows), len(fails) + 1))
        np.cumprod(np.minimum((hits + SHARED * alike) / (tries + SHARED), MOST), axis=1, out=tokens[:, 1:])
        self.expected[rows] = np.cumsum(tokens, axis=1, out=tokens)
        return tokens
