"""Decoding through graphs gives the tokens of eager decoding; what a CUDA graph cannot do is refused or noticed.

There are no CUDA graphs here: tests/cpu_graphs.py stands in for them, and the first half of this file tests it.
"""

import json
import shutil
from contextlib import contextmanager, nullcontext
from functools import partial
from unittest.mock import patch

import pytest
import torch
from helpers import Acceptance, draft_lengths, speculator_of, std, token_prompts
from safetensors.torch import load_file, save_file
from tiny_models import EMBEDDING_SCALE

if torch.cuda.is_available():
    pytest.skip("the CPU stand-in is for machines without a GPU", allow_module_level=True)

import triton
import triton.language as tl
from cpu_graphs import CPUGraph, NeverWaits, capture, decode_graphs
from vllm import SamplingParams

PROMPTS, ANSWERS = token_prompts([45, 200, 97, 160, 20]), [5, 32, 12, 32, 20]


# ------------------------------------------------------------ the stand-in


def captured(function) -> CPUGraph:
    graph = CPUGraph()
    with capture(graph):
        function()
    return graph


@pytest.mark.unit
def test_a_replay_reads_its_inputs_anew_and_writes_where_the_capture_did():
    x, out = torch.ones(3), torch.zeros(3)
    graph = captured(lambda: out.copy_(torch.cat([x[:1], x[1:] * 2])))
    for value in (3.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert out.tolist() == [value, 2 * value, 2 * value]


@pytest.mark.unit
def test_a_capture_changes_nothing():
    count = torch.zeros(4)
    view = count.view(2, 2)[1]
    graph = captured(lambda: view.add_(1))
    assert count.tolist() == [0, 0, 0, 0]
    graph.replay()
    graph.replay()
    assert count.tolist() == [0, 0, 2, 2]


@pytest.mark.unit
def test_scalars_and_addresses_are_those_of_the_capture():
    state = {"x": torch.ones(2), "step": 1}
    out, first = torch.zeros(2), state["x"]
    graph = captured(lambda: out.copy_(state["x"] + state["step"]))
    state |= {"x": torch.full((2,), 10.0), "step": 5}
    graph.replay()
    assert out.tolist() == [2, 2], "Python does not run in a replay"
    first.fill_(7)
    graph.replay()
    assert out.tolist() == [8, 8]


@pytest.mark.unit
def test_a_scalar_of_the_host_is_a_launch_argument():
    x = torch.ones(4)
    graph = captured(lambda: x.__setitem__(slice(2, None), 0))
    for _ in range(2):
        x.fill_(5)
        graph.replay()
        assert x.tolist() == [5, 5, 0, 0]


@triton.jit
def add_kernel(x_ptr, out_ptr, n, amount, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    value = tl.load(x_ptr + index, mask=index < n)
    tl.store(out_ptr + index, value + amount, mask=index < n)


@pytest.mark.unit
def test_triton_launches_are_replayed():
    x, out = torch.zeros(3), torch.zeros(3)

    def function():
        between = torch.empty_like(x)
        add_kernel[(1,)](x, between, 3, 2.0, BLOCK=4)
        out.copy_(between)

    graph = captured(function)
    assert out.tolist() == [0, 0, 0]
    x.fill_(5)
    graph.replay()
    assert out.tolist() == [7, 7, 7]


@pytest.mark.unit
def test_results_of_the_capture_are_spoilt():
    """What one graph computed and another uses is there only after the first was replayed."""
    x, out, kept = torch.ones(2), torch.zeros(2), {}
    first = captured(lambda: kept.update(doubled=x * 2, index=torch.arange(2) * 1))
    second = captured(lambda: out.copy_(kept["doubled"]))
    second.replay()
    assert out.isnan().all() and (kept["index"] > 1).all()
    first.replay()
    second.replay()
    assert out.tolist() == [2, 2]


@pytest.mark.unit
def test_an_input_that_was_freed_is_an_error():
    out = torch.zeros(2)

    def function(scratch):
        return captured(lambda: out.copy_(scratch[:2]))

    kept = torch.ones(4)
    function(kept).replay()
    with pytest.raises(RuntimeError, match="freed"):
        function(torch.ones(4)).replay()


x, index, mask = torch.arange(4.0), torch.tensor([0, 2]), torch.tensor([True, False, True, False])
REFUSED = {
    "item": lambda: x[0].item(),
    "int": lambda: int(x.max()),
    "branch": lambda: 1 if (x > 0).any() else 0,
    "slice": lambda: x[: index[0]],
    "tolist": lambda: x.tolist(),
    "numpy": lambda: x.numpy(),
    "nonzero": lambda: mask.nonzero(),
    "where": lambda: torch.where(mask),
    "mask": lambda: x[mask],
    "mask assigned": lambda: x.__setitem__(mask, torch.ones(2)),
    "list as index": lambda: x[[0, 2]],
    "host list": lambda: torch.tensor([1, 2]),
    "unique": lambda: x.unique(),
    "repeat": lambda: torch.repeat_interleave(index, index),
    "equal": lambda: torch.equal(x, x),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.unit
def test_what_a_capturing_stream_refuses(name):
    with pytest.raises(RuntimeError, match="captured region"), torch.inference_mode():
        captured(REFUSED[name])


@pytest.mark.unit
def test_what_it_allows():
    def function():
        x[mask] = 0.0
        x.masked_fill_(mask, 1.0)
        x[index].sum() + torch.where(mask, x, 0.0).max()
        x[1] = x[0] * 2
        torch.repeat_interleave(index, index, output_size=2)

    captured(function)


# ------------------------------------------------------------ engines


def answers(llm, prompts=PROMPTS, lengths=ANSWERS, extra_args=(None,) * 9) -> list[list[int]]:
    """Greedy tokens, with as many for each prompt as `lengths` says: the batch gets smaller as requests finish."""
    llm.reset_prefix_cache()  # a prompt that is cached takes other passes, and those other drafts
    greedy = {"temperature": 0, "ignore_eos": True}
    params = [SamplingParams(max_tokens=n, extra_args=extra, **greedy) for n, extra in zip(lengths, extra_args)]
    return [list(out.outputs[0].token_ids) for out in llm.generate(prompts, params, use_tqdm=False)]


def replays(manager) -> dict[int, int]:
    """{requests that graphs were captured for: times these were replayed}"""
    counts = dict.fromkeys((desc.num_reqs for desc in manager.graphs), 0)
    for desc, graph in manager.graphs.items():
        counts[desc.num_reqs] += graph.replays
    return counts


def total(manager) -> int:
    return sum(replays(manager).values())


@pytest.fixture(scope="module")
def plain_answers(engines, models):
    return answers(engines(models("llama"), None))


@pytest.mark.engine
def test_plain_decoding(engines, models, plain_answers):
    llm, expected = engines(models("llama"), None), plain_answers
    with decode_graphs(llm) as target:
        assert answers(llm) == expected
        # The prompts take the first pass; then five requests, four, three, and two until the end.
        assert replays(target) == {8: 4, 4: 15, 2: 12, 1: 0}
    assert answers(llm) == expected


@pytest.mark.parametrize("updates_metadata", [True, False], ids=["loop", "step"])
@pytest.mark.engine
def test_eagle_drafting(engines, models, updates_metadata, tmp_path_factory):
    """vLLM's own draft graphs, of the whole loop or, where metadata is rebuilt for each step, of one step."""
    draft = eagle_of(models("llama"), tmp_path_factory.getbasetemp() / "eagle")
    llm = engines(models("llama"), {"method": "eagle", "model": str(draft), "num_speculative_tokens": 3})
    with Acceptance(llm) as eager:
        expected = answers(llm)
    with decode_graphs(llm, updates_metadata=updates_metadata) as target, Acceptance(llm) as seen:
        assert answers(llm) == expected
        speculator = speculator_of(llm)
        passes, prefills = total(target), total(speculator.prefill_cudagraph_manager)
        drafts = total(speculator.decode_cudagraph_manager)
    assert passes == prefills > 0
    assert drafts >= passes * (1 if updates_metadata else 2)  # the first token of three is the prefill's
    assert (seen.drafted, seen.accepted) == (eager.drafted, eager.accepted)
    assert 0 < seen.accepted < seen.drafted


def eagle_of(target, folder):
    """A draft model for `target`: its embeddings and its first layer, deaf to hidden states."""
    if folder.is_dir():
        return folder
    shutil.copytree(target, folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    kept = {name.removeprefix("model."): weight for name, weight in weights.items() if ".layers.0." in name}
    kept.pop("layers.0.input_layernorm.weight")
    kept["embed_tokens.weight"] = weights["model.embed_tokens.weight"]
    size = config["hidden_size"]
    kept["fc.weight"] = torch.eye(size, 2 * size)
    for name in "qkv":  # its attention sees embeddings that no norm has made small
        kept[f"layers.0.self_attn.{name}_proj.weight"] /= EMBEDDING_SCALE / 5
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextmanager
def graphs(llm, requests=(1, 2, 4, 8), mixed: bool = False):
    """With selection by Triton's kernels, which graphs can hold; without graphs the loops of a CPU select."""
    with patch("vllm_std.selection.keys.ON_CPU", "interpret"), decode_graphs(llm, requests, mixed=mixed) as target:
        yield target


@pytest.mark.parametrize("selection", ["verify", "text", "streaming"])
@pytest.mark.engine
def test_std(engines, models, plain_answers, selection):
    llm = engines(models("llama"), std(selection=selection))
    with Acceptance(llm) as eager:
        assert answers(llm) == plain_answers
    with graphs(llm) as target, Acceptance(llm) as seen:
        assert answers(llm) == plain_answers
        speculator = speculator_of(llm)
        passes, rounds = total(target), total(speculator.std.select_graphs)
        drafts = total(speculator.decode_cudagraph_manager)
    assert drafts == speculator.std.gamma * rounds and rounds >= passes > 0
    assert (seen.drafted, seen.accepted) == (eager.drafted, eager.accepted)
    assert 0 < seen.accepted < seen.drafted


@pytest.mark.engine
def test_any_draft_length_replays_the_same_graphs(engines, models, plain_answers, monkeypatch):
    llm = engines(models("llama"), std())
    lengths = draft_lengths(llm, monkeypatch, [3, 1, 0, 2])
    with graphs(llm):
        speculator = speculator_of(llm)
        captured = [*speculator.std.select_graphs.graphs, *speculator.decode_cudagraph_manager.graphs]
        assert answers(llm) == plain_answers
        rounds, drafts = (total(m) for m in (speculator.std.select_graphs, speculator.decode_cudagraph_manager))
        assert [*speculator.std.select_graphs.graphs, *speculator.decode_cudagraph_manager.graphs] == captured
    assert rounds < drafts < 3 * rounds and lengths.count(0) > 3


@pytest.mark.engine
def test_one_graph_serves_requests_with_different_drafts(engines, models, plain_answers, monkeypatch):
    """Where a backend can: every pass without a prompt is a whole graph, whoever has how many drafts."""
    llm = engines(models("llama"), std())
    lengths = draft_lengths(llm, monkeypatch, [3, 1, 0, 2])
    opted_out = [{"std": False} if n == 1 else None for n in range(len(PROMPTS))]
    passes = []

    def dispatched(plain, num_reqs, num_tokens, uniform, max_query_len=None, **others):
        found = plain(num_reqs, num_tokens, uniform, max_query_len=max_query_len, **others)
        if max_query_len is not None:
            passes.append((found.cg_mode.name, uniform, found.max_query_len))
        return found

    with graphs(llm, mixed=True) as target:
        assert {batch.max_query_len for batch in target.graphs} == {None, 4}
        monkeypatch.setattr(target, "dispatch", partial(dispatched, target.dispatch))
        with Acceptance(llm) as seen:
            assert answers(llm, extra_args=opted_out) == plain_answers
    assert {mode for mode, *_ in passes} == {"FULL"} and lengths.count(0) > 3 and seen.accepted > 0
    assert (None, 4) in {(uniform, most) for _, uniform, most in passes}, "some batches had different drafts"
    assert (1, None) in {(uniform, most) for _, uniform, most in passes}, "plain steps have graphs of their own"


@pytest.mark.parametrize("proposals", [0, 2])
@pytest.mark.engine
def test_a_round_never_waits_for_the_device(engines, models, plain_answers, monkeypatch, proposals):
    """From the sampler's results to the drafts; operators that wait on a GPU are errors."""
    llm, rounds = engines(models("llama"), std(proposals=proposals)), []
    speculator = speculator_of(llm)
    plain = speculator.propose

    def propose(*args, **kwargs):
        with NeverWaits():
            rounds.append(1)
            return plain(*args, **kwargs)

    if proposals:  # fewer steps than drafts, so that some are missing
        monkeypatch.setattr(speculator.std, "num_steps", lambda length: min(2, length))
    with graphs(llm):
        monkeypatch.setattr(speculator, "propose", propose)
        assert answers(llm) == plain_answers
    assert len(rounds) > 20 and not speculator.std.faults.logged


@pytest.mark.engine
def test_sampled_drafts_are_those_without_graphs(engines, models):
    llm = engines(models("llama"), std())
    params = [SamplingParams(temperature=0.8, seed=n, max_tokens=20, ignore_eos=True) for n in range(len(PROMPTS))]
    runs = []
    for way in (nullcontext, graphs):
        llm.reset_prefix_cache()
        with way(llm), Acceptance(llm) as seen:
            outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        runs.append(([list(out.outputs[0].token_ids) for out in outputs], seen.drafted, seen.accepted))
    assert runs[0] == runs[1] and runs[0][2] > 0
