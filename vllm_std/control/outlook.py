"""What each draft length promises for the requests that decode next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_std.control.acceptance import Acceptance
from vllm_std.control.prices import Prices

TRIED, HOPELESS = 8.0, 1.05  # a request tried so often fails if it expects fewer tokens than this of the longest round
SPARED = 0.01  # of a step's time: least for which failing requests are skipped


@dataclass
class Outlook:
    """rows: [drafting] of the requests that may be drafted for; tokens: [drafting, longest + 1] expected of a round.

    By length: seconds of a step; pace, tokens of a round, the harmonic mean over requests; gain, log of the pace over
    that of plain decoding; perfect, the same if every draft was accepted and the table a little too dear; speedup in
    tokens/s; skipped, requests that are better left out. batch: requests in all; unsure: standard deviation of the
    log of a plain step's seconds.
    """

    rows: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray
    pace: np.ndarray
    gain: np.ndarray
    perfect: np.ndarray
    speedup: np.ndarray
    skipped: list[frozenset[str]]
    batch: int
    unsure: float

    @property
    def plain(self) -> float:
        """Seconds of a plain step."""
        return float(self.seconds[0])


def look_ahead(
    prices: Prices, outcomes: Acceptance, drafting: Sequence[str], batch: int, kv: int, lengths: Sequence[int]
) -> Outlook:
    """drafting: those of the batch that may be drafted for; kv: cached tokens of the batch."""
    rows = outcomes.rows_of(drafting)
    tokens = outcomes.tokens(rows)
    of_length, seconds = tokens[:, lengths], prices.seconds(batch, kv, len(drafting))
    skipped: list[frozenset[str]] = [frozenset()] * len(lengths)
    failing = (tokens[:, -1] < HOPELESS) & (outcomes.tries(rows) > TRIED)
    if failing.any():
        fewer = prices.seconds(batch, kv, len(drafting) - int(failing.sum()))
        spared = fewer < (1 - SPARED) * seconds
        seconds, of_length = np.where(spared, fewer, seconds), np.where(failing[:, None] & spared, 1.0, of_length)
        names = frozenset(request for request, fails in zip(drafting, failing) if fails)
        skipped = [names if without else frozenset() for without in spared]
    others, price, (unsure, doubt) = batch - len(drafting), seconds / seconds[0], prices.here.doubts()
    # Harmonic: the mean time that a request waits for a token. Those whose drafts fail are not slowed for the others.
    pace = batch / ((1 / of_length).sum(axis=0) + others)
    most = batch / (len(drafting) / (1.0 + np.array(lengths)) + others)
    perfect = np.log(most / price) + doubt / 2 * (1 - 1 / price)
    speedup = (of_length.sum(axis=0) + others) / batch / price
    return Outlook(rows, tokens, seconds, pace, np.log(pace / price), perfect, speedup, skipped, batch, unsure)
