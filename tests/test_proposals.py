"""Draft passes over several tokens of each request, by loops and by (interpreted) kernels, against plain Python."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vllm_std.control import Controller
from vllm_std.control.cost_model import CostModel
from vllm_std.control.proposals import ProposalEstimator
from vllm_std.proposals import passes
from vllm_std.proposals.lookup import Lookup
from vllm_std.proposals.passes import DraftPasses
from vllm_std.selection import keys

pytestmark = pytest.mark.unit

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REQS, SLOTS, MAX_LEN, GAMMA, VOCABULARY = 5, 8, 96, 6, 40
PLACEHOLDER = 39


def follows(context: list[int], min_n: int, max_n: int, placeholders=()) -> int | None:
    """Where the longest n-gram that a context ends with was before, the latest of these: the position after it."""
    for n in range(min(max_n, len(context) - 1), min_n - 1, -1):
        for after in range(len(context) - 1, n - 1, -1):
            if context[after - n : after] == context[-n:] and context[after] not in placeholders:
                return after
    return None


def proposed(context: list[int], count: int, *lookup) -> list[int]:
    after = follows(context, *lookup)
    if after is None:
        return context[-1:] * count
    repeated = list(context)
    for i in range(count):
        repeated.append(repeated[after + i])
    return repeated[len(context) :]


def sparse_model(context: list[int], seed: int) -> int:
    """A token that depends on the last two, and seldom on all."""
    rng = np.random.default_rng([seed, *(context if context[-1] == 1 else context[-2:])])
    return int(rng.integers(4))


class Batch:
    """Requests at rows of vLLM's request state in any order; one row does not draft."""

    def __init__(self, seed: int, lookup: Lookup, monkeypatch, on_cpu: str):
        monkeypatch.setattr(keys, "ON_CPU", on_cpu)
        monkeypatch.setattr(passes, "PART", 16)
        monkeypatch.setattr(passes, "VOCABULARY_PART", 16)
        rng = np.random.default_rng(seed)
        self.seed, self.lookup = seed, lookup
        self.tokens = torch.from_numpy(rng.integers(4, size=(SLOTS, MAX_LEN))).int()
        self.tokens[:, 3:9] = PLACEHOLDER
        self.rows = torch.from_numpy(rng.permutation(SLOTS)[:REQS].copy())
        self.lens = torch.from_numpy(rng.integers(1, MAX_LEN - 2 * GAMMA, size=REQS))
        self.lens[0] = 0
        drafts = torch.from_numpy(rng.integers(4, size=(SLOTS, GAMMA + 1)))
        self.contexts = [
            self.tokens[row, :length].tolist() + [int(drafts[i, 0])]
            for i, (row, length) in enumerate(zip(self.rows.tolist(), self.lens.tolist()))
        ]
        self.rows[2] = -1
        speculator = SimpleNamespace(
            idx_mapping=torch.full((SLOTS,), -1).to(DEVICE),
            draft_tokens=drafts.to(DEVICE),
            input_buffers=SimpleNamespace(
                input_ids=torch.zeros(64, dtype=torch.int32, device=DEVICE),
                positions=torch.zeros(64, dtype=torch.int64, device=DEVICE),
                seq_lens=torch.zeros(SLOTS, dtype=torch.int32, device=DEVICE),
                query_start_loc=torch.zeros(SLOTS + 1, dtype=torch.int32, device=DEVICE),
            ),
        )
        speculator.idx_mapping[:REQS] = self.rows
        self.passes = DraftPasses(speculator, self.tokens.to(DEVICE), lookup, GAMMA)
        self.inputs, self.drafts = speculator.input_buffers, speculator.draft_tokens

    def begin(self, limit: int) -> None:
        self.passes.begin(self.lens.to(DEVICE), limit)
        masked = torch.where(self.rows >= 0, self.lens.clamp(max=20) + 1, 1)
        self.passes.masked_lens[:REQS] = masked.int()

    def run(self) -> None:
        """One pass, in which the model samples after the tokens that it is given."""
        self.passes.prepare(REQS)
        query = self.passes.query_len
        given = self.inputs.input_ids[: REQS * query].view(REQS, query).tolist()
        sampled = []
        for i, tokens in enumerate(given):
            done = min(int(self.passes.counts[i]), int(self.passes.limit) - 1)
            before = self.contexts[i] + self.drafts[i, 1 : 1 + done].tolist()
            sampled += [sparse_model(before[:-1] + tokens[: j + 1], self.seed) for j in range(query)]
        self.passes.accept(torch.tensor(sampled, device=DEVICE), REQS)

    def samples(self, i: int) -> list[int]:
        """What request i drafts one by one."""
        context = list(self.contexts[i])
        for _ in range(GAMMA):
            context.append(sparse_model(context, self.seed))
        return context[len(self.contexts[i]) :]


@pytest.fixture(params=["native", "interpret"])
def batch(request, monkeypatch):
    return lambda seed, lookup: Batch(seed, lookup, monkeypatch, request.param)


LOOKUPS = [Lookup(1, 1, 3, ()), Lookup(3, 1, 3, (PLACEHOLDER,)), Lookup(4, 2, 2, (38, PLACEHOLDER))]


@pytest.mark.parametrize("lookup", LOOKUPS, ids=str)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [1, 4, GAMMA])
def test_drafts_are_those_of_passes_over_one_token(batch, lookup, seed, limit):
    made = batch(seed, lookup)
    made.begin(limit)
    before = made.drafts.clone()
    for _ in range(limit):
        made.run()
    for i, row in enumerate(made.rows.tolist()):
        if row < 0:
            assert torch.equal(made.drafts[i], before[i]) and made.passes.outcomes[i].sum() == 0
        else:
            assert made.drafts[i, 1 : 1 + limit].tolist() == made.samples(i)[:limit]
            assert made.passes.counts[i] == limit


@pytest.mark.parametrize("lookup", LOOKUPS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_pass_is_given_the_last_token_and_what_the_lookup_proposes(batch, lookup, seed):
    made, query = batch(seed, lookup), 1 + lookup.proposals
    made.begin(GAMMA - 1)
    for _ in range(3):
        counts = made.passes.counts.clone()
        made.run()
        starts = made.inputs.query_start_loc.tolist()
        assert starts == [min(i, REQS) * query for i in range(SLOTS + 1)]
        for i, row in enumerate(made.rows.tolist()):
            count = int(counts[i])
            part = slice(i * query, (i + 1) * query)
            if row < 0:
                assert (made.passes.sample_rows[part] == -1).all() and made.inputs.seq_lens[i] == query
                continue
            if count < GAMMA - 1:
                context = made.contexts[i] + made.drafts[i, 1 : 1 + count].tolist()
                proposals = proposed(context, query - 1, lookup.min_n, lookup.max_n, lookup.placeholders)
                assert made.inputs.input_ids[part].tolist() == context[-1:] + proposals
            at = int(made.lens[i]) + min(count, GAMMA - 2)
            assert made.inputs.positions[part].tolist() == [at + j for j in range(query)]
            assert made.passes.sample_positions[part].tolist() == [at + j for j in range(query)]
            wanted = [row if count + j < GAMMA - 1 else -1 for j in range(query)]
            assert made.passes.sample_rows[part].tolist() == wanted
            steps = [min(min(count, GAMMA - 2) + j + 1, GAMMA) for j in range(query)]
            assert made.passes.steps[part].tolist() == steps
            attended = min(int(made.lens[i]), 20) + 1 + min(count, GAMMA - 2) + query - 1
            assert made.inputs.seq_lens[i] == attended


@pytest.mark.parametrize("lookup", LOOKUPS, ids=str)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_missing_drafts_are_proposals_drawn_with_certainty(batch, lookup, seed, dtype):
    made = batch(seed, lookup)
    logits = torch.randn(SLOTS, GAMMA, VOCABULARY, dtype=dtype, device=DEVICE)
    before = logits.clone()
    made.begin(GAMMA - 1)
    for _ in range(2):
        made.run()
    made.passes.fill(REQS, logits)
    for i, row in enumerate(made.rows.tolist()):
        count = int(made.passes.counts[i])
        if row >= 0 and count < GAMMA - 1:
            context = made.contexts[i] + made.samples(i)[:count]
            missing = proposed(context, GAMMA - 1 - count, lookup.min_n, lookup.max_n, lookup.placeholders)
            assert made.drafts[i, 1:GAMMA].tolist() == made.samples(i)[:count] + missing
            shares = logits[row, count : GAMMA - 1].float().softmax(-1)
            assert shares.argmax(-1).tolist() == missing and (shares.amax(-1) == 1).all()
            logits[row, count : GAMMA - 1] = before[row, count : GAMMA - 1]
    assert torch.equal(logits, before), "all others stay as they were"


def test_no_drafts_of_a_finished_request_change(batch):
    made = batch(0, LOOKUPS[1])
    made.begin(2)
    for _ in range(2):
        made.run()
    drafts, counts, outcomes = made.drafts.clone(), made.passes.counts.clone(), made.passes.outcomes.clone()
    made.run()
    assert torch.equal(made.drafts, drafts) and torch.equal(made.passes.counts, counts)
    assert torch.equal(made.passes.outcomes, outcomes) and (made.passes.sample_rows[: REQS * 4] == -1).all()


@pytest.mark.parametrize("seed", range(3))
def test_outcomes_are_counted(batch, seed):
    made, lookup = batch(seed, LOOKUPS[1]), LOOKUPS[1]
    made.begin(GAMMA)
    expected = torch.zeros(2, 1 + lookup.proposals, dtype=torch.int64)
    for _ in range(GAMMA):
        counts = made.passes.counts.tolist()
        made.run()
        for i in (i for i, row in enumerate(made.rows.tolist()) if row >= 0 and counts[i] < GAMMA):
            drafted = made.samples(i)[counts[i] :]
            context = made.contexts[i] + made.samples(i)[: counts[i]]
            proposals = proposed(context, lookup.proposals, lookup.min_n, lookup.max_n, lookup.placeholders)
            true = [proposals[: j + 1] == drafted[: j + 1] for j in range(len(proposals))]
            for j in range(min(len(proposals), len(drafted))):
                expected[1, j] += j == 0 or true[j - 1]
                expected[0, j] += true[j]
            expected[0, -1] += made.passes.counts[i].item() - counts[i]
            expected[1, -1] += 1
    made.passes.count()
    assert made.passes.totals.tolist() == expected.tolist() and expected[0, -1] == GAMMA * (REQS - 1)


# ------------------------------------------------------------ how many steps


def test_a_round_takes_as_many_steps_as_its_drafts_until_proposals_come_true():
    estimator = ProposalEstimator(3)
    assert [estimator.steps(length) for length in (0, 1, 5)] == [0, 1, 5]
    for _ in range(300):
        estimator.count([[8, 6, 3], [16, 8, 6]])
    assert estimator.drafts_a_step == pytest.approx(1 + 0.5 + 0.5 * 0.75 + 0.5 * 0.75 * 0.5, rel=0.1)
    assert [estimator.steps(length) for length in (0, 1, 5, 8)] == [0, 1, 3, 4]
    for _ in range(300):
        estimator.count([[0, 0, 0], [16, 0, 0]])
    assert estimator.steps(5) == 5
    assert ProposalEstimator(0).steps(5) == 5, "without proposals"


def test_steps_that_draft_more_make_longer_drafts_pay():
    model = CostModel([1, 512], [1e-2, 1.1e-2], [1, 64], [6e-3] * 2, [1e-4] * 2, 2e-8, 1e-9, "made up")
    controllers = [Controller(model, (0, 1, 2, 3, 5, 8), 64, proposals) for proposals in (0, 3)]
    requests, kv = [str(i) for i in range(32)], 32 * 2**15
    for _ in range(200):
        for controller in controllers:
            choice = controller.choose(requests, kv)
            for request in requests if choice.length else ():
                controller.observe(request, choice.length, choice.length)
            controller.measured(0, 32, kv, float(model.tabulated(0, 32, kv)))
        controllers[1].proposals.count([[20, 15, 10], [32, 20, 15]])
    one, several = (controller.choose(requests, kv) for controller in controllers)
    assert one.reason == several.reason == "on" and several.length >= one.length
    assert several.steps < several.length and several.speedup > 1.1 * one.speedup
    drafts = min(several.length, several.steps * controllers[1].proposals.drafts_a_step)
    seconds = model.predict([several.length], 32, kv, steps=[several.steps])[0]
    assert several.speedup == pytest.approx((1 + drafts) * model.tabulated(0, 32, kv) / seconds, rel=0.05)


def drafts_of(length: int, steps: int, rate: float, draws: np.random.Generator) -> np.ndarray:
    """[8 requests] drafts that so many steps make if a proposal comes true at this rate, at most three a step."""
    return np.minimum(steps + np.minimum(draws.geometric(1 - rate, (8, steps)) - 1, 3).sum(1), length)


@pytest.mark.parametrize("draft_step", [3e-3, 7e-3, 9e-3], ids="a draft step costs {}".format)
@pytest.mark.parametrize("accepted", [0.8, 0.95], ids="{} accepted".format)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.6, 0.9], ids="{} come true".format)
def test_draft_steps_and_draft_length_are_chosen_together(draft_step, accepted, rate):
    """A server of eight requests comes near the best of all pairs, of which it has tried few. A proposal that no step
    has sampled is accepted three times less often than one that came true."""
    model = CostModel([1, 128], [1e-2, 1.3e-2], [1, 64], [draft_step] * 2, [1e-4] * 2, 0.0, 0.0, "made up")
    controller, requests = Controller(model, (0, 1, 2, 3, 5, 8), 8, 3), [str(i) for i in range(8)]
    draws, plain = np.random.default_rng(0), model.tabulated(0, 8, 8000)

    def outcomes(length: int, drafts: np.ndarray) -> np.ndarray:
        """[requests] accepted tokens."""
        rates = np.where(np.arange(length) < drafts[:, None], accepted, 0.3 * rate * accepted)
        return np.cumprod(draws.random(rates.shape) < rates, axis=1).sum(1)

    def speedup(length: int, steps: int) -> float:
        tokens = 1 + np.mean([outcomes(length, drafts_of(length, steps, rate, draws)) for _ in range(200)])
        return tokens * plain / model.tabulated(length, 8, 8000, steps)

    for _ in range(300):
        choice = controller.choose(requests, 8000)
        controller.measured(0, 8, 8000, plain)
        if choice.length:
            drafts = drafts_of(choice.length, choice.steps, rate, draws)
            for request, count in zip(requests, outcomes(choice.length, drafts)):
                controller.observe(request, choice.length, int(count), choice.steps)
            compared = 8 * min(choice.steps, choice.length) * rate ** np.arange(3)
            controller.proposals.count([compared * rate, compared])
    best = max(speedup(length, steps) for length in (1, 2, 3, 5, 8) for steps in range(1, length + 1))
    chosen = speedup(choice.length, choice.steps) if choice.length else 1.0
    assert chosen > 0.85 * best
    if rate == 0:
        assert choice.steps == choice.length
