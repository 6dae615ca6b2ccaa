"""What a round of selection should take on an H100, estimated from its kernels as compiled for one; nothing is timed.

    python scripts/bench/kernel_estimates.py                  # needs no GPU; some minutes
    python scripts/bench/kernel_estimates.py --askers 1 2     # also two queries of a request, scored in one read

A launch takes the longest of three times, and LAUNCH: its bytes at the memory's full rate; its instructions, one a
cycle and scheduler; and its programs one after the other as far as they do not fit the card at once, each waiting for
memory as often as its loops ask and nothing is on its way. Writes docs/records/kernel_estimates.jsonl and the table of
docs/selection.md.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from compiled_kernels import BLOCK, HEADS, KV_HEADS, SIZE, TOP_K, counted, launches, machine_code, prepare
from marked import write

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection import reads, tiles, workspace

ROWS = ((32, 32768), (256, 2048), (8, 131072))  # requests, tokens of context
GOALS = {32768: 1.2, 2048: 1.0, 131072: 1.2}  # ms
BANDWIDTH, PROCESSORS, CLOCK = 3.35e12, 132, 1.755e9  # bytes/s, and cycles/s of a multiprocessor's 4 schedulers
REGISTERS, SHARED, WARPS, SECTOR = 65536, 227 * 1024, 64, 32  # of a multiprocessor; bytes that memory is read by
LAUNCH, MEMORY, CACHE, BARRIER = 2.5e-6, 0.7e-6, 0.15e-6, 30 / 1.755e9  # s: in a CUDA graph; to be answered; to meet
DEPENDENT = 2  # cycles from one instruction of a warp to the next
STARTS = {  # answers awaited one after another at first
    "score_summaries": 4, "score_keys": 5, "block_shares": 3, "choose_candidates": 2, "keep_top_k": 2, "fill_tables": 4,
}  # fmt: skip
TOP_BLOCKS = ("choose_candidates", "keep_top_k")
RESULTS = Path(__file__).parents[2] / "docs/records/kernel_estimates.jsonl"


def work_of(name: str, grid: tuple, context: int, heads: int, mask: MaskShape) -> tuple[float, list[float], float]:
    """(bytes of a launch, trips of each loop of a program, seconds that a trip of the innermost waits)."""
    blocks, width = context // BLOCK, cdiv(context + 64, BLOCK)
    read = int(reads.KeyReads.plan(mask).blocks(torch.tensor(blocks)))
    pairs = grid[2] if name in ("score_summaries", "score_keys") else grid[0] if name in TOP_BLOCKS else grid[1]
    tile = BLOCK * 4
    lse = workspace.log_sum_dtype(torch.bfloat16).itemsize
    sectors = heads / KV_HEADS * lse + SECTOR * 3 / 4  # of one block's log-sum-exps of one KV head, in the mean
    if name == "score_summaries":
        return pairs * blocks * (KV_HEADS * SIZE * 2 + heads * lse + 4), [blocks / tile / grid[1]], MEMORY
    if name == "score_keys":
        each = BLOCK * SIZE * 2 + 2 * sectors
        return pairs * read * (KV_HEADS * each + 8), [max(1, read * BLOCK / tile / grid[1])], MEMORY
    if name == "block_shares":
        return pairs * blocks * (heads * lse + 4), [max(1, blocks / tile / grid[0])], MEMORY
    if name in TOP_BLOCKS:
        count = cdiv(blocks, tiles.block_tile(torch.empty(0, workspace.aligned(width))))
        return pairs * (blocks * 4 + mask.top * 8), [count, 16, count, count], CACHE
    return grid[0] * grid[1] * mask.num_blocks * 20, [], 0.0  # its steps are unrolled


def estimate(name: str, grid: tuple, kernel, context: int, heads: int, mask: MaskShape) -> dict:
    registers, code = machine_code(kernel.asm["cubin"])
    bytes_, trips, wait = work_of(name, grid, context, heads, mask)
    programs, warps = torch.tensor(grid).prod().item(), kernel.metadata.num_warps
    by_registers = REGISTERS // (8 * cdiv(registers, 8) * 32 * warps)
    fit = min(by_registers, SHARED // (kernel.metadata.shared + 1024), WARPS // warps, 32)
    ahead = max([1, *(int(n) - 1 for n in re.findall(r"memdesc<(\d)x64x\d+xbf16", kernel.asm["ttgir"]))])
    instructions = counted(code, trips)
    waits = STARTS[name] * MEMORY + torch.tensor(trips[: 2 if name in TOP_BLOCKS else 1]).prod().item() * wait / ahead
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
    reads.CANDIDATES_PER_CHOSEN = candidates
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
    """ms by kernel, beside what it moves and how it fits, for `CANDIDATES_PER_CHOSEN`; then the others' sums."""
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
    parser.add_argument("--candidates", type=int, nargs="+", default=[reads.CANDIDATES_PER_CHOSEN, 2, 1])
    parser.add_argument("--askers", type=int, nargs="+", default=[1], help="queries of a request that ask at once")
    parser.add_argument("--check", action="store_true", help="only look whether the page has the table of the records")
    args = parser.parse_args()
    if not args.check:
        prepare(PROCESSORS)
        cases = [(candidates, askers) for askers in args.askers for candidates in args.candidates]
        records = [round_of(*row, *case) for case in cases for row in ROWS]
        RESULTS.write_text("".join(json.dumps(record) + "\n" for record in records))
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    page = Path(__file__).parents[2] / "docs/selection.md"
    write(page, "<!-- estimates begin -->", "<!-- estimates end -->", table(records), args.check)
    print(table(records))


if __name__ == "__main__":
    main()
