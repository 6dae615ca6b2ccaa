"""vLLM's Model Runner V2, in a worker that drafts with std: the speculator, and what the runner must do for it."""

from vllm_std.patches import fit
from vllm_std.patches.wrapping import Patch, wrap

SPECULATOR = Patch(
    name="speculator",
    replaces="vllm.v1.worker.gpu.spec_decode.init_speculator (and its name in gpu.model_runner)",
    why="a closed if/elif on the method name; `custom_class` exists for Model Runner V1 only",
    upstream="vLLM RFC #47351",
    remove_when="Model Runner V2 builds out-of-tree speculators",
)


def init_speculator(original, vllm_config, device, req_states, *args, **kwargs):
    """gpu.spec_decode.init_speculator. Raises ValueError where this vLLM does not fit."""
    fit.require()  # again, because a worker may be on another machine
    from vllm_std.draft.speculator import StdSpeculator

    _patch_runner()
    return StdSpeculator(vllm_config, device, req_states.all_token_ids.gpu)


def _patch_runner() -> None:
    """Imports of vLLM's inside come after `fit.require`, so that a missing name is one sentence."""
    from vllm_std.patches import adapters, graphs, logprobs, rounds, truncation
    from vllm_std.patches.spec_decode import GPUModelRunner

    logprobs.install()
    wrap(graphs.ModelCudaGraphManager, "__init__", graphs.init)
    wrap(graphs.ModelCudaGraphManager, "capture", graphs.capture)
    wrap(GPUModelRunner, "prepare_inputs", graphs.prepare_inputs)
    wrap(GPUModelRunner, "load_model", truncation.load_model)
    wrap(GPUModelRunner, "sample", adapters.sample)
    wrap(GPUModelRunner, "execute_model", rounds.execute_model)
    wrap(GPUModelRunner, "sample_tokens", rounds.sample_tokens)
