"""Which batches std has captured as one CUDA graph each."""

from typing import Any


def token_counts(most: int) -> list[int]:
    """Tokens of the captured batches, up to `most`: 4, then four to each power of two, so that padding adds at most a
    quarter to 8 tokens or more."""
    finer = [step << power for power in range(1, 20) for step in (4, 5, 6, 7)]
    return [count for count in (4, *finer) if count < most] + [most]


def request_counts(most: int) -> list[int]:
    """Requests of the captured batches where each draft length needs graphs of its own."""
    return [count for count in (1, 4, *(16 << power for power in range(16))) if count < most] + [most]


def planned(config, mixed: bool) -> list[dict[str, Any]]:
    """Fields of the batches of which the dense pass is captured as one graph; config: the engine's VllmConfig; mixed:
    whether the attention backend replays batches of mixed query lengths."""
    lengths = sorted({1, *config.speculative_config.draft_lengths} - {0})
    compilation, most = config.compilation_config, config.scheduler_config.max_num_seqs
    sizes = sorted({min(size, most) for size in compilation.cudagraph_capture_sizes})
    limit = min(config.speculative_config.graph_limit, config.scheduler_config.max_num_batched_tokens)
    graphs = [uniform_batch(size, 1) for size in sizes]
    query = 1 + max(lengths)
    if mixed and sizes[-1] == most:  # else a plain step could find none but a graph for longer queries
        for tokens in token_counts(min(limit, most * query)):
            graphs.append({"num_tokens": tokens, "num_reqs": min(tokens, most), "max_query_len": query})
        return graphs
    for query in (1 + length for length in lengths):
        for requests in request_counts(most):
            if requests * query <= limit:
                graphs.append(uniform_batch(requests, query))
    return graphs


def uniform_batch(requests: int, query_len: int) -> dict[str, Any]:
    """As many tokens of each request."""
    return {"num_tokens": requests * query_len, "num_reqs": requests, "uniform_token_count": query_len}
