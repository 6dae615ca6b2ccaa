"""The loops of proposals on a CPU, compiled by numba; arguments are those of `kernels`, as arrays."""

import numpy as np

from vllm_std.selection.loops.values import compiled


@compiled
def _token(tokens, drafts, base, at):
    """The token of a request at a position."""
    return np.int64(tokens[at]) if at < base else drafts[at - base]


@compiled
def _match(tokens, drafts, base, last, placeholders, min_n, max_n):
    """The position after the longest earlier n-gram like the tokens up to `last`, the latest of these; -1 for none."""
    longest, found = min_n - 1, -1
    for at in range(last - 1, -1, -1):
        if longest >= max_n:
            break
        length = 0
        while length < max_n and length <= at:
            if _token(tokens, drafts, base, at - length) != _token(tokens, drafts, base, last - length):
                break
            length += 1
        if length > longest:
            following = _token(tokens, drafts, base, at + 1)
            if not (placeholders == following).any():
                longest, found = length, at + 1
    return found


@compiled
def _proposed(tokens, drafts, base, last, begin, i):
    """The proposal of number i for after `last`; begin: what `_match` has found."""
    return _token(tokens, drafts, base, last if begin < 0 else begin + i % (last + 1 - begin))


@compiled
def prepare_pass(
    input_ids, positions, seq_lens, sample_rows, sample_positions, steps, rows, bases, counts, limit, masked_lens,
    tokens, drafts, placeholders, min_n, max_n, max_model_len, gamma, query_len,
):  # fmt: skip
    """The inputs of a draft pass, proposals included."""
    wanted = limit[0]
    for row in range(len(rows)):
        slot, base = rows[row], bases[row]
        done = max(min(counts[row], wanted - 1), 0)
        last = base + done
        samples = slot >= 0 and counts[row] < wanted
        begin = _match(tokens[slot], drafts[row], base, last, placeholders, min_n, max_n) if samples else -1
        for i in range(query_len):
            to = row * query_len + i
            token = drafts[row, done]
            if i and samples:
                token = _proposed(tokens[slot], drafts[row], base, last, begin, i - 1)
            input_ids[to] = token
            positions[to] = min(last + i, max_model_len - 1)
            sample_rows[to] = slot if samples and done + i < wanted else -1
            sample_positions[to] = last + i
            steps[to] = min(done + i + 1, gamma)
        masked = masked_lens[row]
        seq_lens[row] = masked + done + query_len - 1 if slot >= 0 else min(masked, 1) * query_len


@compiled
def accept_samples(sampled, input_ids, rows, counts, outcomes, limit, drafts, query_len):
    """Append the samples of a pass to a request's drafts, up to the first one that was not proposed."""
    for row in range(len(rows)):
        if rows[row] < 0 or counts[row] >= limit[0]:
            continue
        before = counts[row]
        for i in range(query_len):
            counts[row] += 1
            drafts[row, counts[row]] = sampled[row * query_len + i]
            if i == query_len - 1:
                break
            came_true = input_ids[row * query_len + i + 1] == sampled[row * query_len + i]
            outcomes[row, 0, i] += came_true
            outcomes[row, 1, i] += 1
            if not came_true or counts[row] >= limit[0]:
                break
        outcomes[row, 0, query_len - 1] += counts[row] - before
        outcomes[row, 1, query_len - 1] += 1


@compiled
def fill_drafts(rows, bases, counts, limit, tokens, drafts, placeholders, min_n, max_n):
    """Proposals in the places that no sample has filled."""
    for row in range(len(rows)):
        if rows[row] >= 0 and counts[row] < limit[0]:
            own, base, last = tokens[rows[row]], bases[row], bases[row] + counts[row]
            begin = _match(own, drafts[row], base, last, placeholders, min_n, max_n)
            for i in range(limit[0] - counts[row]):
                drafts[row, counts[row] + 1 + i] = _proposed(own, drafts[row], base, last, begin, i)
