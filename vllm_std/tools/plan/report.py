"""A plan for a terminal, and for programs."""

from dataclasses import asdict, dataclass
from functools import cached_property

from rich.table import Table

from vllm_std.tools.plan.limits import limit_sentences, memory_need, time_shares
from vllm_std.tools.plan.predict import Prediction, fastest, plain_seconds, predictions
from vllm_std.tools.plan.workload import Workload

GB = 1e9  # bytes


@dataclass(frozen=True)
class Plan:
    """model: its name; assumed: nobody said what share of drafts is accepted."""

    model: str
    workload: Workload
    assumed: bool
    has_encoder: bool  # of images or videos, whose weights are not counted

    @cached_property
    def predictions(self) -> list[Prediction]:
        return predictions(self.workload)

    @property
    def nearest(self) -> Prediction | None:
        """The fastest, whether it wins or not; None where no K is below the context."""
        return fastest(self.predictions)

    @property
    def best(self) -> Prediction | None:
        """The fastest if it wins; None too where the batch does not fit, because vLLM would not decode it at once."""
        nearest = self.nearest
        return nearest if nearest and nearest.speedup > 1 and memory_need(self.workload)["fits"] else None


def heading(plan: Plan) -> str:
    workload, device = plan.workload, plan.workload.device.name
    gpus = f"{workload.shape.workers} x {device}" if workload.shape.workers > 1 else device
    requests = f"{workload.batch} request{'s' * (workload.batch > 1)} of {workload.context:,} tokens"
    return f"{plan.model} on {gpus}, {requests}: predicted speed-up over plain decoding"


def speedup_table(plan: Plan) -> Table:
    """Draft lengths by K; the best is starred, and a dash stands where K is not below the context."""
    found = {(one.gamma, one.k): one for one in plan.predictions}
    table = Table()
    for name in ("drafts", *(f"K = {k:,}" for k in plan.workload.ks)):
        table.add_column(name, justify="right", no_wrap=True)
    for gamma in plan.workload.gammas:
        row = [found.get((gamma, k)) for k in plan.workload.ks]
        table.add_row(str(gamma), *("-" if one is None else _speedup(one, plan.best) for one in row))
    return table


def _speedup(one: Prediction, best: Prediction | None) -> str:
    return f"{'*' * (one == best)}{one.speedup:.2f}x"


def lines_below(plan: Plan) -> list[str]:
    """The table."""
    limits = limit_sentences(plan.workload, plan.nearest)
    return [verdict(plan), _times(plan), _memory(plan), *limits, *_assumptions(plan)]


def verdict(plan: Plan) -> str:
    workload, nearest, best = plan.workload, plan.nearest, plan.best
    if nearest is None:
        short = f"a context of {workload.context:,} tokens is not longer than K = {min(workload.ks):,}"
        return f"No draft length wins here: {short}, so std would draft nothing."
    if not memory_need(workload)["fits"]:
        return "This batch does not fit, so vLLM would decode fewer requests at once than the table is about."
    if best is None:
        least = f"the nearest, {_drafts(nearest)}, comes to {nearest.speedup:.2f}x"
        return f"No draft length wins here: {least}, so std would draft nothing."
    options = f'{{"method": "std", "num_speculative_tokens": {best.gamma}, "top_k": {best.k}}}'
    return f"best: {_drafts(best)}, {best.speedup:.2f}x: --speculative-config '{options}'"


def _drafts(one: Prediction) -> str:
    return f"{one.gamma} draft{'s' * (one.gamma > 1)} over K = {one.k:,}"


def _times(plan: Plan) -> str:
    plain = f"A plain step takes {1e3 * plain_seconds(plan.workload):.2f} ms"
    one = plan.nearest
    if one is None:
        return f"{plain}."
    parts = f"verifying {one.verify_ms:.2f}, selection {one.select_ms:.2f}, each draft step {one.draft_ms:.2f}"
    return f"{plain}, a step with {_drafts(one)} {one.step_ms:.2f} ms: {parts}."


def _memory(plan: Plan) -> str:
    need, workload = memory_need(plan.workload), plan.workload
    needs = f"The batch needs {need['kv_bytes'] / GB:.1f} GB of KV cache (key summaries included) beside "
    needs += f"{need['weights_bytes'] / GB:.1f} GB of weights" + " on each GPU" * (workload.shape.workers > 1)
    room = f"of the {need['gpu_bytes'] / GB:.1f} GB of {workload.device.name} vLLM uses {need['usable_bytes'] / GB:.1f}"
    if need["fits"]:
        return f"{needs}, which fits: {room}."
    most = need["largest_batch"]
    instead = f"the largest batch that fits is {most}" if most else "not one request of this context fits"
    return f"{needs}, which DOES NOT FIT: {room}; {instead}."


def _assumptions(plan: Plan) -> list[str]:
    accepted = plan.workload.accepted
    numbers = ", ".join(f"{share:g}" for share in accepted)
    by_position = f"{numbers} of the drafts are accepted, by position"
    told = by_position if len(accepted) > 1 else f"each draft is accepted with probability {numbers}"
    budgets = ",".join(map(str, plan.workload.ks))
    sentences = [
        f"{'Assumed' if plan.assumed else 'Given'}: {told}, whatever K is; in truth a smaller K has fewer accepted.",
        f"Measure it: vllm-std acceptance --model {plan.model} --prompts FILE --k {budgets}; "
        "then give acceptance_by_position of its summary.json as --acceptance.",
        "Times are computed from data sheets, none is measured here.",
    ]
    return sentences + ["Weights of the encoder of images or videos are not counted."] * plan.has_encoder


def as_json(plan: Plan) -> dict:
    workload, nearest, best = plan.workload, plan.nearest, plan.best
    return {
        "model": plan.model,
        "gpu": workload.device.name,
        "tensor_parallel_size": workload.shape.workers,
        "batch": workload.batch,
        "context": workload.context,
        "kv_bytes_per_token": workload.shape.kv_bytes,
        "acceptance": list(workload.accepted),
        "acceptance_is": "assumed" if plan.assumed else "given",
        "source": "predicted",
        "plain_ms": 1e3 * plain_seconds(workload),
        "predictions": [asdict(one) for one in plan.predictions],
        "best": best and asdict(best),
        "verdict": verdict(plan),
        "memory": memory_need(workload),
        "shares": time_shares(workload, nearest),
        "limits": limit_sentences(workload, nearest),
    }
