"""A cost table from data sheets: what each step must read and multiply, and how near to that a GPU comes.

The shares are fitted to one H100 (docs/records/steps-h100.json): they say where its time goes within a tenth, and
are a first guess of any other device.
"""

from vllm_std.control.cost_model import CostModel
from vllm_std.mask import MaskShape
from vllm_std.roofline.devices import Device, device_here
from vllm_std.roofline.shape import Shape
from vllm_std.selection.reads import KeyReads, share_of_kv

# "Measured" is fitted to the H100 record; "assumed" was not measured.
WEIGHTS = 0.85  # of the memory's rate while a pass reads weights, in matrices of some tens of MB; measured
KV = 0.98  # of the memory's rate while attention reads whole contexts of many requests; measured
SCATTERED = 0.45  # of the memory's rate while attention reads a mask; measured, and assumed of selection
ARITHMETIC = 0.6  # of the device's FLOP/s, in passes of so many tokens that arithmetic bounds them; assumed
ALL_REDUCE = 10e-6  # seconds for one token's hidden state, twice a layer, where workers share the model; assumed
SELECTION = 0.1e-3  # seconds for the launches of a selection, however little it reads; assumed
SCORES = 3 * 2  # bytes moved for a block and a query head: a float16 score, written once and read twice


def pass_parts(shape: Shape, device: Device, tokens: int) -> dict[str, float]:
    """Seconds of a pass besides attention: `weights` or, where it takes longer, `arithmetic`; and `launches`."""
    weights = shape.weights.read(tokens) / (WEIGHTS * device.bandwidth)
    arithmetic = 2 * shape.weights.active * tokens / (ARITHMETIC * device.flops)
    bound = {"weights": weights} if weights >= arithmetic else {"arithmetic": arithmetic}
    reduce = 2 * ALL_REDUCE if shape.workers > 1 else 0.0
    return bound | {"launches": device.per_pass + shape.layers * (device.per_layer + reduce)}


def kv_seconds(shape: Shape, device: Device) -> float:
    """Seconds of attention to one cached token, in all layers that see it; the same for one query and for eight."""
    return shape.kv_bytes / (KV * device.bandwidth)


def window_seconds(shape: Shape, device: Device, context: int) -> float:
    """Seconds of one request's attention to its sliding windows, in all layers that have one; in draft steps too."""
    return shape.window_bytes(context) / (KV * device.bandwidth)


def masked_seconds(shape: Shape, device: Device, mask: MaskShape) -> float:
    """Seconds of one request's attention over its mask, in all layers that are masked."""
    return mask.num_blocks * mask.block_size * shape.kv_bytes / (SCATTERED * device.bandwidth)


def summary_bytes(shape: Shape, block_size: int) -> float:
    """Bytes for a cached token, in all masked layers: 1/32 of the KV bytes where both have the model's dtype."""
    return shape.kv_bytes * share_of_kv(shape.value, shape.cached, block_size)


def estimate(
    shape: Shape,
    device: Device,
    mask: MaskShape,
    max_batch: int,
    gamma: int,
    context: int | None = None,
    query_len: int = 1,
) -> CostModel:
    """The costs of drafting with `mask`, up to so many requests and drafts of each; context: tokens of a request, where
    that is known: windows may be longer; query_len: tokens of each request in a draft step."""
    tokens, batch = _grid(max_batch * (gamma + 1)), _grid(max_batch)
    counts = {*tokens, *(query_len * count for count in batch)}
    base = {count: sum(pass_parts(shape, device, count).values()) for count in counts}
    masked, scattered = masked_seconds(shape, device, mask), SCATTERED * device.bandwidth
    read = KeyReads.plan(mask).most  # of long contexts; short ones read fewer, which this overstates
    keys = read * mask.block_size * shape.kv_bytes / 2 / scattered  # of one request
    windows = window_seconds(shape, device, shape.window if context is None else context)
    scores = SCORES * shape.full * shape.heads / mask.block_size
    return CostModel(
        tokens=tokens,
        dense=[base[count] for count in tokens],
        batch=batch,
        draft=[base[query_len * count] + count * (masked + windows) for count in batch],
        select=[SELECTION + count * keys for count in batch],
        per_kv=kv_seconds(shape, device),
        select_per_kv=(summary_bytes(shape, mask.block_size) + scores) / scattered,
        source=f"estimated from the data sheet of {device.name}",
        windows=windows,
    )


def for_engine(vllm_config, device_name: str) -> CostModel:
    """The same from an engine's own settings; also on a device that nobody knows, which the source then says."""
    options, scheduler = vllm_config.speculative_config, vllm_config.scheduler_config
    shape, gamma = engine_shape(vllm_config), options.num_speculative_tokens
    mask, longest = options.mask_shape(vllm_config.cache_config.block_size), vllm_config.model_config.max_model_len
    return estimate(
        shape, device_here(device_name), mask, scheduler.max_num_seqs, gamma, longest, 1 + options.proposals
    )


def engine_windows(vllm_config, device_name: str) -> float:
    """Seconds that the sliding windows of a long request take in each pass, which timed steps cannot tell from others
    that a request takes."""
    longest = vllm_config.model_config.max_model_len
    return window_seconds(engine_shape(vllm_config), device_here(device_name), longest)


def engine_shape(vllm_config) -> Shape:
    workers = vllm_config.parallel_config.tensor_parallel_size
    return Shape.of(vllm_config.model_config, vllm_config.cache_config.cache_dtype, workers)


def _grid(most: int) -> list[int]:
    """Counts up to `most`, four to each doubling: costs bend where arithmetic begins to bound them."""
    steps = {round(2 ** (step / 4)) for step in range(4 * most.bit_length())}
    return sorted({count for count in steps if count < most} | {most})
