"""The draft length of each step is chosen: what std does when it does not draft, and who is not drafted for."""

import json

import pytest
from helpers import Acceptance, draft_lengths, greedy, runner_of, scheduler_of, speculator_of, std, token_prompts
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from vllm_std.control import Controller, CostModel
from vllm_std.patches.requests import opts_out

pytestmark = pytest.mark.versions

PROMPTS = token_prompts([300, 90, 420], seed=6)
DENSE = 1e-2  # seconds


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setattr("vllm.envs.VLLM_CACHE_ROOT", str(folder), raising=False)
    return folder / "vllm_std"


@pytest.fixture
def adaptive(engines, models):
    """adaptive(draft step, in dense passes): an engine whose cost table says so."""

    def make(draft: float):
        llm = engines(models("llama"), std(adaptive=True, calibrate=False))
        costs = CostModel([1], [DENSE], [1], [draft * DENSE], [0.0], 0.0, 0.0, "a test")
        lengths = llm.llm_engine.vllm_config.speculative_config.draft_lengths
        controller = scheduler_of(llm).std.controller = Controller(costs, lengths, 8)
        controller.measured = lambda *step: None  # what steps take here is nobody's concern
        return llm

    return make


@pytest.mark.engine
def test_nothing_is_drafted_where_it_does_not_pay(adaptive, plain, models):
    expected = plain(models("llama"), PROMPTS, 40)
    llm = adaptive(draft=1.0)
    with Acceptance(llm) as seen:
        assert greedy(llm, PROMPTS, 40) == expected
    assert seen.drafted == 0 and scheduler_of(llm).std.choice.reason in ("cost", "idle")


@pytest.mark.engine
def test_much_is_drafted_where_it_pays(adaptive, plain, models):
    expected = plain(models("llama"), PROMPTS, 120)
    llm = adaptive(draft=0.01)
    with Acceptance(llm) as seen:
        assert greedy(llm, PROMPTS, 120) == expected
    assert seen.drafted > 50 and seen.accepted > 0


@pytest.mark.engine
def test_a_step_without_drafts_costs_what_a_plain_one_does(engines, models, monkeypatch):
    """No selection, no draft, no query kept, no slot reserved."""
    llm = engines(models("llama"), std())
    speculator, asked = speculator_of(llm), []
    for name in ("_select", "_draft", "_begin"):
        monkeypatch.setattr(speculator, name, lambda *_, name=name, **__: asked.append(name))
    lengths = draft_lengths(llm, monkeypatch, [0])
    monkeypatch.setattr(speculator.std.queries, "capture", lambda layer, query, starts: asked.append(query.shape[0]))
    manager = scheduler_of(llm).kv_cache_manager
    allocate, reserved = manager.allocate_slots, []

    def allocate_slots(*args, **kwargs):
        reserved.append(kwargs["num_lookahead_tokens"])
        return allocate(*args, **kwargs)

    monkeypatch.setattr(manager, "allocate_slots", allocate_slots)
    greedy(llm, PROMPTS, 20)
    assert len(lengths) >= 20 and set(reserved) == {0}
    assert all(tokens > len(PROMPTS) for tokens in asked), "queries are kept while prompts are computed, and only then"


@pytest.mark.engine
def test_slots_are_reserved_for_the_drafts_of_the_step_alone(engines, models, monkeypatch, plain):
    expected = plain(models("llama"), PROMPTS, 40)
    llm = engines(models("llama"), std())
    lengths, manager = draft_lengths(llm, monkeypatch, [0, 2, 3, 0, 0, 1]), scheduler_of(llm).kv_cache_manager
    allocate, reserved = manager.allocate_slots, []

    def allocate_slots(*args, **kwargs):
        reserved.append((lengths[-1], kwargs["num_lookahead_tokens"]))
        return allocate(*args, **kwargs)

    monkeypatch.setattr(manager, "allocate_slots", allocate_slots)
    assert greedy(llm, PROMPTS, 40) == expected
    assert all(asked == slots for asked, slots in reserved) and {slots for _, slots in reserved} == {0, 1, 2, 3}


@pytest.mark.engine
def test_after_a_plain_step_one_token_is_drafted_unscored(engines, models, monkeypatch):
    llm = engines(models("llama"), std())
    draft_lengths(llm, monkeypatch, [0, 0, 0, 3, 3, 3])
    speculator, rounds = speculator_of(llm), []
    plain = speculator.std.selector.begin

    def begin(dense_pass, slots, drafting, has_queries):
        plain(dense_pass, slots, drafting, has_queries)
        rounds.append((has_queries, int(speculator.std.selector.due.sum())))

    monkeypatch.setattr(speculator.std.selector, "begin", begin)
    controller = scheduler_of(llm).std.controller
    observed, observe = [], controller.observe
    monkeypatch.setattr(controller, "observe", lambda *one: observed.append(one) or observe(*one))
    with Acceptance(llm) as seen:
        greedy(llm, PROMPTS[:1], 40)
    assert {(False, 0), (True, 1)} <= set(rounds)
    blind = sum(not asked for asked, _ in rounds)
    scored = sum(drafted for _, drafted, *_ in observed)
    assert blind - 1 <= seen.drafted - scored <= blind, (
        "their outcome says nothing of scored ones; the last may be idle"
    )


@pytest.mark.engine
def test_a_request_opts_out_and_its_neighbours_do_not(engines, models, plain):
    expected = plain(models("llama"), PROMPTS, 40)
    llm, drafted = engines(models("llama"), std()), []
    lengths = scheduler_of(llm).std
    observe = lengths.controller.observe
    params = [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True) for _ in PROMPTS]
    params[1].extra_args = {"std": False}
    lengths.controller.observe = lambda request, *counts: drafted.append(request) or observe(request, *counts)
    try:
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    finally:
        del lengths.controller.observe
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert {request.split("-")[0] for request in drafted} == {outputs[0].request_id, outputs[2].request_id}
    assert not lengths.opted_out, "forgotten with their requests"


@pytest.mark.engine
def test_steps_of_a_batch_where_some_opted_out_are_measured_apart(engines, models):
    """And so are those of the same engine where none did, or all."""
    llm, measured = engines(models("llama"), std()), []
    controller = scheduler_of(llm).std.controller
    controller.measured = lambda length, batch, kv, seconds, mixed, steps: measured.append((length, batch, mixed))
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    out = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, extra_args={"std": False})
    try:
        for asked in ([params, params], [params, out], [out, out]):
            llm.generate(PROMPTS[:2], asked, use_tqdm=False)
    finally:
        del controller.measured
    assert {(3, 2, False), (3, 2, True), (0, 2, False)} <= set(measured)
    assert not {(0, 2, True), (0, 1, True), (3, 1, True)}.intersection(measured)


@pytest.mark.engine
def test_when_all_opt_out_nobody_drafts(engines, models):
    llm = engines(models("llama"), std())
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, extra_args={"std": "false"})
    with Acceptance(llm) as seen:
        llm.generate(PROMPTS, params, use_tqdm=False)
    assert seen.drafted == 0


@pytest.mark.parametrize(
    "said,out", [(False, True), (0, True), (0.0, True), ("False", True), (True, False), (1, False)]
)
@pytest.mark.unit
def test_what_a_request_may_say(said, out):
    assert opts_out(SamplingParams(extra_args={"std": said})) is out
    assert not opts_out(SamplingParams()) and not opts_out(None)


@pytest.mark.parametrize("said", ["no", 2, -1, [], None, {"std": 1}, float("nan")])
@pytest.mark.engine
def test_what_a_request_may_not_say(said, engines, models):
    llm = engines(models("llama"), std())
    with pytest.raises(VLLMValidationError, match="neither true nor false"):
        llm.generate(PROMPTS[:1], SamplingParams(extra_args={"std": said}), use_tqdm=False)
    assert len(greedy(llm, PROMPTS[:1], 4)[0]) == 4, "the engine goes on"


@pytest.mark.engine
def test_steps_are_measured_once_and_kept(engines, models, cache):
    options = dict(max_num_seqs=4, kv_cache_memory_bytes=2**25)
    llm = engines(models("llama"), std(adaptive=True), **options)
    (kept,) = cache.glob("costs-*.json")
    table, costs = json.loads(kept.read_text()), scheduler_of(llm).std.controller.costs
    assert table["source"] == "measured on cpu" and table["batch"] == [1, 4]
    assert 0 < costs.dense_pass(1, 0) <= costs.dense_pass(4, 0) < 10
    plain, drafting = costs.predict([0, 2], 4, 1000)
    assert drafting > plain
    manager = scheduler_of(llm).kv_cache_manager
    assert manager.usage == 0 and not runner_of(llm).req_states.req_id_to_index, "nothing is left of its requests"
    first = costs.dense
    del llm, costs, manager
    llm = engines(models("llama"), std(adaptive=True), max_num_batched_tokens=512, **options)
    costs = scheduler_of(llm).std.controller.costs
    assert costs.dense == first and "kept in" in costs.source


@pytest.mark.engine
def test_without_calibration_the_table_is_estimated(engines, models, cache):
    before = set(cache.glob("*"))
    llm = engines(models("llama"), std(adaptive=True, calibrate=False))
    assert "estimate" in scheduler_of(llm).std.controller.costs.source and set(cache.glob("*")) == before
