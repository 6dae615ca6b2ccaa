"""Two ranks: each selects with its own KV heads and asks nothing of the other; both draft the same tokens."""

import pytest
import torch
from helpers import Acceptance, greedy, std, token_prompts
from vllm import SamplingParams, envs
from vllm.platforms import current_platform

MODEL = "ministral"  # full attention in one layer of three, sliding windows in the others: each rank has heads of both
GAMMA, TOKENS = 3, 16
LONG, SHORT = token_prompts([300, 620, 97]), token_prompts([45, 30], seed=1)  # std() masks nothing of the short ones
COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "gather", "broadcast", "barrier", "send", "recv")
SAMPLING = (dict(temperature=0), dict(temperature=0.7, seed=1), dict(temperature=1.0, top_k=50, top_p=0.95))

pytestmark = [
    pytest.mark.skipif(current_platform.is_cuda() and torch.cuda.device_count() < 2, reason="needs two GPUs, or none"),
    pytest.mark.timeout(400),  # a rank that has failed leaves the other waiting
]


@pytest.fixture(scope="module")
def two_ranks(engines, models, plain):
    """An engine with std on two ranks that take notes, and what plain vLLM says to LONG + SHORT on one."""
    expected = plain(models(MODEL), LONG + SHORT, TOKENS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # by itself vLLM wants a NUMA node for each rank
        envs.disable_envs_cache()
        llm = engines(models(MODEL), std(num_speculative_tokens=GAMMA), tensor_parallel_size=2)
    llm.collective_rpc(take_notes)
    return llm, expected


def take_notes(worker) -> None:
    """In a rank: from now on worker.notes has what each round verified, chose and drafted, and how often it asked."""
    from vllm.distributed import get_tp_group

    runner, asked = worker.model_runner, []
    speculator, plain, worker.notes = runner.speculator, runner.speculator.propose, []
    for owner in (get_tp_group().device_communicator, torch.distributed):
        for name in COLLECTIVES:
            if hasattr(owner, name):
                setattr(owner, name, counted(getattr(owner, name), asked))

    def propose(input_batch, *args, **kwargs):
        dense = len(asked)
        drafts = plain(input_batch, *args, **kwargs)
        rows = input_batch.idx_mapping.long()
        note = {
            "verified": runner.req_states.last_sampled_tokens[rows],
            "drafts": drafts,
            "logits": speculator.draft_logits[rows],
            "masks": speculator.std.selector.tables[:, : len(rows)],
        }
        note = {name: value.cpu().clone() for name, value in note.items()}
        worker.notes.append(note | {"asked": (dense, len(asked) - dense)})
        asked.clear()
        return drafts

    speculator.propose = propose


def counted(plain, asked: list):
    def call(*args, **kwargs):
        asked.append(plain)
        return plain(*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def notes(two_ranks) -> list[tuple[dict, dict]]:
    """What the two ranks note in each round of answering LONG, each prompt sampled in another way."""

    def begin(worker):
        worker.notes.clear()

    def end(worker):
        return worker.notes

    llm, _ = two_ranks
    params = [SamplingParams(max_tokens=TOKENS, ignore_eos=True, **sampling) for sampling in SAMPLING]
    llm.collective_rpc(begin)
    llm.generate(LONG, params, use_tqdm=False)
    ours, theirs = llm.collective_rpc(end)
    assert len(ours) == len(theirs) > TOKENS // (GAMMA + 1)
    return list(zip(ours, theirs))


@pytest.mark.supports("tensor parallelism (two CPU processes)")
def test_greedy_tokens_are_plain_vllms(two_ranks):
    llm, expected = two_ranks
    with Acceptance(llm) as seen:
        assert greedy(llm, LONG + SHORT, TOKENS) == expected
    assert 0 < seen.accepted < seen.drafted


def test_a_mask_that_keeps_everything_drafts_what_the_target_says(two_ranks):
    llm, expected = two_ranks
    with Acceptance(llm) as seen:
        assert greedy(llm, SHORT, TOKENS) == expected[len(LONG) :]
    assert seen.rate == 1.0


def test_each_rank_scores_with_its_own_heads(two_ranks):
    """The model has four query heads and two KV heads."""

    def heads(worker):
        speculator = worker.model_runner.speculator
        return speculator.std.queries.kept.shape[3], speculator.std.selector.summaries.means.shape[2]

    assert two_ranks[0].collective_rpc(heads) == [(2, 1), (2, 1)]


def test_masks_of_two_ranks_differ_in_the_blocks_that_were_chosen_and_nowhere_else(notes):
    differing = [(ours["masks"] != theirs["masks"]).any(0).any(0) for ours, theirs in notes]
    columns = torch.stack(differing).any(0).nonzero().flatten()
    assert columns.tolist() == [1], "sink is block 0, and one block is chosen"


@pytest.mark.parametrize("what", ["verified", "drafts", "logits"])
def test_ranks_draft_and_verify_the_same_tokens(notes, what):
    """Each rank samples for itself: greedily, with the seed of a request, with a seed it drew."""
    for ours, theirs in notes:
        assert torch.equal(ours[what], theirs[what])


def test_a_draft_asks_of_other_ranks_what_a_dense_pass_asks_and_selection_nothing(notes):
    asked = [note["asked"] for ranks in notes for note in ranks]
    drafted = [(dense, drafting) for dense, drafting in asked if drafting]  # a part of a prompt alone drafts nothing
    assert len(drafted) > len(asked) / 2
    assert all(drafting == GAMMA * dense > 0 for dense, drafting in drafted)


def fail_once(worker, rank: int | None = None) -> None:
    """In a rank, in all of them or one: the next selection but one raises."""
    from vllm.distributed import get_tp_group

    if rank not in (None, get_tp_group().rank_in_group):
        return
    selector, calls = worker.model_runner.speculator.std.selector, []
    original = selector.select

    def select(*args):
        calls.append(args)
        if len(calls) == 2:
            selector.select = original
            raise RuntimeError("injected")
        original(*args)

    selector.select = select


@pytest.mark.supports("faults of std's own")
def test_a_fault_that_all_ranks_meet_costs_no_request(two_ranks):
    llm, expected = two_ranks
    llm.collective_rpc(fail_once)
    with Acceptance(llm) as seen:
        assert greedy(llm, LONG, TOKENS) == expected[: len(LONG)]
    assert seen.accepted > 0
    assert [m.value for m in llm.get_metrics() if m.name == "vllm:std_faults" and m.labels["where"] == "round"] == [1]


@pytest.mark.supports("faults of std's own")
def test_a_fault_of_one_rank_ends_the_engine_before_ranks_verify_different_drafts(two_ranks, engines):
    """The last test of this engine."""
    llm, _ = two_ranks
    llm.collective_rpc(fail_once, args=(0,))
    with pytest.raises(Exception, match="injected"):
        greedy(llm, LONG, TOKENS)
    engines.close()
