"""The kernels of selection alone: ms of a round by kernel, against a goal that is written here.

The goal is half of the memory's full rate: twice the time in which the card could read the mean keys, the candidates'
keys and the scores of a round once at the rate of its data sheet. Prints a line of JSON for each row.
"""

import argparse
import functools
import json
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from gpu_rounds import Clock

from vllm_std.mask import MaskShape, cdiv
from vllm_std.roofline.devices import device_here
from vllm_std.selection import BatchBuffers, KeySummaries, QueryWindow, keys, queries, ranking, scoring, summaries
from vllm_std.selection.keys import KeyCache
from vllm_std.selection.reading import Reading

GOAL = 2.0  # times the least time
ROWS = ((32, 32768), (256, 2048), (8, 131072))  # requests, tokens of context
LAYERS, HEADS, KV_HEADS, SIZE, BLOCK, TOP_K, GAMMA = 28, 28, 4, 128, 16, 1024, 5
KERNELS = {
    "keep queries": (queries, "_keep"), "summarise": (summaries, "_summarise"), "look": (scoring, "_look"),
    "shares": (scoring, "_shares"), "pick, remember": (ranking, "_pick"),
    "read": (scoring, "_read"), "fill": (ranking, "_fill"),
}  # fmt: skip
REPEATS = 5


@dataclass
class Case:
    """A round of `batch` requests that all draft, over random keys that lie as vLLM's FlashAttention has them."""

    batch: int
    context: int
    layers: int
    device: torch.device

    def __post_init__(self):
        self.mask = MaskShape.plan(TOP_K, 16, 64, BLOCK, self.context)
        self.columns = cdiv(self.context + 64, BLOCK)
        blocks, dtype = self.batch * self.columns, torch.bfloat16 if self.device.type == "cuda" else torch.float32
        stored = [
            torch.empty(blocks, BLOCK, KV_HEADS, 2 * SIZE, dtype=dtype, device=self.device).normal_().transpose(1, 2)
            for _ in range(self.layers)
        ]
        order = torch.arange(BLOCK)[:, None] * stored[0].stride(2) + torch.arange(SIZE)
        self.cache = KeyCache(stored, order, plain=True, scales=[1.0] * self.layers)
        table = torch.randperm(blocks, device=self.device).view(self.batch, self.columns).int()
        self.buffers, row = BatchBuffers(table), torch.arange(self.batch, device=self.device, dtype=torch.int32)
        self.window = QueryWindow((self.layers, self.batch, GAMMA + 1, HEADS, SIZE), dtype, self.device)
        self.starts = torch.arange(self.batch + 1, device=self.device, dtype=torch.int32) * (GAMMA + 1)
        self.query = torch.randn(self.batch * (GAMMA + 1), HEADS, SIZE, dtype=dtype, device=self.device)
        flags = torch.ones(2, self.batch, dtype=torch.int32, device=self.device)
        self.buffers.load(row, torch.full_like(row, self.context), torch.full_like(row, 3), flags)
        shape = (self.layers, blocks, KV_HEADS, 1, SIZE)
        self.summaries = KeySummaries(shape, dtype, self.device)
        self.summarise(self.columns)
        self.ranking = ranking.Ranking(self.mask, self.layers, self.batch, self.context + 64, self.device)
        scales = torch.full((self.layers,), SIZE**-0.5, device=self.device)
        self.scorer = scoring.Scorer(self.mask, self.summaries.means, self.window.kept, scales, self.columns)
        self.tables = torch.zeros(
            self.layers, self.batch, self.mask.width(GAMMA), dtype=torch.int32, device=self.device
        )
        self.seq_lens = torch.zeros(self.batch, dtype=torch.int32, device=self.device)

    def see(self) -> None:
        """What the dense pass adds."""
        for layer in range(self.layers):
            self.window.capture(layer, self.query, self.starts)

    def summarise(self, newest: int) -> None:
        """Blocks of each request; a round completes two at most."""
        self.summaries.update(
            self.cache, self.buffers.context_lens, self.buffers.block_table, np.full(self.batch, newest)
        )

    def select(self) -> None:
        """What a CUDA graph of selection holds."""
        self.scorer.run(self.cache, self.buffers, self.batch, self.ranking)
        self.ranking.fill(self.tables, self.seq_lens, self.buffers, self.batch)

    def least_ms(self, bandwidth: float) -> float:
        """Bytes that must be moved, at the full rate of the memory."""
        pairs, item = self.layers * self.batch, self.window.kept.element_size()
        means = self.context // BLOCK * KV_HEADS * SIZE * item
        written = torch.tensor(cdiv(self.context, BLOCK))
        read = int(Reading.of(self.mask).blocks(written)) * BLOCK * KV_HEADS * SIZE * item
        scores = 3 * HEADS * self.columns * 4  # written once by look, read for both shares
        return 1e3 * pairs * (means + read + scores) / bandwidth


def time_kernels(batch: int, context: int, layers: int) -> dict:
    """Figures of a record: ms of a round, median over repeats, of each kernel alone and of all in one CUDA graph."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        torch.cuda.empty_cache()  # of the row before
    else:
        keys.ON_CPU = "interpret"
    case = Case(batch, context, layers, device)
    least = case.least_ms(device_here(torch.cuda.get_device_name() if cuda else "CPU").bandwidth)
    found = {"batch": batch, "context": context, "layers": layers, "top_k": TOP_K, "least_ms": round(least, 4)}
    repeats = [by_kernel(case) for _ in range(1 + REPEATS if cuda else 1)][int(cuda) :]  # the first compiles
    split = {name: round(statistics.median(one[name] for one in repeats), 4) for name in KERNELS}
    whole = (
        [in_a_graph(case) for _ in range(REPEATS)]
        if cuda
        else [sum(split.values()) - split["keep queries"] - split["summarise"]]
    )
    found |= {"goal_ms": round(GOAL * least, 4), "split_ms": split, "ms": round(statistics.median(whole), 4)}
    return found | {
        "ms_range": [round(min(whole), 4), round(max(whole), 4)],
        "met": statistics.median(whole) <= GOAL * least,
    }


def by_kernel(case: Case) -> dict[str, float]:
    """ms of all launches of each kernel in a round. The GPU is kept busy first, so that none waits for the host."""
    clock, spans = Clock(), {name: [] for name in KERNELS}
    plain = {name: getattr(*place) for name, place in KERNELS.items()}
    for name, (module, attribute) in KERNELS.items():
        setattr(module, attribute, Timed(plain[name], clock, spans[name]))
    try:
        if clock.cuda:
            torch.cuda._sleep(200_000_000)
        case.see()
        case.summarise(2)
        case.select()
        clock.idle()
    finally:
        for name, (module, attribute) in KERNELS.items():
            setattr(module, attribute, plain[name])
    return {name: sum(clock.ms(first, last) for first, last in marks) for name, marks in spans.items()}


class Timed:
    """A Triton kernel with a mark before and after each launch."""

    def __init__(self, kernel, clock: Clock, spans: list):
        self.kernel, self.clock, self.spans = kernel, clock, spans

    def __getitem__(self, grid):
        return functools.partial(self._launch, self.kernel[grid])

    def _launch(self, launch, *args, **kwargs) -> None:
        first = self.clock.mark()
        launch(*args, **kwargs)
        self.spans.append((first, self.clock.mark()))


def in_a_graph(case: Case, replays: int = 10) -> float:
    """ms of a round of selection, replayed as the engine replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.select()
    graph.replay()
    clock = Clock()
    first = clock.mark()
    for _ in range(replays):
        graph.replay()
    last = clock.mark()
    clock.idle()
    return clock.ms(first, last) / replays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="begin no row after so long")
    parser.add_argument("--tiny", action="store_true", help="tiny rows, on a CPU too")
    args, begun = parser.parse_args(), time.time()
    for batch, context in ((2, 512), (1, 256)) if args.tiny else ROWS:
        if time.time() < begun + 60 * args.minutes:
            print(json.dumps(time_kernels(batch, context, 2 if args.tiny else LAYERS)), flush=True)


if __name__ == "__main__":
    main()
