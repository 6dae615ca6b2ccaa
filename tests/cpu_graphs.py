"""CUDA graphs without a GPU: records what a capture launches, and replays that alone, as `torch.cuda.CUDAGraph` would.

    with decode_graphs(llm, requests=(1, 2, 4)) as target:       # a running CPU engine; captured as on a GPU
        ...                                                      # target.graphs: {descriptor: CPUGraph}

A replay runs no Python of the model: it repeats the recorded operators and Triton launches on the addresses and with
the scalars of the capture. Capture leaves memory as it was, and intermediate results are spoilt before every replay,
so nothing of the capture can leak into a result. What a CUDA graph would refuse or read after it was freed is an error.
"""

import math
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from helpers import runner_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from triton.runtime.interpreter import InterpretedFunction
from vllm import _custom_ops, envs
from vllm.config.compilation import CUDAGraphMode
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport as SUPPORT
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder, _get_attn_isa
from vllm.v1.worker.gpu import cudagraph_utils

from vllm_std.patches import metadata

aten, ATTEND = torch.ops.aten, _custom_ops.cpu_attention_with_kv_cache
ALLOCATES = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
SYNCS = {aten.is_nonzero, aten.where, aten.resolve_neg, aten.tensor_split, aten.repeat_interleave}
RANDOM_INDEX = 91  # no wild address, and no block, token or row that a test means


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors_in(values) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class CPUGraph:
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self):
        self.steps, self.temporaries, self.replays = [], [], 0
        self.inputs: dict[int, int] = {}  # storage that was there before the capture: references held here

    def replay(self) -> None:
        # The count includes the one who asks.
        if any(torch._C._storage_Use_Count(storage) - 1 <= held for storage, held in self.inputs.items()):
            raise RuntimeError("the graph uses a tensor that was allocated before its capture and has been freed since")
        with torch.inference_mode(), _disable_current_modes():  # one launch: whoever watches operators sees none of it
            self.spoil()
            for step in self.steps:
                step()
        self.replays += 1

    def spoil(self) -> None:
        for tensor in self.temporaries:
            tensor.fill_(math.nan if tensor.dtype.is_floating_point else RANDOM_INDEX)


class Recorder(TorchDispatchMode):
    """Runs and records every operator and Triton launch, and remembers the memory they write."""

    def __init__(self, graph: CPUGraph):
        super().__init__()
        self.graph, self.owned, self.before = graph, set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse(func, args, kwargs)
        if func is aten.fill_.Tensor:  # `x[1:] = 0`: the scalar is a tensor of the host, and travels as launch argument
            args = (args[0], args[1].clone())
            self.owned.add(storage_of(args[1]))
        given = {storage_of(tensor) for tensor in tensors_in((args, kwargs))}
        self.remember(written(func, args, kwargs))
        result = func(*args, **kwargs)
        outputs = tensors_in(result)
        fresh = {i: tensor for i, tensor in enumerate(outputs) if storage_of(tensor) not in given}
        if outputs and not fresh and not func._schema.is_mutable:
            return result  # a view
        self.owned |= {storage_of(tensor) for tensor in fresh.values()}
        self.graph.temporaries += [tensor.detach() for tensor in fresh.values()]
        if func.overloadpacket not in ALLOCATES:
            fresh = {i: tensor.detach() for i, tensor in fresh.items()}
            self.graph.steps.append(partial(again, func, self.fixed(args), self.fixed(kwargs), fresh))
        return result

    def launch(self, function, *args, **kwargs) -> None:
        """Run and record what writes any of its arguments and returns nothing, as one item."""
        with _disable_current_modes():
            self.remember(tensors_in((args, kwargs)))
            step = partial(function, *self.fixed(args), **self.fixed(kwargs))
            step()
            self.graph.steps.append(step)

    def fixed(self, values):
        """`values` with tensors that stay at these addresses whatever becomes of their owners, which are not held."""

        def fix(tensor: Tensor) -> Tensor:
            storage = storage_of(tensor)
            if storage not in self.owned:
                self.graph.inputs[storage] = self.graph.inputs.get(storage, 0) + 1
            return tensor.detach()

        return tree_map_only(Tensor, fix, values)

    def remember(self, writes: list[Tensor]) -> None:
        for storage in (tensor.untyped_storage() for tensor in writes):
            if storage._cdata not in self.owned and storage._cdata not in self.before:
                self.before[storage._cdata] = storage, storage.clone()

    def restore(self) -> None:
        """A capture launches nothing: put back what it has written."""
        for storage, content in self.before.values():
            storage.copy_(content)
        self.before.clear()


def written(func, args, kwargs) -> list[Tensor]:
    """The arguments that an operator writes; all of them where it returns nothing and does not say."""
    schema = func._schema
    named = dict(zip((argument.name for argument in schema.arguments), args)) | kwargs
    writes = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    if not writes and not schema.returns:
        writes = set(named)
    return tensors_in([value for name, value in named.items() if name in writes])


def again(func, args, kwargs, fresh: dict[int, Tensor]) -> None:
    """Repeat an operator; its results go where they went when it was captured."""
    outputs = tensors_in(func(*args, **kwargs))
    for i, tensor in fresh.items():
        if outputs[i].shape != tensor.shape:
            raise RuntimeError(f"{func} gave {tuple(tensor.shape)} at capture and {tuple(outputs[i].shape)} at replay")
        tensor.copy_(outputs[i])


def refuse(func, args, kwargs) -> None:
    """Raise RuntimeError where a capturing CUDA stream would have to wait for the host, or the host for it."""
    packet, masks = func.overloadpacket, []
    if packet in (aten.index, aten.index_put_, aten.index_put):
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
    if packet is aten.index:
        syncs = bool(masks)
    elif packet in (aten.index_put_, aten.index_put):
        syncs = bool(masks) and args[2].numel() > 1  # one value for all goes through masked_fill
    elif packet is aten.lift_fresh:
        syncs = args[0].dim() > 0  # a list or an array of the host; scalars travel as launch arguments
    elif packet in SYNCS:
        syncs = func not in (aten.where.self, aten.tensor_split.sections) and kwargs.get("output_size") is None
    else:
        syncs = bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags))
    if syncs:
        raise RuntimeError(f"{func} in a captured region waits for the device, copies from the host or depends on data")


class NeverWaits(TorchDispatchMode):
    """RuntimeError for every operator that would have a host and a GPU wait for each other."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Tensor.numpy and torch.from_numpy know host tensors only; what goes to the device goes by vLLM's async copy.
        if func.overloadpacket not in (aten.resolve_neg, aten.lift_fresh):
            refuse(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def attend(scheduler_metadata=None, **call) -> None:
    """CPU attention that plans its work itself: the backend plans on the host, once for each build of metadata."""
    query, cache, starts, lengths = (call[name] for name in ("query", "key_cache", "query_start_loc", "seq_lens"))
    heads, size, kv_heads, block = *query.shape[1:], *cache.shape[1:3]
    isa = _get_attn_isa(query.dtype, block, size, call["kv_cache_dtype"])
    plan = torch.ops._C.get_scheduler_metadata(
        len(lengths), heads, kv_heads, size, lengths, query.dtype, starts, call["causal"], call["sliding_window"], isa,
        envs.VLLM_CPU_ATTN_SPLIT_KV, call["dynamic_causal"], call["kv_cache_dtype"],
    )  # fmt: skip
    ATTEND(scheduler_metadata=plan, **call)


@contextmanager
def capture(graph: CPUGraph, pool=None, stream=None, **_):
    """In place of torch.cuda.graph."""
    recorder, run = Recorder(graph), InterpretedFunction.run

    def launch_kernel(kernel, *args, grid, warmup, **kwargs) -> None:
        recorder.launch(partial(run, kernel, grid=grid, warmup=warmup), *args, **kwargs)

    def launch_attention(scheduler_metadata, **call) -> None:
        recorder.launch(attend, **call)

    with ExitStack() as stack:
        stack.callback(graph.spoil)
        stack.callback(recorder.restore)
        stack.enter_context(patch.object(InterpretedFunction, "run", launch_kernel))
        stack.enter_context(patch.object(_custom_ops, "cpu_attention_with_kv_cache", launch_attention))
        stack.enter_context(patch.object(torch.cuda, "is_current_stream_capturing", lambda: True))
        stack.enter_context(recorder)
        yield


@contextmanager
def cpu_graphs(updates_metadata: bool = True, mixed: bool = False):
    """Within it vLLM captures and replays `CPUGraph`s, and CPU attention can do what a capture needs of a backend.

    updates_metadata: whether drafts may run several steps on the metadata of one, as on FlashAttention; mixed: whether
    graphs may hold batches of different query lengths, as on FlashAttention 3.
    """
    builder = CPUAttentionMetadataBuilder
    with (
        patch.object(torch.cuda, "CUDAGraph", CPUGraph),
        patch.object(torch.cuda, "graph", capture),
        patch.object(type(current_platform), "graph_pool_handle", lambda self: (0, 0), create=True),
        patch.object(cudagraph_utils, "tqdm", lambda descs, **_: descs),
        patch.object(_custom_ops, "cpu_attention_with_kv_cache", attend),
        patch.object(builder, "supports_draft_decode_metadata_update", updates_metadata),
        patch.object(builder, "update_draft_decode_metadata", lambda self, metadata: None),
        patch.object(builder, "_cudagraph_support", SUPPORT.ALWAYS if mixed else SUPPORT.UNIFORM_BATCH),
        patch.object(metadata, "plan_again", lambda builder, metadata: None),  # `attend` plans for itself
    ):
        yield


@contextmanager
def decode_graphs(llm, requests=(1, 2, 4, 8), updates_metadata: bool = True, mixed: bool = False):
    """FULL_DECODE_ONLY graphs for batches of `requests`, in an engine that was started without; gone afterwards.

    Yields the target's graph manager; those of a speculator are its own attributes.
    """
    runner = runner_of(llm)
    config, speculator = runner.compilation_config, runner.speculator
    # Sizes are tokens: several for each request where the target verifies drafts, one in a draft step.
    sizes = sorted({count * tokens for count in requests for tokens in (1, runner.decode_query_len)})
    mode = CUDAGraphMode.FULL_DECODE_ONLY
    settings = {"cudagraph_mode": mode, "cudagraph_capture_sizes": sizes, "max_cudagraph_capture_size": sizes[-1]}
    with ExitStack() as stack:
        if speculator is not None:
            stack.callback(set_speculator_mode, speculator, CUDAGraphMode.NONE)
        stack.callback(setattr, runner, "cudagraph_manager", runner.cudagraph_manager)
        stack.enter_context(cpu_graphs(updates_metadata, mixed))
        for name, value in settings.items():
            stack.enter_context(patch.object(config, name, value))
        for layer in config.static_forward_context.values():
            if isinstance(layer, Attention):  # else one operator, that reads vLLM's forward context at replay
                stack.enter_context(patch.object(layer, "use_direct_call", True))
        runner.cudagraph_manager = cudagraph_utils.ModelCudaGraphManager(
            runner.vllm_config, runner.device, mode, decode_query_len=runner.decode_query_len
        )
        if speculator is not None:
            set_speculator_mode(speculator, mode)
        runner.capture_model(profile_only=True)  # else it locks a workspace that CPU workers do not have
        yield runner.cudagraph_manager


def set_speculator_mode(speculator, mode) -> None:
    """What vLLM does at start-up, once attention is known."""
    speculator._configure_decode_metadata_update()
    speculator.init_cudagraph_manager(mode)
