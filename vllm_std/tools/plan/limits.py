"""What limits a workload: the memory of the GPU, and the largest part of each step."""

from vllm_std.roofline.estimate import kv_seconds, masked_seconds, pass_parts, summary_bytes
from vllm_std.tools.plan.predict import Prediction, windows_seconds
from vllm_std.tools.plan.workload import BLOCK, Workload, mask_for

UTILISATION = 0.92  # share of the GPU's memory: vLLM's default `--gpu-memory-utilization`
WORKING_BYTES = 2e9  # bytes: activations of a prefill, and what selection works with; rough

PLURAL = {"weights", "launches", "sliding windows"}  # parts of a step that "are" and not "is"
HINTS = {
    "weights": "a larger batch or longer context gains more",
    "launches": "a larger batch or longer context gains more",
    "arithmetic": "a longer context gains more, a larger batch does not",
    "sliding windows": "they are read in every step, masked or not",
    "KV reading": "a smaller K gains more, as long as as many drafts are accepted",
}


def memory_need(workload: Workload) -> dict:
    """Bytes on each GPU: for vLLM in all, of weights, and of the KV cache with its key summaries; the largest batch."""
    shape, device = workload.shape, workload.device
    tokens = workload.context + max(workload.gammas) + 1
    per_request = (shape.kv_bytes + summary_bytes(shape, BLOCK)) * tokens + shape.window_bytes(workload.context)
    usable = UTILISATION * device.memory
    largest = max(0, int((usable - shape.weights.stored - WORKING_BYTES) // per_request))
    return {
        "gpu_bytes": device.memory,
        "usable_bytes": usable,
        "weights_bytes": shape.weights.stored,
        "kv_bytes": workload.batch * per_request,
        "fits": largest >= workload.batch,
        "largest_batch": largest,
    }


def time_shares(workload: Workload, prediction: Prediction | None) -> dict[str, dict[str, float]]:
    """{step: {part: share of its time}} of a plain step, and of a prediction's draft step and verifying pass."""
    shape, device, batch = workload.shape, workload.device, workload.batch
    whole_contexts = workload.kv * kv_seconds(shape, device)
    steps = {"plain step": (batch, whole_contexts)}  # tokens of the pass, seconds of reading KV
    if prediction is not None:
        steps["draft step"] = (batch, batch * masked_seconds(shape, device, mask_for(prediction.k)))
        steps["verifying pass"] = (batch * (prediction.gamma + 1), whole_contexts)
    shares = {}
    for name, (tokens, kv_reading) in steps.items():
        seconds = pass_parts(shape, device, tokens) | {"KV reading": kv_reading}
        if shape.windowed:
            seconds["sliding windows"] = windows_seconds(workload)
        shares[name] = {part: of / sum(seconds.values()) for part, of in seconds.items()}
    return shares


def limit_sentences(workload: Workload, prediction: Prediction | None) -> list[str]:
    shares = time_shares(workload, prediction)
    kv_share = shares["plain step"]["KV reading"]
    sentences = [f"KV reading is {percent(kv_share)} of a plain step, and all that a draft step can save."]
    if prediction is None:
        return sentences
    part, share = max(shares["draft step"].items(), key=lambda item: item[1])
    verb = "are" if part in PLURAL else "is"
    sentences.append(f"{part[0].upper()}{part[1:]} {verb} {percent(share)} of a draft step: {HINTS[part]}.")
    if "arithmetic" in shares["verifying pass"]:
        arithmetic = percent(shares["verifying pass"]["arithmetic"])
        sentences.append(f"Arithmetic is {arithmetic} of the verifying pass: here many drafts cost time to verify.")
    return sentences


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
