"""The kernels of selection, from queries and cache to masked tables: on a GPU against torch, elsewhere interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl
from pipelines import Pipeline, key_cache

from vllm_std.mask import MaskShape
from vllm_std.proposals import kernels as passes
from vllm_std.proposals import matches
from vllm_std.selection import kernels, keys
from vllm_std.selection.keys import TRITON_DTYPES
from vllm_std.selection.scoring import Scorer

pytestmark = pytest.mark.unit

LAYERS, REQS, COLUMNS, WINDOW = 2, 4, 16, 6
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU here compiles for itself")
def test_all_kernels_compile_for_hopper():
    """For bf16, fp16, float32 and fp8 caches, block sizes and head sizes; each within the shared memory of an SM."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = str(Path(__file__).parent / "compile_kernels.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = sorted([*kernels.__all__, *passes.__all__, *matches.__all__])
    assert done.stdout.splitlines()[-1] == f"compiled {' '.join(compiled)}"


def test_the_table_of_estimates_is_made_of_its_records():
    script = str(Path(__file__).parents[1] / "scripts" / "bench" / "kernel_estimates.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


class Case(Pipeline):
    """A round of four requests, one of them not drafting and one not to be scored, on a device."""

    def __init__(self, device, dtype, cached, block_size, heads, kv_heads, size):
        random = torch.Generator().manual_seed(0)
        blocks, mask = REQS * COLUMNS, MaskShape(block_size, sink=1, top=3, recent=2 * block_size)
        caches = torch.randn(LAYERS, blocks, kv_heads, block_size, 2 * size, generator=random).to(cached).to(device)
        scales = [1.0, 0.5 if cached.itemsize == 1 else 1.0]
        cache = key_cache(caches, size, plain=block_size != 32, scales=scales)
        table = torch.randperm(blocks, generator=random).view(REQS, COLUMNS).int()
        super().__init__(mask, cache, table.to(device), heads, dtype)
        starts = torch.arange(REQS + 1, dtype=torch.int32) * WINDOW
        self.load(
            torch.tensor([15, 11, 7, 13]) * block_size + torch.tensor([1, 0, 5, 15]),
            last=self.queries.last_verified(starts, torch.tensor([0, 3, 5, 1])),
            due=torch.tensor([1, 1, 0, 0]),
            drafting=torch.tensor([1, 1, 0, 1]),
            slots=torch.tensor([2, 0, -1, 1]),
        )
        for layer in range(LAYERS):
            query = torch.randn(REQS * WINDOW, heads, size, generator=random).to(dtype)
            self.queries.capture(layer, query.to(device), starts.to(device))

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(tables, seq_lens) of a round, on the host."""
        self.summarise(COLUMNS)
        self.score()
        self.seq_lens.fill_(99)
        tables, seq_lens = self.fill()
        return tables.cpu(), seq_lens.cpu()


CASES = [  # dtype, cached dtype, block size, query heads, KV heads (few: each is a program to interpret), head size
    (torch.float32, torch.float32, 16, 14, 2, 128),
    (torch.float32, torch.float32, 32, 9, 3, 64),
    (torch.float32, torch.float32, 128, 3, 3, 80),
    (torch.bfloat16, torch.bfloat16, 16, 14, 2, 128),
    (torch.bfloat16, torch.bfloat16, 64, 3, 3, 96),
    (torch.bfloat16, torch.float8_e4m3fn, 32, 7, 1, 64),
    (torch.bfloat16, torch.float8_e5m2, 16, 8, 1, 128),
    (torch.float16, torch.float16, 32, 6, 2, 64),
]


@pytest.mark.parametrize("way", ["kernels", "native"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(part).removeprefix("torch.") for part in case))
def test_a_round_is_what_torch_makes_of_it(monkeypatch, case, way):
    monkeypatch.setattr(keys, "ON_CPU", "torch")
    expected, lengths = Case(torch.device("cpu"), *case).run()
    monkeypatch.setattr(keys, "ON_CPU", "interpret" if way == "kernels" else way)
    got, seq_lens = Case(DEVICE if way == "kernels" else torch.device("cpu"), *case).run()
    assert torch.equal(seq_lens, lengths)
    # Sums in another order may swap blocks of nearly the same score.
    same = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(got.flatten(0, 1), expected.flatten(0, 1))]
    most = [len(set(row.tolist())) for row in expected.flatten(0, 1)]
    assert sum(same) >= (1.0 if case[0] == torch.float32 else 0.97) * sum(most)


@pytest.mark.parametrize("case", CASES[:5:2], ids=str)
def test_parts_of_a_request_make_up_the_whole(monkeypatch, case):
    """A GPU has several programs share the blocks of a request, and looks at few blocks at a time."""
    monkeypatch.setattr(keys, "ON_CPU", "torch")
    expected, _ = Case(torch.device("cpu"), *case).run()
    monkeypatch.setattr(keys, "ON_CPU", "interpret")
    monkeypatch.setattr(Scorer, "_splits", lambda self, programs: 3)
    monkeypatch.setattr("vllm_std.selection.tiles.block_tile", lambda scores: 16)
    monkeypatch.setattr("vllm_std.selection.tiles.ways", lambda tensor: 4)
    monkeypatch.setattr("vllm_std.selection.scoring.interpreted", lambda tensor: False)
    monkeypatch.setattr("vllm_std.selection.scoring.TRITON_DTYPES", dict.fromkeys(TRITON_DTYPES, tl.float32))
    got, _ = Case(DEVICE, *case).run()
    assert torch.equal(got, expected) or case[0] != torch.float32


@pytest.mark.parametrize("way", ["kernels", "native"])
@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_one_launch_summarises_as_many_blocks_of_each_request_as_it_lacks(monkeypatch, case, way):
    newest, means = np.array([COLUMNS, 0, 1, 3, 2][:REQS]), []
    for kind in ("torch", "interpret" if way == "kernels" else way):
        monkeypatch.setattr(keys, "ON_CPU", kind)
        round = Case(DEVICE if kind == "interpret" else torch.device("cpu"), *case)
        round.summarise(newest)
        means.append(round.summaries.means.float().cpu())
    torch.testing.assert_close(means[1], means[0], rtol=0.01, atol=0.01)
    assert 0 < means[0].any(-1).sum() < means[0][..., 0].numel()


@pytest.mark.skipif(torch.cuda.is_available(), reason="watches Triton's interpreter")
@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_kernels_stay_inside_what_they_are_given(monkeypatch, case):
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    monkeypatch.setattr(keys, "ON_CPU", "interpret")
    round, launch, given, checked = Case(DEVICE, *case), GridExecutor.__call__, [], []

    def watched(self, *args, **kwargs):
        given[:] = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)] + round.cache.caches
        return launch(self, *args, **kwargs)

    def access(plain, mask_at):
        def check(builder, pointers, *rest):
            address, mask = np.broadcast_arrays(pointers.data, rest[mask_at].data)
            inside = ~mask.astype(bool)
            for tensor in given:
                begin = tensor.untyped_storage().data_ptr()
                inside |= (address >= begin) & (address < begin + tensor.untyped_storage().nbytes())
            assert inside.all()
            checked.append(1)
            return plain(builder, pointers, *rest)

        return check

    monkeypatch.setattr(GridExecutor, "__call__", watched)
    for name, mask_at in (("create_masked_load", 0), ("create_masked_store", 1)):
        monkeypatch.setattr(InterpreterBuilder, name, access(getattr(InterpreterBuilder, name), mask_at))
    round.run()
    assert len(checked) > 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason="loops of a CPU")
def test_loops_leave_openmp_as_vllm_and_torch_have_it():
    """The threads that vLLM has planned for; and no parallel regions within others, which slow torch down."""
    code = """
import ctypes
import numba
import torch
from vllm_std.selection import native
torch.set_num_threads(1)
openmp = ctypes.CDLL(next(line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line))
before = openmp.omp_get_nested()
native._in_torch()
assert numba.get_num_threads() == 1
print(torch.get_num_threads(), before, openmp.omp_get_nested())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "1 0 0"
