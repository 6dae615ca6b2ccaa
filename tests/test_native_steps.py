"""The native code that stands in for Triton kernels on a CPU does what Triton's interpreter makes of them: over random
inputs, with strided rows, rows of no request, prompts in the middle, drafts that are placeholders."""

import importlib
import inspect
from types import SimpleNamespace

import pytest
import torch

pytestmark = [pytest.mark.unit, pytest.mark.versions]
GPU = "vllm.v1.worker.gpu."
REQS, SLOTS, LIMIT = 6, 9, 400  # requests of a batch, rows of request state, most tokens of a request


@pytest.fixture(scope="module", autouse=True)
def plugin():
    from vllm.plugins import load_general_plugins

    load_general_plugins()


class Random:
    """Random tensors; of the same ones each time for a seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def ints(self, low: int, high: int, *shape: int, dtype=torch.int32) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator, dtype=dtype)

    def strided(self, low: int, high: int, rows: int, columns: int, dtype=torch.int32) -> torch.Tensor:
        """Rows that lie further apart than they are long."""
        return self.ints(low, high, rows, columns + 5, dtype=dtype)[:, :columns]

    def floats(self, *shape: int, dtype=torch.float32, scale=4.0) -> torch.Tensor:
        return (torch.randn(shape, generator=self.generator) * scale).to(dtype)

    def choose(self, values, *shape: int, dtype=torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)[self.ints(0, len(values), *shape).long()]

    def requests(self, count: int = REQS) -> torch.Tensor:
        """[count] rows of request state, int64."""
        return torch.randperm(SLOTS, generator=self.generator)[:count]

    def starts(self, most: int, least: int = 1) -> torch.Tensor:
        """[REQS + 1] where the tokens of each request begin."""
        return torch.cat([torch.zeros(1), self.ints(least, most + 1, REQS).cumsum(0)]).int()


def launch(name: str, grid: tuple, **named) -> list[torch.Tensor]:
    """Launch a kernel with those of the arguments that it has in this version of vLLM. All tensors it was given."""
    module, kernel = (GPU + name).rsplit(".", 1)
    kernel = getattr(importlib.import_module(module), kernel)
    known = {argument: value for argument, value in named.items() if argument in kernel.arg_names}
    for argument in set(kernel.arg_names) - known.keys():  # strides, and what a version lacks
        default = inspect.signature(kernel.fn).parameters[argument].default
        known[argument] = named.get("others", {}).get(argument, 0 if default is inspect.Parameter.empty else default)
    kernel[grid](**known)
    return [value for value in named.values() if isinstance(value, torch.Tensor)]


def interpreted_and_native(case, seed: int, *arguments) -> tuple[list, list]:
    """What a case returns, twice: from the interpreter, and natively, where nothing may be interpreted."""
    from triton_cpu.native import launch as native

    found = []
    for yes in (False, True):
        native.native_launches = yes
        native.launches.clear()
        try:
            found.append(case(Random(seed), *arguments))
        finally:
            native.native_launches = True
        assert native.launches.seconds and bool(native.launches.interpreted) != yes
    return tuple(found)


def same(case, seed: int, *arguments, exact: bool = False) -> None:
    for interpreted, native in zip(*interpreted_and_native(case, seed, *arguments)):
        if exact or not native.is_floating_point():
            assert torch.equal(interpreted, native)
        else:
            torch.testing.assert_close(native, interpreted, rtol=3e-6, atol=3e-6)


# ------------------------------------------------------------ tables and inputs


def addresses(tensors) -> torch.Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.uint64)


def tables(random: Random, columns=(40, 70)) -> list[torch.Tensor]:
    return [random.ints(0, 500, SLOTS, width) for width in columns]


def strides(of) -> torch.Tensor:
    return torch.tensor([tensor.stride(0) for tensor in of])


def staged_writes(random: Random, groups: bool):
    out = tables(random)
    ends = random.ints(1, 20, 5).cumsum(0).int()
    contents = random.ints(0, 99, int(ends[-1]) + 3)
    of = (addresses(out), strides(out)) if groups else (out[0], out[0].stride(0))
    launch(
        "buffer_utils._apply_write_kernel", (5, 1), output_ptr=of[0], output_stride=of[1],
        write_indices_ptr=random.ints(0, SLOTS, 7), write_starts_ptr=random.ints(0, 20, 7),
        write_contents_ptr=contents, write_cu_lens_ptr=ends, write_group_ids_ptr=random.ints(0, 2, 7),
        BLOCK_SIZE=32, MULTI_GROUP=groups,
    )  # fmt: skip
    return out


def gathered_tables(random: Random, windows: bool):
    """Rows beyond the requests are emptied; in a windowed group so are blocks before the window."""
    out, sources, requests = tables(random), tables(random), random.requests()
    launch(
        "block_table._gather_block_tables_kernel", (2, REQS + 2), batch_idx_to_req_idx=requests,
        src_block_table_ptrs=addresses(sources), dst_block_table_ptrs=addresses(out),
        block_table_strides=strides(out), num_blocks_ptr=random.ints(0, 40, 2, SLOTS), num_blocks_stride=SLOTS,
        num_reqs=REQS, num_computed_tokens_ptr=random.ints(0, LIMIT, SLOTS),
        sliding_window_reach_ptr=torch.tensor([0, 64], dtype=torch.int32),
        block_sizes_ptr=torch.tensor([16, 32], dtype=torch.int32), MASK_SLIDING_WINDOW=windows, BLOCK_SIZE=16,
    )  # fmt: skip
    return out


def slot_mappings(random: Random, _):
    table, starts, requests = tables(random), random.starts(9), random.requests()
    requests[-1] = -1
    tokens = int(starts[-1])
    return launch(
        "block_table._compute_slot_mappings_kernel", (2, REQS + 1), max_num_tokens=80, idx_mapping=requests,
        query_start_loc=starts, pos=random.ints(0, 16 * 40, tokens, dtype=torch.int64),
        block_table_ptrs=addresses(table), block_table_strides=strides(table),
        block_sizes=torch.tensor([16, 32], dtype=torch.int32), slot_mapping_enabled=torch.tensor([True, True]),
        dcp_sharded=torch.tensor([False, False]), slot_mappings_ptr=random.ints(0, 9, 2, 80, dtype=torch.int64),
        slot_mappings_stride=80, cp_rank=0, CP_SIZE=1, CP_INTERLEAVE=1, PAD_ID=-1, TRITON_BLOCK_SIZE=64,
    )[4:]  # fmt: skip


def prefill_inputs(random: Random, _):
    starts, known = random.starts(12), random.strided(0, 600, SLOTS, LIMIT)
    return launch(
        "input_batch._prepare_prefill_inputs_kernel", (REQS,), input_ids_ptr=random.ints(0, 9, 90),
        next_prefill_tokens_ptr=random.ints(0, 9, 3, SLOTS), next_prefill_tokens_stride=SLOTS, num_lookahead=3,
        idx_mapping_ptr=random.requests(), query_start_loc_ptr=starts, all_token_ids_ptr=known,
        all_token_ids_stride=known.stride(0), prefill_lens_ptr=random.ints(5, 60, SLOTS),
        num_computed_tokens_ptr=random.ints(0, 50, SLOTS), BLOCK_SIZE=16, LOOKAHEAD_BLOCK=4,
    )  # fmt: skip


def positions_and_lengths(random: Random, _):
    return launch(
        "input_batch._prepare_pos_seq_lens_kernel", (REQS + 1,), pos_ptr=random.ints(0, 9, 90, dtype=torch.int64),
        seq_lens_ptr=random.ints(0, 9, SLOTS), idx_mapping_ptr=random.requests(),
        query_start_loc_ptr=random.starts(12), num_computed_tokens_ptr=random.ints(0, 300, SLOTS),
        max_num_reqs=SLOTS, BLOCK_SIZE=16,
    )  # fmt: skip


def sampled_and_drafted(random: Random, sampled: int):
    starts, drafts = random.starts(9, least=5), random.ints(-1, 600, SLOTS, 5, dtype=torch.int64)
    firsts = torch.cat([torch.zeros(1), random.ints(1, 6, REQS).cumsum(0)]).int()
    return launch(
        "input_batch._combine_sampled_and_draft_tokens_kernel", (REQS,), input_ids_ptr=random.ints(0, 9, 90),
        idx_mapping_ptr=random.requests(), last_sampled_tokens_ptr=random.ints(0, 600, SLOTS, 1, dtype=torch.int64),
        query_start_loc_ptr=starts, seq_lens_ptr=random.ints(8, 30, REQS), prefill_len_ptr=random.ints(5, 30, SLOTS),
        draft_tokens_ptr=drafts, draft_tokens_stride=5, cu_num_logits_ptr=firsts,
        logits_indices_ptr=random.ints(0, 9, 60, dtype=torch.int64), NUM_NEW_SAMPLED_TOKENS=sampled, BLOCK_SIZE=8,
    )  # fmt: skip


def numbers_of_sampled(random: Random, _):
    return launch(
        "input_batch._get_num_sampled_and_rejected_kernel", (REQS,), num_sampled_ptr=random.ints(1, 4, REQS),
        num_rejected_ptr=random.ints(0, 9, REQS), seq_lens_ptr=random.ints(5, 30, REQS),
        cu_num_logits_ptr=random.starts(6), idx_mapping_ptr=random.requests(),
        prefill_len_ptr=random.ints(5, 30, SLOTS),
    )  # fmt: skip


def outcome_kept(random: Random, counted: bool):
    requests, known = random.requests(), random.ints(0, 9, SLOTS, LIMIT)
    requests[2] = -1
    drafts = random.ints(0, 600, REQS, 4, dtype=torch.int64) if counted else None
    return launch(
        "input_batch._post_update_kernel", (REQS,), idx_mapping_ptr=requests,
        num_computed_tokens_ptr=random.ints(0, 90, SLOTS),
        last_sampled_tokens_ptr=random.ints(0, 9, SLOTS, 1, dtype=torch.int64),
        output_bin_counts_ptr=random.ints(0, 3, SLOTS, 600) if counted else None, output_bin_counts_stride=600,
        sampled_tokens_ptr=random.ints(0, 600, REQS, 5, dtype=torch.int64), sampled_tokens_stride=5,
        num_sampled_ptr=random.ints(0, 6, REQS), num_rejected_ptr=random.ints(0, 2, REQS),
        query_start_loc_ptr=random.starts(6) if counted else None, all_token_ids_ptr=known,
        all_token_ids_stride=LIMIT, total_len_ptr=random.ints(5, 90, SLOTS), draft_tokens_ptr=drafts,
        draft_tokens_out_ptr=random.ints(0, 9, SLOTS, 4, dtype=torch.int64), num_draft_tokens=4,
    )  # fmt: skip


def expanded_requests(random: Random, _):
    firsts = random.starts(6)
    many = int(firsts[-1])
    return launch(
        "input_batch._expand_idx_mapping_kernel", (REQS,), idx_mapping_ptr=random.requests(),
        expanded_idx_mapping_ptr=random.ints(0, 9, many, dtype=torch.int64),
        expanded_local_pos_ptr=random.ints(0, 9, many), cu_num_logits_ptr=firsts, BLOCK_SIZE=8,
    )  # fmt: skip


def computed_tokens(random: Random, _):
    return launch(
        "input_batch._post_update_num_computed_tokens_kernel", (REQS,), idx_mapping_ptr=random.requests(),
        num_computed_tokens_ptr=random.ints(0, 90, SLOTS), query_start_loc_ptr=random.starts(6),
    )  # fmt: skip


def rope_positions(random: Random, dims: int):
    return launch(
        "mm.rope._prepare_rope_positions_kernel", (REQS,),
        positions_ptr=random.strided(0, 9, dims, 90, dtype=torch.int64), positions_stride=95,
        prefill_positions_ptr=random.ints(0, 90, dims * SLOTS, LIMIT), prefill_positions_stride0=dims * LIMIT,
        prefill_positions_stride1=LIMIT, prefill_delta_ptr=random.ints(-50, 5, SLOTS),
        idx_mapping_ptr=random.requests(), query_start_loc_ptr=random.starts(12),
        prefill_lens_ptr=random.ints(5, 60, SLOTS), num_computed_tokens_ptr=random.ints(0, 60, SLOTS), BLOCK_SIZE=16,
        NUM_DIMS=dims,
    )  # fmt: skip


def first_draft_step(random: Random, advance: bool):
    drafts = random.ints(0, 600, SLOTS, 5, dtype=torch.int64)[:REQS, 0]
    return launch(
        "spec_decode.target_dependent_ar.speculator._prepare_decode_inputs_kernel", (REQS + 1,),
        draft_tokens_ptr=drafts, draft_tokens_stride=5, target_seq_lens_ptr=random.ints(20, LIMIT + 1, REQS),
        num_rejected_ptr=random.ints(0, 5, REQS), input_ids_ptr=random.ints(0, 9, SLOTS),
        positions_ptr=random.ints(20, LIMIT, SLOTS, dtype=torch.int64),
        sample_src_positions_ptr=random.ints(20, LIMIT, SLOTS, dtype=torch.int64),
        query_start_loc_ptr=random.ints(0, 9, SLOTS + 1), seq_lens_ptr=random.ints(0, 9, SLOTS),
        max_model_len=LIMIT, max_num_reqs=SLOTS, BLOCK_SIZE=4, ADVANCE_DRAFT_POSITIONS=advance,
    )  # fmt: skip


def next_draft_step(random: Random, last: bool):
    hidden = random.floats(SLOTS, 40, dtype=torch.bfloat16)[:, :32]
    return launch(
        "spec_decode.target_dependent_ar.speculator._update_draft_inputs_kernel", (REQS,),
        output_draft_tokens_ptr=random.ints(0, 9, SLOTS, 5, dtype=torch.int64), output_draft_tokens_stride=5,
        next_input_hidden_states_ptr=random.floats(SLOTS, 32, dtype=torch.bfloat16),
        next_input_hidden_states_stride=32, input_ids_ptr=random.ints(0, 9, SLOTS),
        positions_ptr=random.ints(0, LIMIT, SLOTS, dtype=torch.int64),
        sample_src_positions_ptr=random.ints(0, LIMIT, SLOTS, dtype=torch.int64),
        seq_lens_ptr=random.ints(1, LIMIT + 1, SLOTS), draft_tokens_ptr=random.ints(0, 600, REQS, dtype=torch.int64),
        current_draft_step_ptr=torch.tensor(4 if last else 2), hidden_states_ptr=hidden, hidden_states_stride=40,
        hidden_size=32, max_model_len=LIMIT, num_speculative_steps=5, BLOCK_SIZE=16, ADVANCE_DRAFT_POSITIONS=True,
    )  # fmt: skip


INPUTS = [
    (staged_writes, False), (staged_writes, True), (gathered_tables, False), (gathered_tables, True),
    (slot_mappings, None), (prefill_inputs, None), (positions_and_lengths, None), (sampled_and_drafted, 1),
    (sampled_and_drafted, 0), (numbers_of_sampled, None), (outcome_kept, True), (outcome_kept, False),
    (expanded_requests, None), (computed_tokens, None), (rope_positions, 3), (rope_positions, 4),
    (first_draft_step, True), (first_draft_step, False), (next_draft_step, True), (next_draft_step, False),
]  # fmt: skip


@pytest.mark.parametrize("case, option", INPUTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_inputs_of_a_pass(case, option):
    for seed in range(8):
        same(case, seed, option)


# ------------------------------------------------------------ sampling

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
VOCABULARIES = pytest.mark.parametrize("vocabulary", [700, 9000])
TEMPERATURES = [0.0, 0.0, 0.3, 1.0, 1.7]


def logits_of(random: Random, rows: int, vocabulary: int, dtype) -> torch.Tensor:
    """Logits in rows of a wider matrix, some of them minus infinity, the highest of some rows twice."""
    logits = random.floats(rows, vocabulary + 24, dtype=dtype)[:, :vocabulary]
    logits[random.floats(rows, vocabulary) > 6] = -torch.inf
    logits[::3, 5] = logits[::3, 300] = 30
    return logits


def gumbel(random: Random, dtype, vocabulary, drafting: bool):
    """With the draft's logits kept, and rows of no request."""
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    logits, requests = logits_of(random, REQS, vocabulary, dtype), random.requests()
    requests[1] = -1 if drafting else requests[1]
    kept = random.floats(SLOTS, 3, vocabulary, dtype=dtype)
    sampled = gumbel_sample(
        logits, requests, random.choose(TEMPERATURES, SLOTS), random.ints(-(2**62), 2**62, SLOTS, dtype=torch.int64),
        random.ints(0, 9000, REQS, dtype=torch.int64), apply_temperature=drafting, is_drafting=drafting,
        logits_cache=kept if drafting else None, logits_cache_col=torch.tensor(1) if drafting else None,
    )  # fmt: skip
    return [sampled, kept]


@DTYPES
@VOCABULARIES
@pytest.mark.parametrize("drafting", [False, True])
def test_gumbel_sampling(dtype, vocabulary, drafting):
    for seed in range(6):
        same(gumbel, seed, dtype, vocabulary, drafting, exact=True)


def noise(random: Random, vocabulary: int):
    requests = random.requests()
    blocks = -(-vocabulary // 1024)
    return launch(
        "sample.gumbel._gumbel_sample_kernel", (REQS, blocks),
        local_argmax_ptr=random.ints(0, 9, REQS, blocks, dtype=torch.int64), local_argmax_stride=blocks,
        local_max_ptr=random.floats(REQS, blocks), local_max_stride=blocks, logits_cache_ptr=None,
        logits_cache_col_ptr=None, logits_cache_source_ptr=None, logits_ptr=torch.zeros(REQS, vocabulary),
        logits_stride=vocabulary, expanded_idx_mapping_ptr=requests, temp_ptr=torch.ones(SLOTS),
        seeds_ptr=random.ints(-(2**62), 2**62, SLOTS, dtype=torch.int64),
        pos_ptr=random.ints(0, 2**20, REQS, dtype=torch.int64), vocab_size=vocabulary, BLOCK_SIZE=1024,
        IS_DRAFTING=False, APPLY_TEMPERATURE=False, USE_FP64=False, PER_TOKEN_COL=False,
    )[:2]  # fmt: skip


def test_the_noise_is_vllms_own_bit_for_bit():
    """Of equal logits, the highest noise of each block, and whose it is."""
    for seed in range(10):
        same(noise, seed, 5000, exact=True)


def temperatures(random: Random, vocabulary):
    from vllm.v1.worker.gpu.sample.gumbel import apply_temperature

    logits = logits_of(random, REQS, vocabulary, torch.float32)
    apply_temperature(logits, random.requests(), random.choose(TEMPERATURES, SLOTS))
    return [logits]


def min_p(random: Random, vocabulary):
    from vllm.v1.worker.gpu.sample.min_p import apply_min_p

    logits = logits_of(random, REQS, vocabulary, torch.float32)
    apply_min_p(logits, random.requests(), random.choose([0.0, 0.05, 0.5, 1.0], SLOTS))
    return [logits]


def penalties(random: Random, vocabulary):
    from vllm.v1.worker.gpu.sample.penalties import apply_penalties

    firsts = random.starts(4)
    rows = int(firsts[-1])
    places = torch.cat([torch.arange(n) for n in firsts.diff().tolist()]).int()
    logits, ids = logits_of(random, rows, vocabulary, torch.float32), random.ints(-1, 40, rows)
    apply_penalties(
        logits, random.requests().repeat_interleave(firsts.diff()), ids, places, random.choose([1.0, 1.2, 0.8], SLOTS),
        random.choose([0.0, 0.3], SLOTS), random.choose([0.0, -0.2, 0.4], SLOTS),
        random.ints(-(2**31), 2**31 - 1, SLOTS, -(-vocabulary // 32)), random.ints(-2, 3, SLOTS, vocabulary).clamp(0),
    )  # fmt: skip
    return [logits]


def token_counts(random: Random, vocabulary):
    from vllm.v1.worker.gpu.sample.penalties import bincount

    prompt = random.ints(1, 300, SLOTS)
    masks, counts = random.ints(0, 9, SLOTS, -(-vocabulary // 32)), random.ints(0, 9, SLOTS, vocabulary)
    prefill = prompt + random.ints(0, 90, SLOTS)
    known = random.ints(0, vocabulary, SLOTS, LIMIT)
    bincount(random.requests(), known, prompt, prefill, masks, counts, int(prefill.max()))
    return [masks, counts]


@VOCABULARIES
@pytest.mark.parametrize("case", [temperatures, min_p, penalties, token_counts], ids=lambda case: case.__name__)
def test_what_requests_ask_of_logits(case, vocabulary):
    for seed in range(6):
        same(case, seed, vocabulary)


def logprobs(random: Random, vocabulary: int, topk: int, own: bool):
    """own: some requests name the tokens that they want."""
    from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores

    logits = logits_of(random, REQS, vocabulary, torch.float32)
    sampled = torch.where(logits > -torch.inf, random.floats(REQS, vocabulary), -torch.inf).argmax(1)
    counts, ids = random.ints(0, 4, SLOTS), random.ints(0, 700, SLOTS, 8)
    wanted = SimpleNamespace(num_token_ids=SimpleNamespace(gpu=counts), token_ids=SimpleNamespace(gpu=ids))
    options = {"logprob_token_ids_state": wanted, "expanded_idx_mapping": random.requests()}
    found = compute_topk_scores(logits, topk, sampled, **options, max_per_req_token_ids=3 if own else 0)
    return [found.logprob_token_ids, found.logprobs, found.selected_token_ranks]


@VOCABULARIES
@pytest.mark.parametrize("topk, own", [(0, False), (5, False), (5, True), (0, True)])
def test_log_probabilities(vocabulary, topk, own):
    for seed in range(3):
        same(logprobs, seed, vocabulary, topk, own)


def test_ranks_of_bfloat16_are_those_of_their_values():
    """Triton's interpreter compares the bits of bfloat16 as whole numbers, and counts the padding of a row."""
    from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores

    random = Random(0)
    logits, sampled = random.floats(REQS, 700, dtype=torch.bfloat16), random.ints(0, 700, REQS, dtype=torch.int64)
    found = compute_topk_scores(logits, 0, sampled).selected_token_ranks
    exact = logits.float()
    assert torch.equal(found, (exact >= exact.gather(1, sampled[:, None])).sum(1))


def prompt_tokens(random: Random):
    from vllm.v1.worker.gpu.sample.prompt_logprob import get_prompt_logprobs_token_ids

    starts = random.starts(12)
    known = random.ints(0, 600, SLOTS, LIMIT)
    computed = random.ints(0, 300, SLOTS)
    return [get_prompt_logprobs_token_ids(int(starts[-1]), starts, random.requests(), computed, known)]


def flattened(random: Random):
    firsts = random.starts(5)
    return launch(
        "spec_decode.rejection_sampler._flatten_sampled_kernel", (REQS,),
        flat_sampled_ptr=random.ints(0, 9, int(firsts[-1]), dtype=torch.int64),
        sampled_ptr=random.ints(0, 600, REQS, 5, dtype=torch.int64), sampled_stride=5,
        num_sampled_ptr=torch.minimum(random.ints(0, 6, REQS), firsts.diff()), cu_num_logits_ptr=firsts,
    )  # fmt: skip


def drafts_gathered(random: Random):
    """Drafts of a request that was in its prompt are placeholders."""
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler import gather_draft_sampled

    firsts = random.starts(5)
    places = torch.cat([torch.arange(n) for n in firsts.diff().tolist()]).int()
    many = len(places)
    ids, positions = random.ints(0, 600, 90), random.ints(0, 60, 90, dtype=torch.int64)
    owners = random.requests().repeat_interleave(firsts.diff())
    indices = random.ints(0, 90, many, dtype=torch.int64)
    return [*gather_draft_sampled(ids, positions, indices, owners, places, random.ints(0, 60, SLOTS))]


@pytest.mark.parametrize("case", [prompt_tokens, flattened, drafts_gathered], ids=lambda case: case.__name__)
def test_tokens_gathered(case):
    for seed in range(8):
        same(case, seed)


# ------------------------------------------------------------ verification


def verified(random: Random, dtype, vocabulary: int, method: str, draft_logits: bool):
    """All kernels of vLLM's rejection sampler. Drafts are the target's best tokens or others, or placeholders."""
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample

    steps, requests, firsts = 4, random.requests(), random.starts(5)
    counts = firsts.diff()
    places = torch.cat([torch.arange(n) for n in counts.tolist()]).int()
    owners = requests.repeat_interleave(counts)
    target = logits_of(random, len(places), vocabulary, dtype)
    drafts = random.floats(SLOTS, steps, vocabulary, dtype=dtype)
    temperature = random.choose(TEMPERATURES, SLOTS)
    tokens = torch.where(random.floats(len(places)) > 2, random.ints(0, vocabulary, len(places)), 0)
    for row, place in enumerate(places.tolist()):
        if place:
            best = target[row - 1].float()
            drafts[owners[row], place - 1] = (best + random.floats(vocabulary, scale=0.5)).clamp(min=-1e4).to(dtype)
            tokens[row] = tokens[row] or int(best.argmax())
    tokens[random.floats(len(places)) > 9] = -1
    sampled, numbers = rejection_sample(
        target, drafts if draft_logits else None, tokens.int(), firsts,
        random.ints(0, 9000, len(places), dtype=torch.int64), requests, owners, places, temperature,
        random.ints(-(2**62), 2**62, SLOTS, dtype=torch.int64), steps,
        torch.tensor([0.9, 0.7, 0.6, 0.3]) if method == "synthetic" else None,
        use_block_verification=method == "block",
    )  # fmt: skip
    kept = torch.arange(steps + 1) < numbers[:, None]
    return [numbers, sampled.masked_fill(~kept, -1)]


@DTYPES
@VOCABULARIES
@pytest.mark.parametrize("draft_logits", [True, False])
@pytest.mark.parametrize("method", ["standard", "block", "synthetic"])
def test_verification(dtype, vocabulary, method, draft_logits):
    for seed in range(6):
        same(verified, seed, dtype, vocabulary, method, draft_logits)


def test_verification_accepts_and_rejects():
    """So that the comparison above says something."""
    numbers = [verified(Random(seed), torch.float32, 700, "standard", True)[0] for seed in range(6)]
    assert set(torch.cat(numbers).tolist()) >= {1, 2, 3, 4}


# ------------------------------------------------------------ which launches are native


def test_unknown_arguments_are_not_misread(caplog):
    """A kernel that takes more than its replacement knows, or lacks what that needs, is interpreted."""
    from triton_cpu.native.launch import Native

    replacement = Native(lambda grid, pos_ptr, seq_lens_ptr, extra=None: None, frozenset({"BLOCK_SIZE"}))
    assert replacement.fits(["pos_ptr", "seq_lens_ptr", "BLOCK_SIZE"])
    assert replacement.fits(["pos_ptr", "seq_lens_ptr", "BLOCK_SIZE", "extra"])
    assert not replacement.fits(["pos_ptr", "seq_lens_ptr", "BLOCK_SIZE", "NEW_MODE"])
    assert not replacement.fits(["pos_ptr", "BLOCK_SIZE"])


def test_options_that_nobody_here_uses_are_interpreted():
    from triton_cpu.native.launch import launches
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    launches.clear()
    random = Random(0)
    gumbel_sample(
        random.floats(2, 700), torch.arange(2), torch.ones(2), torch.zeros(2, dtype=torch.int64), torch.arange(2),
        apply_temperature=False, is_drafting=False, use_fp64=True,
    )  # fmt: skip
    assert [*launches.interpreted] == ["gpu.sample.gumbel._gumbel_sample_kernel"] and launches.share > 0.5
