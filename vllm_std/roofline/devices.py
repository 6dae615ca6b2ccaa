"""What a roofline needs to know of a GPU, from the vendors' data sheets."""

import os
import re
from dataclasses import dataclass, replace

import torch

PER_PASS = 0.2e-3  # seconds of a pass besides its layers, for sampling and the host's part; measured on an H100
PER_LAYER = 35e-6  # seconds between the ten or so kernels of a layer, in a CUDA graph; measured on an H100
FLOPS_PER_BYTE = 200  # of a GPU without a data sheet here; an A100 has 153, an L40S 419, an H100 295
TRANSFERS_PER_CLOCK = 2  # of a GPU's memory
# Words in the names of GPUs that share no more than a name with the whole one: of a laptop, or a slice.
OTHER = {"laptop", "max", "mig"}


@dataclass(frozen=True)
class Device:
    """bandwidth: bytes/s of memory; flops: FLOP/s of dense bfloat16 matrices, without sparsity; memory: bytes.

    per_pass, per_layer: seconds that a pass takes however little it reads.
    """

    name: str
    bandwidth: float
    flops: float
    memory: float
    per_pass: float = PER_PASS
    per_layer: float = PER_LAYER


# name: TB/s, dense bf16 TFLOP/s, GiB as the driver counts them. Of a family, the one meant by its bare name comes last.
DATA_SHEETS = {
    "B200": (8.0, 2250, 178),
    "H200": (4.8, 989, 139.8),
    "GH200": (4.0, 989, 94.5),
    "H100 PCIe": (2.04, 756, 79.2),
    "H100 NVL": (3.94, 835, 93.1),
    "H100": (3.35, 989, 79.2),  # SXM
    "H800": (3.35, 989, 79.2),
    "H20": (4.0, 148, 95.1),
    "A100 40GB": (1.555, 312, 39.4),
    "A100 PCIe": (1.935, 312, 79.2),
    "A100": (2.039, 312, 79.2),  # SXM, 80 GB
    "L40S": (0.864, 362, 44.4),
    "L40": (0.864, 181, 44.4),
    "L4": (0.3, 121, 22.0),
    "A10G": (0.6, 70, 22.0),
    "A10": (0.6, 125, 22.0),
    "RTX A6000": (0.768, 155, 47.4),
    "RTX 5090": (1.792, 209, 31.4),
    "RTX 4090": (1.008, 165, 23.5),
    "RTX 3090": (0.936, 71, 23.6),
    "MI325X": (6.0, 1307, 255),
    "MI300X": (5.3, 1307, 191),
}
DEVICES = {name: Device(name, t * 1e12, f * 1e12, gib * 2**30) for name, (t, f, gib) in DATA_SHEETS.items()}


def cpu() -> Device:
    """A desktop's memory, assumed: a server's is several times as fast, that of two shared cores a fraction.

    What every pass takes was measured on two such cores, with vLLM's Triton kernels interpreted and no graphs.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("CPU", bandwidth=50e9, flops=1e12, memory=memory, per_pass=10e-3, per_layer=0.3e-3)


def device_named(
    name: str, memory_clock: int | None = None, bus_width: int | None = None, memory: float | None = None
) -> Device:
    """The device of a data sheet's name ("H100") or torch's ("NVIDIA H100 80GB HBM3"); "CPU" is one too.

    memory_clock, bus_width, memory: kHz, bits and bytes of a GPU without a data sheet here, as torch's device
    properties have them. Raises ValueError where there is neither.
    """
    words = _words(name)
    if words == {"cpu"}:
        return cpu()
    for device in DEVICES.values() if not words & OTHER else ():
        if _words(device.name) <= words:
            return device
    if memory_clock and bus_width:
        bandwidth = TRANSFERS_PER_CLOCK * memory_clock * 1e3 * bus_width / 8
        return Device(name, bandwidth, FLOPS_PER_BYTE * bandwidth, memory or 0.0)
    raise ValueError(f"{name} is not a GPU whose data sheet is known here: use one of {', '.join(DEVICES)}, or CPU.")


def device_here(name: str) -> Device:
    """This process's device, as vLLM names it; one that nobody knows is taken to be like an A100."""
    facts: tuple[int, ...] = ()
    if torch.cuda.is_initialized():  # else asking would take memory of the GPU
        found = torch.cuda.get_device_properties()
        facts = found.memory_clock_rate, found.memory_bus_width, found.total_memory
    try:
        return device_named(name, *facts)
    except ValueError:
        return replace(DEVICES["A100"], name=f"an A100, for want of one of {name}")


def _words(name: str) -> set[str]:
    """So that "A100 80GB" and "A100-SXM4-80GB" have words in common, and "L4" is no part of "L40"."""
    return {word.removesuffix("gb") for word in re.findall("[a-z0-9]+", name.lower())}
