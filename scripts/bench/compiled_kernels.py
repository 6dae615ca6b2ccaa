"""The kernels of a round of selection as compiled for an H100 that need not be there, and what they are made of."""

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vllm_std.mask import MaskShape, cdiv
from vllm_std.selection import keys, tiles

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from pipelines import Pipeline, key_cache  # noqa: E402

LAYERS, HEADS, KV_HEADS, SIZE, BLOCK, TOP_K = 28, 28, 4, 128, 16, 1024  # a 7B model with grouped queries


class Hopper:
    """What Triton asks of a driver before it launches."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)


def prepare(processors: int) -> None:
    """Have everything compiled from now on, for a card of so many multiprocessors, and nothing run."""
    driver.set_active(Hopper())
    keys.ON_CPU = "compile"
    tiles.processors = lambda tensor: processors


@functools.cache
def launches(reqs: int, context: int, heads: int) -> list[tuple[str, tuple, Any]]:
    """(name, grid, compiled kernel) of each launch of a round; `CANDIDATES_PER_CHOSEN` changes none of them."""
    made, original = [], JITFunction.run
    mask, width = MaskShape.plan(TOP_K, 16, 64, BLOCK, context), cdiv(context + 64, BLOCK)

    def run(self, *args, grid, warmup, **kwargs):
        made.append((self.__name__, grid, original(self, *args, grid=grid, warmup=True, **kwargs)))

    caches = [torch.zeros(2, BLOCK, KV_HEADS, 2 * SIZE, dtype=torch.bfloat16).transpose(1, 2)] * LAYERS
    table = torch.zeros(reqs, width, dtype=torch.int32)
    pipeline = Pipeline(mask, key_cache(caches, SIZE), table, heads, torch.bfloat16)
    JITFunction.run = run
    try:
        pipeline.score()
        pipeline.fill()
    finally:
        JITFunction.run = original
    return made


@functools.cache
def machine_code(cubin: bytes) -> tuple[int, list[tuple[int, str]]]:
    """(registers of a thread, [(address, instruction)])."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", "-sass", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S.*?);", said)
    return int(re.findall(r"REG:(\d+)", said)[0]), [(int(address, 16), text) for address, text in found]


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
