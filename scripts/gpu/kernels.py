"""The kernels of selection alone: ms of a round by kernel, against a goal that is written here.

The goal is half of the memory's full rate: twice the time in which the card could read the key summaries, the
candidates' keys and the scores of a round once at the rate of its data sheet. Prints a line of JSON for each row.

    PYTHONPATH=.:scripts python -m gpu.kernels
"""

import argparse
import functools
import json
import time
from statistics import median

import torch
from gpu.selection_round import TOP_K, SelectionRound
from gpu.stopwatch import Clock

from vllm_std.roofline.devices import device_here
from vllm_std.selection import keys, queries, ranking, scoring, summaries

GOAL = 2.0  # times the least time
ROWS = ((32, 32768), (256, 2048), (8, 131072))  # requests, tokens of context
TINY_ROWS = ((2, 128), (1, 64))
LAYERS = 28  # with full attention
TINY_LAYERS = 1
REPEATS = 5  # of which the median counts
REPLAYS = 10  # of a CUDA graph, in a repeat
BUSY_CYCLES = 200_000_000  # of the GPU, which it waits so that no launch after them waits for the host
KERNELS = {  # and the module that launches it
    "capture_queries": queries,
    "summarise_blocks": summaries,
    "score_summaries": scoring,
    "block_shares": scoring,
    "choose_candidates": scoring,
    "score_keys": scoring,
    "keep_top_k": ranking,
    "fill_tables": ranking,
}
BEFORE_SELECTION = ("capture_queries", "summarise_blocks")  # kernels that are not in the CUDA graph


def time_kernels(batch: int, context: int, layers: int) -> dict:
    """Figures of a record: ms of a round, median over repeats, of each kernel alone and of all in one CUDA graph."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        torch.cuda.empty_cache()  # of the row before
    else:
        keys.ON_CPU = "interpret"
    timed = SelectionRound(batch, context, layers, device)
    least = timed.least_ms(device_here(torch.cuda.get_device_name() if cuda else "CPU").bandwidth)
    repeats = [ms_by_kernel(timed) for _ in range(1 + REPEATS if cuda else 1)][int(cuda) :]  # the first compiles
    split = {name: round(median(one[name] for one in repeats), 4) for name in KERNELS}
    whole = [sum(ms for name, ms in split.items() if name not in BEFORE_SELECTION)]
    if cuda:
        whole = [ms_in_a_graph(timed) for _ in range(REPEATS)]
    return {
        "batch": batch,
        "context": context,
        "layers": layers,
        "top_k": TOP_K,
        "least_ms": round(least, 4),
        "goal_ms": round(GOAL * least, 4),
        "split_ms": split,
        "ms": round(median(whole), 4),
        "ms_range": [round(min(whole), 4), round(max(whole), 4)],
        "met": median(whole) <= GOAL * least,
    }


def ms_by_kernel(timed: SelectionRound) -> dict[str, float]:
    """Of all launches of each kernel in a round."""
    clock = Clock()
    spans: dict[str, list] = {name: [] for name in KERNELS}
    originals = {name: getattr(module, name) for name, module in KERNELS.items()}
    for name, module in KERNELS.items():
        setattr(module, name, TimedKernel(originals[name], clock, spans[name]))
    try:
        if clock.cuda:
            torch.cuda._sleep(BUSY_CYCLES)
        timed.capture_queries()
        timed.summarise(2)
        timed.select()
        clock.idle()
    finally:
        for name, module in KERNELS.items():
            setattr(module, name, originals[name])
    return {name: sum(clock.ms(first, last) for first, last in marks) for name, marks in spans.items()}


class TimedKernel:
    """A Triton kernel with a mark before and after each launch."""

    def __init__(self, kernel, clock: Clock, spans: list):
        self.kernel = kernel
        self.clock = clock
        self.spans = spans

    def __getitem__(self, grid):
        return functools.partial(self._launch, self.kernel[grid])

    def _launch(self, launch, *args, **kwargs) -> None:
        first = self.clock.mark()
        launch(*args, **kwargs)
        self.spans.append((first, self.clock.mark()))


def ms_in_a_graph(timed: SelectionRound) -> float:
    """Of a round of selection, replayed as the engine replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        timed.select()
    graph.replay()
    clock = Clock()
    first = clock.mark()
    for _ in range(REPLAYS):
        graph.replay()
    last = clock.mark()
    clock.idle()
    return clock.ms(first, last) / REPLAYS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="begin no row after so long")
    parser.add_argument("--tiny", action="store_true", help="tiny rows, on a CPU too")
    args, begun = parser.parse_args(), time.time()
    for batch, context in TINY_ROWS if args.tiny else ROWS:
        if time.time() < begun + 60 * args.minutes:
            print(json.dumps(time_kernels(batch, context, TINY_LAYERS if args.tiny else LAYERS)), flush=True)


if __name__ == "__main__":
    main()
