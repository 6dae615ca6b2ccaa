"""What std logs when its engine starts: what it will do, what memory it takes, and what costs speed."""

from vllm_std import advice
from vllm_std.faults import logger
from vllm_std.patches.groups import attention_layers
from vllm_std.selection.workspace import selection_bytes

MIB = 2**20  # bytes
MESSAGE = (
    "std: the target drafts %s tokens a round over %s of its own KV cache, %s, selection=%s, in %s attention layers on "
    "%s. Room for KV is %.1f %% less than without: key summaries take %.1f MiB, observation queries %.1f, "
    "selection %.1f%s."
)


def announce(speculator, kv_bytes: int) -> None:
    """kv_bytes: of the KV cache."""
    std = speculator.std
    options, selector, layers = std.options, std.selector, std.target.layers
    query_bytes = std.queries.kept.nbytes
    summary_bytes = selector.summaries.means.nbytes if selector.summaries else 0
    sizes = (selector.mask.block_size, len(layers), speculator.max_num_reqs, layers[0].num_heads)
    other_bytes = selection_bytes(options, *sizes)
    token_bytes = std.passes.tokens.nbytes if std.passes is not None else 0  # without proposals, the host has them
    std_bytes = query_bytes + summary_bytes + other_bytes + token_bytes
    all_layers = len(attention_layers(speculator.vllm_config))
    logger.info_once(
        MESSAGE,
        f"up to {std.gamma}" if options.adaptive else std.gamma,
        f"{options.top_k} tokens" if isinstance(options.top_k, int) else f"{options.top_k:.1%} of the context",
        _blocks(selector.mask),
        options.selection,
        f"all {all_layers}" if len(layers) == all_layers else f"{len(layers)} of {all_layers}",
        std.group.backend.get_name(),
        100 * std_bytes / (std_bytes + kv_bytes),
        summary_bytes / MIB,
        query_bytes / MIB,
        other_bytes / MIB,
        f", token ids for proposals {token_bytes / MIB:.1f}" if token_bytes else "",
    )
    _advise(speculator, (query_bytes + other_bytes + token_bytes) // speculator.max_num_reqs)


def _blocks(mask) -> str:
    return (
        f"at most {mask.num_blocks} blocks of {mask.block_size} (sink {mask.sink}, top-K {mask.top}, then a recent "
        f"window of {mask.recent} tokens)"
    )


def _advise(speculator, bytes_each: int) -> None:
    """Log what costs speed; bytes_each: that std keeps for each of max_num_seqs requests."""
    cache, mask = speculator.vllm_config.cache_config, speculator.std.selector.mask
    cached_tokens = cache.num_gpu_blocks * cache.block_size
    sentences = [
        *advice.machine_advice(speculator.device.type),
        *advice.mask_advice(speculator.std.options, mask.block_size),
        *advice.batch_advice(speculator.max_num_reqs, cached_tokens, mask, bytes_each),
    ]
    if sentences:
        logger.warning_once("std: it could be faster here. %s", " ".join(sentences))
