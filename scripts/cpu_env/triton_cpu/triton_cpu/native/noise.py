"""vLLM's random numbers, bit for bit: the hash and Gumbel noise of `vllm.v1.worker.gpu.sample.gumbel`, and Triton's
Philox.

Noise decides which token of a row is the best, and needs two logarithms a token. So a first pass estimates it, and only
tokens that may be the best are given the exact noise, computed by numpy as the interpreted kernel computes it.
"""

import numba
import numpy as np
from numba import float32, int64, uint32, uint64

from triton_cpu.native.compiled import compiled

DRAFTING = 1 << 30  # added to the position of a draft's noise, so that its verification draws other numbers
TINY = np.float32(5.960464477539063e-08)  # least argument of a logarithm in the noise


def steps_have_seeds() -> bool:
    """vLLM 0.33 mixes the step of a draft into its seed, which the arguments of its kernels do not show."""
    from vllm.v1.worker.gpu.sample import gumbel

    return hasattr(gumbel, "spec_step_seed")


@numba.njit
def _mixed(h, key):
    key = uint32(key * uint32(0xCC9E2D51))
    key = uint32((key << uint32(15)) | (key >> uint32(17)))
    h = uint32(h ^ uint32(key * uint32(0x1B873593)))
    h = uint32((h << uint32(13)) | (h >> uint32(19)))
    return uint32(uint32(h * uint32(5)) + uint32(0xE6546B64))


@numba.njit
def _row_hash(seed, position):
    h = _mixed(uint32(0), uint32(seed & 0xFFFFFFFF))
    h = _mixed(h, uint32((seed >> 32) & 0xFFFFFFFF))
    return _mixed(h, uint32(position & 0xFFFFFFFF))


@numba.njit
def _uniform(row_hash, token):
    """float32 in (0, 1): 32 random bits and a half."""
    h = uint32(_mixed(row_hash, uint32(token)) ^ uint32(16))
    h = uint32(uint32(h ^ (h >> uint32(16))) * uint32(0x85EBCA6B))
    h = uint32(uint32(h ^ (h >> uint32(13))) * uint32(0xC2B2AE35))
    h = uint32(h ^ (h >> uint32(16)))
    high, low = float32(h >> uint32(16)), float32(h & uint32(0xFFFF))
    return float32(high * float32(1.52587890625e-05)) + float32((low + float32(0.5)) * float32(2.3283064365386963e-10))


@compiled("float32(float32)")
def _rough_log(x):
    """Within 0.001 of the logarithm, in arithmetic that vectorises."""
    bits = np.float32(x).view(np.int32)
    exponent = float32((bits >> 23) - 127)
    m = np.int32((bits & 0x7FFFFF) | 0x3F800000).view(np.float32)
    log2 = float32(-2.153620718) + m * (float32(3.047884161) + m * (float32(-1.051875031) + m * float32(0.158248818)))
    return (exponent + log2) * float32(0.6931471806)


@numba.njit
def _rough_noise(u):
    """Within 0.003 of the noise."""
    if u < float32(0.25):
        inner = u * (float32(1) + u * (float32(0.5) + u * (float32(0.3333333) + u * float32(0.25))))
    else:
        inner = -_rough_log(max(float32(1) - u, TINY))
    return -_rough_log(inner)


MARGIN = 0.01  # more than two estimates can be off by


@compiled(
    "int64(float32[:, ::1], int64[:], int64[:], float32[:], int64, int64[:], int64[:], float32[::1], float32[::1])"
)
def _candidates(logits, seeds, positions, temperatures, block, rows, tokens, uniforms, rough):
    """Tokens whose noised logit may be the highest of their block; how many there are."""
    vocabulary, count = logits.shape[1], 0
    for row in range(len(logits)):
        if temperatures[row] == 0:
            continue
        prefix, line = _row_hash(seeds[row], positions[row]), logits[row]
        for first in range(0, vocabulary, block):
            last = min(first + block, vocabulary)
            for token in range(first, last):
                rough[token - first] = line[token] + _rough_noise(_uniform(prefix, token))
            best = rough[0]
            for i in range(1, last - first):
                best = max(best, rough[i])
            least = best - float32(MARGIN) - float32(4e-7) * abs(best)
            for token in range(first, last):
                if rough[token - first] >= least:
                    if count == len(rows):
                        return -1
                    rows[count], tokens[count], uniforms[count] = row, token, _uniform(prefix, token)
                    count += 1
    return count


def gumbel(u: np.ndarray) -> np.ndarray:
    """The noise of uniform numbers, float32, in the operations and the order of vLLM's kernel."""
    one = np.float32(1)
    polynomial = np.float32(1 / 8)
    for divisor in range(7, 1, -1):
        polynomial = np.float32(1 / divisor) + u * polynomial
    polynomial = one + u * polynomial
    direct = np.log(np.maximum(one - u, TINY))
    return -np.log(-np.where(u < np.float32(0.25), -u * polynomial, direct))


@compiled("void(float32[:, ::1], float32[:], int64, int64[:, :], float32[:, :])")
def _plain_argmax(logits, temperatures, block, argmax, most):
    for row in range(len(logits)):
        for part in range(most.shape[1]):
            argmax[row, part], most[row, part] = part * block, -np.inf
            if temperatures[row] == 0:
                for token in range(part * block, min((part + 1) * block, logits.shape[1])):
                    if logits[row, token] > most[row, part]:
                        argmax[row, part], most[row, part] = token, logits[row, token]


@compiled("void(int64[:], int64[:], float32[:], int64, int64[:, :], float32[:, :])")
def _winners(rows, tokens, values, block, argmax, most):
    for i in range(len(rows)):
        row, part = rows[i], tokens[i] // block
        if values[i] > most[row, part]:
            argmax[row, part], most[row, part] = tokens[i], values[i]


def noised_argmax(logits, seeds, positions, temperatures, block: int, argmax, most) -> None:
    """`gumbel_noised_argmax` by blocks of the vocabulary, in numpy arrays; at temperature 0 without noise.

    logits: [rows, vocabulary] float32, already divided by the temperature; seeds, positions: [rows] int64;
    temperatures: [rows] float32. argmax, most: [rows, blocks], filled.
    """
    _plain_argmax(logits, temperatures, block, argmax, most)
    if not temperatures.any():
        return
    room, count = 64 * most.size, -1
    while count < 0:
        rows, tokens, uniforms = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.float32)
        rough = np.empty(block, np.float32)
        count = _candidates(logits, seeds, positions, temperatures, block, rows, tokens, uniforms, rough)
        room = logits.size  # as for a row of infinities
    rows, tokens = rows[:count], tokens[:count]
    _winners(rows, tokens, logits[rows, tokens] + gumbel(uniforms[:count]), block, argmax, most)


@compiled("float32(int64, int64)")
def philox_uniform(seed, offset):
    """Triton's `tl.rand`, not less than its smallest positive value."""
    mask = uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = uint64(offset) & mask, (uint64(offset) >> uint64(32)) & mask, uint64(0), uint64(0)
    k0, k1 = uint64(seed) & mask, (uint64(seed) >> uint64(32)) & mask
    for _ in range(10):
        a, b = uint64(0xD2511F53) * c0, uint64(0xCD9E8D57) * c2
        c0, c1 = ((b >> uint64(32)) ^ c1 ^ k0) & mask, b & mask
        c2, c3 = ((a >> uint64(32)) ^ c3 ^ k1) & mask, a & mask
        k0, k1 = (k0 + uint64(0x9E3779B9)) & mask, (k1 + uint64(0xBB67AE85)) & mask
    x = int64(c0)
    if x >= 1 << 31:
        x -= 1 << 32
    if x < 0:
        x = -x - 1
    return max(float32(x) * float32(4.6566127342e-10), float32(4.6566127342e-10))
