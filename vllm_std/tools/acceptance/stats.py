"""Acceptance with its uncertainty: prompts, not tokens, are drawn again, because drafts of one answer are alike."""

import numpy as np

RESAMPLES = 4000  # draws of a bootstrap
FEWEST = 5  # prompts with an interval; one from fewer would promise what a bootstrap cannot keep


def ratio(drafted: np.ndarray, accepted: np.ndarray) -> tuple[float, list[float] | None]:
    """Accepted share of drafted tokens and its 95 % interval (percentile bootstrap); [prompts] counts, not all 0."""
    return _with_interval(accepted.sum() / drafted.sum(), _share(drafted, accepted, _draws(len(drafted))))


def difference(drafted: np.ndarray, accepted: np.ndarray) -> tuple[float, list[float] | None]:
    """Share of row 0 less share of row 1, and its 95 % interval; [2, prompts] counts, drawn in pairs."""
    shares = accepted.sum(-1) / drafted.sum(-1)
    drawn = _draws(drafted.shape[1])
    first, second = (_share(drafted[row], accepted[row], drawn) for row in (0, 1))
    return _with_interval(shares[0] - shares[1], first - second)


def _draws(prompts: int) -> np.ndarray:
    """[resamples, prompts] indices, the same in every call; none where prompts are too few for an interval."""
    return np.random.default_rng(0).integers(0, prompts, (RESAMPLES if prompts >= FEWEST else 0, prompts))


def _share(drafted: np.ndarray, accepted: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return accepted[drawn].sum(-1) / drafted[drawn].sum(-1).clip(1)


def _with_interval(value: float, resampled: np.ndarray) -> tuple[float, list[float] | None]:
    interval = np.quantile(resampled, [0.025, 0.975]).round(4).tolist() if resampled.size else None
    return round(float(value), 4), interval
