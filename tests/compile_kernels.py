"""Compiles the kernels of selection and of proposals for an H100 that need not be there.

Run by test_kernels.py, without interpreter.
"""

import re
from types import SimpleNamespace

import torch
from pipelines import Pipeline, key_cache
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from vllm.v1.worker.gpu.input_batch import InputBuffers

from vllm_std.mask import MaskShape
from vllm_std.proposals.lookup import Lookup
from vllm_std.proposals.passes import DraftPasses
from vllm_std.selection import keys

LAYERS, REQS, BLOCKS = 2, 4, 100
CASES = [  # dtype, cached dtype, block size, query heads, KV heads, head size, plain order
    (torch.bfloat16, torch.bfloat16, 16, 28, 4, 128, True),
    (torch.bfloat16, torch.float8_e4m3fn, 16, 28, 4, 128, True),
    (torch.bfloat16, torch.float8_e5m2, 32, 32, 32, 80, False),
    (torch.float16, torch.float16, 32, 14, 2, 96, True),
    (torch.float32, torch.float32, 128, 9, 3, 64, False),
    (torch.bfloat16, torch.bfloat16, 32, 16, 8, 256, True),
    (torch.bfloat16, torch.bfloat16, 32, 32, 4, 512, True),
    (torch.bfloat16, torch.bfloat16, 16, 64, 8, 64, True),
]


class Hopper:
    """What Triton asks of a driver before it launches."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def compile_all(dtype, cached, block_size, heads, kv_heads, size, plain) -> None:
    mask = MaskShape(block_size, sink=1, top=59, recent=64)
    caches = torch.zeros(LAYERS, BLOCKS, kv_heads, block_size, 2 * size, dtype=cached)
    table = torch.zeros(REQS, 2048, dtype=torch.int32)
    pipeline = Pipeline(mask, key_cache(caches, size, plain), table, heads, dtype)
    query = torch.zeros(REQS * 6, heads, size, dtype=dtype)
    pipeline.queries.capture(0, query, torch.zeros(REQS + 1, dtype=torch.int32))
    pipeline.summarise(2)
    pipeline.score()
    pipeline.fill()


def compile_proposals() -> None:
    reqs, tokens = 32, torch.zeros(32, 1 << 17, dtype=torch.int32)
    speculator = SimpleNamespace(
        idx_mapping=torch.zeros(reqs, dtype=torch.int64),
        draft_tokens=torch.zeros(reqs, 9, dtype=torch.int64),
        input_buffers=InputBuffers(reqs, 2048, torch.device("cpu")),
    )
    passes = DraftPasses(speculator, tokens, Lookup(3, 1, 3, (1, 2)), 8)
    passes.begin(torch.ones(reqs, dtype=torch.int64), 8)
    passes.prepare(reqs)
    passes.accept(torch.zeros(reqs * passes.query_len, dtype=torch.int64), reqs)
    for dtype in (torch.bfloat16, torch.float32):
        passes.fill(reqs, torch.zeros(reqs, 8, 1000, dtype=dtype))


def main() -> None:
    compiled, prefetching, overlapping, original = set(), set(), set(), JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        # KiB: of Ada and Ampere's smaller GPUs, where heads are not larger than most, and of Hopper.
        most = 99 if self.__name__ == "score_summaries" and kwargs["SIZE"] <= 256 else 227
        assert kernel.asm["cubin"] and kernel.metadata.shared <= most * 1024, (self.__name__, kernel.metadata.shared)
        if "cp.async.cg.shared.global" in kernel.asm["ptx"]:
            prefetching.add(self.__name__)
        if re.search(r"async_wait[^\n]*num = [1-9]", kernel.asm["ttgir"]):
            overlapping.add(self.__name__)
        compiled.add(self.__name__)
        return kernel

    driver.set_active(Hopper())
    JITFunction.run, keys.ON_CPU = run, "compile"
    compile_all(*CASES[0])
    assert prefetching == {"score_summaries", "score_keys"}, "what reads most must read vectors, ahead of their use"
    assert overlapping == prefetching, "and not wait for all of them"
    for case in CASES[1:]:
        compile_all(*case)
    compile_proposals()
    print("compiled", *sorted(compiled))


if __name__ == "__main__":
    main()
