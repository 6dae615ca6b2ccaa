"""What limits a load: the memory of the GPU, and the largest part of each step."""

from vllm_std.roofline.estimate import kv_seconds, masked_seconds, pass_parts, summary_bytes
from vllm_std.tools.plan.predict import BLOCK, Cell, Load, mask_of, windows_seconds

UTILISATION = 0.92  # vLLM's default `--gpu-memory-utilization`
WORKING = 2e9  # bytes: activations of a prefill, and what selection works with; rough

HINTS = {
    "weights": "a larger batch or longer context gains more",
    "launches": "a larger batch or longer context gains more",
    "arithmetic": "a longer context gains more, a larger batch does not",
    "sliding windows": "they are read in every step, masked or not",
    "KV reading": "a smaller K gains more, as long as as many drafts are accepted",
}


def memory(load: Load) -> dict:
    """Bytes on each GPU: for vLLM in all, of weights, and of the KV cache with its mean keys; the largest batch."""
    each = (load.shape.kv_bytes + summary_bytes(load.shape, BLOCK)) * (load.context + max(load.gammas) + 1)
    each += load.shape.window_bytes(load.context)
    room = UTILISATION * load.device.memory
    largest = max(0, int((room - load.shape.stored - WORKING) // each))
    return {
        "gpu_bytes": load.device.memory, "usable_bytes": room, "weights_bytes": load.shape.stored,
        "kv_bytes": load.batch * each, "fits": largest >= load.batch, "largest_batch": largest,
    }  # fmt: skip


def shares(load: Load, cell: Cell | None) -> dict[str, dict[str, float]]:
    """Of the time of a plain step; and of a draft step and the verifying pass of a cell."""
    shape, device, batch = load.shape, load.device, load.batch
    whole = load.kv * kv_seconds(shape, device)
    steps = {"plain step": (batch, whole)}
    if cell is not None:
        steps["draft step"] = batch, batch * masked_seconds(shape, device, mask_of(cell.k))
        steps["verifying pass"] = batch * (cell.gamma + 1), whole
    windows = {"sliding windows": windows_seconds(load)} if shape.windowed else {}
    parts = {
        name: pass_parts(shape, device, tokens) | {"KV reading": kv} | windows for name, (tokens, kv) in steps.items()
    }
    return {name: {part: s / sum(those.values()) for part, s in those.items()} for name, those in parts.items()}


def sentences(load: Load, cell: Cell | None) -> list[str]:
    told = shares(load, cell)
    kv = told["plain step"]["KV reading"]
    said = [f"KV reading is {percent(kv)} of a plain step, and all that a draft step can save."]
    if cell is not None:
        part, share = max(told["draft step"].items(), key=lambda item: item[1])
        verb = "are" if part in ("weights", "launches", "sliding windows") else "is"
        said.append(f"{part[0].upper()}{part[1:]} {verb} {percent(share)} of a draft step: {HINTS[part]}.")
        if "arithmetic" in told["verifying pass"]:
            arithmetic = percent(told["verifying pass"]["arithmetic"])
            said.append(f"Arithmetic is {arithmetic} of the verifying pass: here many drafts cost time to verify.")
    return said


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
