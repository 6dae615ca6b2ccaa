"""What drafting may and may not touch: the four invariants of the design, on a real engine, float32."""

import copy

import pytest
import torch
from helpers import Acceptance, draft_lengths, greedy, runner_of, speculator_of, std, token_prompts

from vllm_std.patches import groups

pytestmark = [pytest.mark.engine, pytest.mark.versions]
PROMPTS = token_prompts([45, 300, 620, 97], seed=2)


@pytest.fixture
def engine(engines, plain, models):
    """An engine with std, and what plain vLLM answers to PROMPTS."""
    expected = plain(models("llama"), PROMPTS)
    return engines(models("llama"), std()), expected


class Spy:
    """Calls before(...) and after(...) around every real round of an engine's speculator."""

    def __init__(self, llm, monkeypatch, before=None, after=None):
        self.speculator = speculator_of(llm)
        plain = self.speculator.propose

        def propose(input_batch, attn_metadata, slot_mappings, *args, **kwargs):
            if before:
                before(input_batch, attn_metadata, slot_mappings)
            drafts = plain(input_batch, attn_metadata, slot_mappings, *args, **kwargs)
            if after:
                after(input_batch, attn_metadata, slot_mappings)
            return drafts

        monkeypatch.setattr(self.speculator, "propose", propose)


def record_slots(speculator, monkeypatch) -> list[torch.Tensor]:
    """The slots each draft step writes K/V to, filled in as the engine runs."""
    written, plain = [], speculator._run_model

    def run_model(num_tokens, attn_metadata, slot_mappings, *args, **kwargs):
        if slot_mappings is not None:
            written.append(next(iter(slot_mappings.values()))[:num_tokens].clone())
        return plain(num_tokens, attn_metadata, slot_mappings, *args, **kwargs)

    monkeypatch.setattr(speculator, "_run_model", run_model)
    return written


def test_drafts_write_only_past_the_verified_tokens_of_their_own_request(engine, monkeypatch):
    llm, expected = engine
    runner, speculator = runner_of(llm), speculator_of(llm)
    written, checked = record_slots(speculator, monkeypatch), []

    def check(input_batch, *_):
        tables, owned = runner.block_tables.block_tables[0].gpu, runner.block_tables.num_blocks.np[0]
        for row, slot in enumerate(input_batch.idx_mapping.tolist()):
            verified = int(runner.req_states.num_computed_tokens.gpu[slot])
            blocks = tables[slot, : owned[slot]].tolist()
            for step, slots in enumerate(written):
                place = int(slots[row])
                if place < 0:
                    continue
                position = blocks.index(place // 32) * 32 + place % 32
                assert position == verified + step
                checked.append(position)
        written.clear()

    Spy(llm, monkeypatch, after=check)
    assert greedy(llm, PROMPTS) == expected
    assert len(checked) > 100


def test_the_dense_pass_overwrites_every_drafted_slot(engine, monkeypatch):
    """Rubbish in place of the drafts' K/V, in all layers, changes neither a token nor an accepted draft."""
    llm, expected = engine
    llm.reset_prefix_cache()
    with Acceptance(llm) as clean:
        assert greedy(llm, PROMPTS) == expected
    llm.reset_prefix_cache()
    speculator = speculator_of(llm)
    written = record_slots(speculator, monkeypatch)

    def poison(*_):
        slots = torch.cat(written) if written else torch.empty(0, dtype=torch.int64)
        written.clear()
        for layer in speculator.std.target.layers:
            shape = (len(slots), layer.num_kv_heads, layer.head_size)
            rubbish = torch.full(shape, 1e4)
            layer.impl.do_kv_cache_update(layer, rubbish, -rubbish, layer.kv_cache, slots)

    Spy(llm, monkeypatch, after=poison)
    with Acceptance(llm) as poisoned:
        assert greedy(llm, PROMPTS) == expected
    assert (poisoned.drafted, poisoned.accepted) == (clean.drafted, clean.accepted)


def verified_keys_and_values(llm, prompts, tokens) -> list[torch.Tensor]:
    """[requests] of [layers, blocks, ...]: the full blocks each request leaves behind, as the cache holds them.

    Without a block that the last pass has filled: it is not in the prefix cache yet, so others get it first.
    """
    runner = runner_of(llm)
    tables, plain = {}, runner.sample_tokens

    def sample_tokens(*args, **kwargs):
        batch = runner.execute_model_state.input_batch
        out = plain(*args, **kwargs)
        for req_id, slot in zip(batch.req_ids, batch.idx_mapping.tolist()):
            tables[req_id.split("-")[0]] = runner.block_tables.block_tables[0].gpu[slot].clone()
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "sample_tokens", sample_tokens)
        assert greedy(llm, prompts) == tokens
    caches = [layer.kv_cache for layer in groups.attention_layers(runner.vllm_config).values()]
    kept = []
    for req_id in sorted(tables, key=int):
        computed = len(prompts[len(kept)]["prompt_token_ids"]) + len(tokens[len(kept)]) - 1
        blocks = tables[req_id][: (computed - 8) // 32].long()
        kept.append(torch.stack([cache[blocks] for cache in caches]))
    return kept


def test_verified_keys_and_values_are_plain_vllms_bit_for_bit(engines, plain, models):
    expected = plain(models("llama"), PROMPTS)
    dense = verified_keys_and_values(engines(models("llama")), PROMPTS, expected)
    dense = [blocks.clone() for blocks in dense]
    drafted = verified_keys_and_values(engines(models("llama"), std()), PROMPTS, expected)
    for ours, theirs in zip(drafted, dense):
        assert torch.equal(ours, theirs)


def test_the_targets_pass_sees_nothing_of_the_mask(engine, monkeypatch):
    """Block tables, metadata and slot mappings of the target are the same after a round as before it."""
    llm, expected = engine
    runner, rounds = runner_of(llm), []

    def state(attn_metadata):
        tables = [table.clone() for table in runner.block_tables.input_block_tables]
        fields = {name: copy.deepcopy(vars(metadata)) for name, metadata in attn_metadata.items()}
        # The runner's slot mapping is scratch: it is computed anew for every pass, the draft's among them.
        return tables, {name: {k: v for k, v in f.items() if k != "slot_mapping"} for name, f in fields.items()}

    def before(_, attn_metadata, __):
        rounds.append(state(attn_metadata))

    def after(_, attn_metadata, __):
        for (name, was), (_, now) in zip(rounds[-1][1].items(), state(attn_metadata)[1].items()):
            for field in was:
                same = torch.equal(was[field], now[field]) if torch.is_tensor(was[field]) else was[field] == now[field]
                assert same, (name, field)
        assert all(torch.equal(a, b) for a, b in zip(rounds[-1][0], state(attn_metadata)[0]))

    Spy(llm, monkeypatch, before, after)
    assert greedy(llm, PROMPTS) == expected
    assert len(rounds) > 5


@pytest.mark.parametrize("scores", ["nan", "reversed", "constant"])
def test_wrong_selection_costs_acceptance_only(engine, monkeypatch, scores):
    llm, expected = engine
    ranking = speculator_of(llm).std.selector.ranking
    original = ranking.keep_top_k
    wrong = {
        "nan": lambda right: right * torch.nan,
        "reversed": lambda right: -right,
        "constant": lambda right: right * 0,
    }
    monkeypatch.setattr(ranking, "keep_top_k", lambda right, *rest: original(wrong[scores](right), *rest))
    assert greedy(llm, PROMPTS) == expected


def test_a_round_without_drafts_is_plain_decoding(engine, monkeypatch):
    """The scheduler asks for 3, 0 or 1 drafts in turn, as it does when the draft length follows the load."""
    llm, expected = engine
    turns = draft_lengths(llm, monkeypatch, [3, 0, 1])
    with Acceptance(llm) as seen:
        assert greedy(llm, PROMPTS) == expected
    assert turns.count(0) > 5 and seen.drafted > 0
