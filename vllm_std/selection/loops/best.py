"""The places of the highest scores."""

import numpy as np
from numba import njit


@njit
def best_places(scores, first, last, k, out):
    """The `k` highest of scores[first:last] in increasing order of place, the earlier of equal ones; how many."""
    many = max(0, last - first)
    if k <= 0:
        return 0
    if many <= k:
        for i in range(many):
            out[i] = first + i
        return many
    least = np.partition(scores[first:last], many - k)[many - k]
    room = k
    for i in range(first, last):
        room -= scores[i] > least
    count = 0
    for i in range(first, last):
        tie = scores[i] == least and room > 0
        if tie or scores[i] > least:
            room -= tie
            out[count] = i
            count += 1
    return count
