"""What a round of selection should take on an H100, estimated from its kernels as compiled for one; nothing is timed.

    python scripts/kernel_estimates.py                  # needs no GPU; some minutes
    python scripts/kernel_estimates.py --askers 2       # two queries of a request scored in one read

A launch takes the longest of three times, and LAUNCH: its bytes at the memory's full rate; its instructions, one a
cycle and scheduler; and its programs one after the other as far as they do not fit the card at once, each waiting for
memory as often as its loops ask and nothing is on its way. Writes results/kernel_estimates.jsonl and the table of
docs/selection.md.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from marked import write
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection import KeySummaries, QueryWindow, Round, keys, ranking, reading, scoring

ROWS = ((32, 32768), (256, 2048), (8, 131072))  # requests, tokens of context
LAYERS, HEADS, KV_HEADS, SIZE, BLOCK, TOP_K = 28, 28, 4, 128, 16, 1024
GOALS = {32768: 1.2, 2048: 1.0, 131072: 1.2}  # ms
BANDWIDTH, PROCESSORS, CLOCK = 3.35e12, 132, 1.755e9  # bytes/s, and cycles/s of a multiprocessor's 4 schedulers
REGISTERS, SHARED, WARPS, SECTOR = 65536, 227 * 1024, 64, 32  # of a multiprocessor; bytes that memory is read by
LAUNCH, MEMORY, CACHE, BARRIER = 2.5e-6, 0.7e-6, 0.15e-6, 30 / 1.755e9  # s: in a CUDA graph; to be answered; to meet
DEPENDENT = 2  # cycles from one instruction of a warp to the next
STARTS = {"_look": 4, "_read": 5, "_shares": 3, "_pick": 2, "_fill": 4}  # answers awaited one after another at first
RESULTS = Path(__file__).parent / "results" / "kernel_estimates.jsonl"


class Hopper:
    """What Triton asks of a driver before it launches."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)


def launches(reqs: int, context: int, heads: int) -> list[tuple[str, tuple, Any]]:
    """(name, grid, compiled kernel) of each launch of a round."""
    made, plain, cpu = [], JITFunction.run, torch.device("cpu")
    mask, width = MaskShape.plan(TOP_K, 16, 64, BLOCK, context), cdiv(context + 64, BLOCK)

    def run(self, *args, grid, warmup, **kwargs):
        made.append((self.__name__, grid, plain(self, *args, grid=grid, warmup=True, **kwargs)))

    caches = [torch.zeros(2, BLOCK, KV_HEADS, 2 * SIZE, dtype=torch.bfloat16).transpose(1, 2)] * LAYERS
    order = torch.arange(BLOCK)[:, None] * caches[0].stride(2) + torch.arange(SIZE)
    cache = keys.KeyCache(caches, order, plain=True, scales=[1.0] * LAYERS)
    seen = Round(torch.zeros(reqs, width, dtype=torch.int32))
    queries = QueryWindow((LAYERS, reqs, 6, heads, SIZE), torch.bfloat16, cpu)
    means = KeySummaries((LAYERS, 2, KV_HEADS, 1, SIZE), torch.bfloat16, cpu).means
    kept = ranking.Ranking(mask, LAYERS, reqs, context + 64, None, cpu)
    scorer = scoring.Scorer(mask, means, queries.kept, torch.ones(LAYERS), width)
    tables = torch.zeros(LAYERS, reqs, mask.width(5), dtype=torch.int32)
    JITFunction.run = run
    try:
        scorer.run(cache, seen, reqs, kept)
        kept.fill(tables, torch.zeros(reqs, dtype=torch.int32), seen, reqs)
    finally:
        JITFunction.run = plain
    return made


def machine_code(kernel) -> tuple[int, list[tuple[int, str]]]:
    """(registers of a thread, [(address, instruction)])."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = [
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        ]
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S.*?);", said[1])
    return int(re.findall(r"REG:(\d+)", said[0])[0]), [(int(address, 16), text) for address, text in found]


def loops(code: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """(first, last) address of each loop, inner ones first; a program's end jumps to itself."""
    jumps = [(address, re.search(r"\bBRA\S* .*?0x([0-9a-f]+)", text)) for address, text in code]
    back = [(int(found[1], 16), address) for address, found in jumps if found]
    return [(first, last) for first, last in back if first < last]


def counted(code: list[tuple[int, str]], trips: list[float], what: str = "") -> float:
    """Instructions of a warp that have `what` in them; trips: of each loop."""
    found, total = loops(code), 0.0
    assert len(found) == len(trips), f"{len(found)} loops, where {len(trips)} were expected"
    for address, text in code:
        if what in text:
            around = [trip for (first, last), trip in zip(found, trips) if first <= address <= last]
            total += torch.tensor(around, dtype=torch.float64).prod().item()
    return total


def work_of(name: str, grid: tuple, context: int, heads: int, mask: MaskShape) -> tuple[float, list[float], float]:
    """(bytes of a launch, trips of each loop of a program, seconds that a trip of the innermost waits)."""
    blocks, width = context // BLOCK, cdiv(context + 64, BLOCK)
    read = int(reading.Reading.of(mask).blocks(torch.tensor(blocks)))
    pairs, tile = grid[2] if name in ("_look", "_read") else grid[0] if name == "_pick" else grid[1], BLOCK * 4
    sectors = heads / KV_HEADS * 4 + SECTOR * 3 / 4  # of one block's log-sum-exps of one KV head, in the mean
    if name == "_look":
        return pairs * blocks * (KV_HEADS * SIZE * 2 + heads * 4 + 4), [blocks / tile / grid[1]], MEMORY
    if name == "_read":
        each = BLOCK * SIZE * 2 + 2 * sectors
        return pairs * read * (KV_HEADS * each + 8), [max(1, read * BLOCK / tile / grid[1])], MEMORY
    if name == "_shares":
        return pairs * blocks * (heads * 4 + 4), [max(1, blocks / tile / grid[0])], MEMORY
    if name == "_pick":
        tiles = cdiv(blocks, ranking._tile(torch.empty(0, scoring.aligned(width))))
        return pairs * (blocks * 4 + mask.top * 8), [tiles, 16, tiles, tiles], CACHE
    return grid[0] * grid[1] * mask.num_blocks * 20, [], 0.0  # its steps are unrolled


def estimate(name: str, grid: tuple, kernel, context: int, heads: int, mask: MaskShape) -> dict:
    registers, code = machine_code(kernel)
    bytes_, trips, wait = work_of(name, grid, context, heads, mask)
    programs, warps = torch.tensor(grid).prod().item(), kernel.metadata.num_warps
    by_registers = REGISTERS // (8 * cdiv(registers, 8) * 32 * warps)
    fit = min(by_registers, SHARED // (kernel.metadata.shared + 1024), WARPS // warps, 32)
    ahead = max([1, *(int(n) - 1 for n in re.findall(r"memdesc<(\d)x64x\d+xbf16", kernel.asm["ttgir"]))])
    instructions = counted(code, trips)
    waits = STARTS[name] * MEMORY + torch.tensor(trips[: 2 if name == "_pick" else 1]).prod().item() * wait / ahead
    alone = waits + instructions * DEPENDENT / CLOCK + counted(code, trips, "BAR.") * BARRIER
    times = {
        "memory": bytes_ / BANDWIDTH,
        "issue": programs * warps * instructions / (PROCESSORS * 4 * CLOCK),
        "latency": max(1, programs / (PROCESSORS * fit)) * alone,
    }
    same = {"registers": registers, "shared": kernel.metadata.shared, "blocks_a_sm": fit, "warps": warps}
    return same | {"programs": programs, "bytes": bytes_, "s": max(times.values()) + LAUNCH} | times


def round_of(reqs: int, context: int, candidates: int, askers: int) -> dict:
    """A record: figures of each kernel, ms of all its launches, and of the round."""
    reading.CANDIDATES = candidates
    mask, heads, found = MaskShape.plan(TOP_K, 16, 64, BLOCK, context), HEADS * askers, {}
    for name, grid, kernel in launches(reqs, context, heads):
        found.setdefault(name, []).append(estimate(name, grid, kernel, context, heads, mask))
    kernels = {}
    for name, each in found.items():
        fixed = {key: each[0][key] for key in ("registers", "shared", "blocks_a_sm", "warps")}
        times = {f"{key}_ms": round(1e3 * sum(one[key] for one in each), 4) for key in ("memory", "issue", "latency")}
        whole = {key: int(sum(one[key] for one in each)) for key in ("programs", "bytes")}
        ms = round(1e3 * sum(one["s"] for one in each), 3)
        kernels[name] = fixed | whole | times | {"launches": len(each), "ms": ms}
    case = {"requests": reqs, "context": context, "candidates": candidates, "askers": askers}
    return case | {"kernels": kernels, "ms": round(sum(one["ms"] for one in kernels.values()), 2)}


def table(records: list[dict]) -> str:
    """ms by kernel, beside what it moves and how it fits, for the records of `CANDIDATES`; then the others' sums."""
    cases = sorted({(one["candidates"], one["askers"]) for one in records}, key=lambda case: (case[1], -case[0]))
    by_case = {case: [one for one in records if (one["candidates"], one["askers"]) == case] for case in cases}
    first = by_case[cases[0]]
    heads = [f"{one['requests']} x {one['context'] // 1024}K" for one in first]
    lines = [f"| | registers, KiB shared, blocks a SM | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name, one in first[0]["kernels"].items():
        cells = [record["kernels"][name] for record in first]
        said = [f"{c['ms']:.2f} ({c['bytes'] / 1e9:.2f} GB, {c['launches']})" for c in cells]
        fits = f"{one['registers']}, {one['shared'] / 1024:.0f}, {one['blocks_a_sm']}"
        lines.append(f"| `{name}` | {fits} | {' | '.join(said)} |")
    for (candidates, askers), some in by_case.items():
        said = f"all, {candidates}x candidates" + f", {askers} askers" * (askers > 1)
        lines.append(f"| {said} | | {' | '.join('**%.2f**' % one['ms'] for one in some)} |")
    return "\n".join([*lines, f"| goal | | {' | '.join('%.1f' % GOALS[one['context']] for one in first)} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[reading.CANDIDATES, 2])
    parser.add_argument("--askers", type=int, nargs="+", default=[1, 2], help="queries of a request that ask at once")
    parser.add_argument("--check", action="store_true", help="only look whether the page has the table of the records")
    args = parser.parse_args()
    if not args.check:
        driver.set_active(Hopper())
        keys.ON_CPU, scoring.processors = "compile", lambda tensor: PROCESSORS
        cases = [(candidates, askers) for askers in args.askers for candidates in args.candidates]
        records = [round_of(*row, *case) for case in cases for row in ROWS]
        RESULTS.write_text("".join(json.dumps(record) + "\n" for record in records))
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    page = Path(__file__).parents[1] / "docs" / "selection.md"
    write(page, "<!-- estimates begin -->", "<!-- estimates end -->", table(records), args.check)
    print(table(records))


if __name__ == "__main__":
    main()
