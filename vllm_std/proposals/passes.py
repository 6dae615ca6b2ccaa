"""What draft passes over several tokens of each request read and write, always at the same addresses."""

import torch
import triton
from torch import Tensor

from vllm_std.mask import cdiv
from vllm_std.patches.spec_decode import PAD_SLOT_ID
from vllm_std.proposals import kernels, loops, matches
from vllm_std.proposals.certainty import set_certain
from vllm_std.proposals.lookup import Lookup
from vllm_std.selection.keys import by_kernel

PART = 2048  # positions that one program looks for n-grams at
VOCABULARY_PART = 4096  # draft logits that one program writes


class DraftPasses:
    """Draft passes of `query_len` tokens, the last token of a request and its proposals.

    tokens: [max_num_reqs, max_model_len] int32, vLLM's, by row of its request state. rows, drafts, inputs: the
    speculator's, by row of the batch; drafts: [max_num_reqs, gamma + 1] int64, the token sampled last in column 0.
    bases: [max_num_reqs] int64, position of the token sampled last. masked_lens: [max_num_reqs] int32, tokens that the
    first draft attends to. counts: [max_num_reqs] int64, drafts so far. outcomes: [max_num_reqs, 2, query_len] int64,
    of this round, as `kernels.accept_samples` has them; totals: their sum on the host, of this round or the one before.
    sample_rows, sample_positions, steps: [tokens] int64: row of the request state, -1 for a sample that is not needed;
    position; number of the draft from 1 up.
    """

    def __init__(self, speculator, tokens: Tensor, lookup: Lookup, gamma: int):
        self.tokens, self.lookup, self.gamma = tokens, lookup, gamma
        self.query_len = 1 + lookup.proposals
        self.rows, self.drafts, self.inputs = speculator.idx_mapping, speculator.draft_tokens, speculator.input_buffers
        self.max_model_len = tokens.shape[1]
        reqs, device = len(self.drafts), self.drafts.device
        self.bases, self.counts = torch.zeros(2, reqs, dtype=torch.int64, device=device)
        self.masked_lens = torch.zeros(reqs, dtype=torch.int32, device=device)
        by_token = torch.zeros(3, reqs * self.query_len, dtype=torch.int64, device=device)
        self.sample_rows, self.sample_positions, self.steps = by_token
        self.outcomes = torch.zeros(reqs, 2, self.query_len, dtype=torch.int64, device=device)
        self.totals = torch.zeros(2, self.query_len, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.counted = False  # whether there is a round that was not collected
        self.limit = torch.ones(1, dtype=torch.int64, device=device)
        self.placeholders = torch.tensor(lookup.placeholders, dtype=torch.int64, device=device)
        self.found = torch.zeros(reqs, cdiv(self.max_model_len, PART), dtype=torch.int64, device=device)

    def begin(self, context_lens: Tensor, limit: int) -> None:
        """Begin a round; context_lens: [reqs] int64 verified tokens; limit: drafts wanted of each request."""
        num_reqs = len(context_lens)
        self.bases[:num_reqs] = context_lens
        self.counts.zero_()
        self.outcomes.zero_()
        self.limit.fill_(limit)
        starts = self.inputs.query_start_loc
        torch.arange(len(starts), out=starts)
        starts.clamp_(max=num_reqs).mul_(self.query_len)

    def prepare(self, num_reqs: int) -> None:
        """Set the inputs of the next pass."""
        if not by_kernel(self.rows):
            return self._prepare_by_loops(num_reqs)
        self._find(num_reqs)
        kernels.prepare_pass[num_reqs,](
            self.inputs.input_ids, self.inputs.positions, self.inputs.seq_lens, self.sample_rows, self.sample_positions,
            self.steps, self.found, self.found.shape[1], self.rows, self.bases, self.counts, self.limit,
            self.masked_lens, self.tokens, self.tokens.stride(0), self.drafts, self.drafts.stride(0),
            self.max_model_len, self.gamma, QUERY_LEN=self.query_len, PADDED=triton.next_power_of_2(self.query_len),
            PADDED_PARTS=triton.next_power_of_2(self.found.shape[1]),
        )  # fmt: skip

    def leave_out(self, slot_mappings: Tensor, num_reqs: int) -> None:
        """Have tokens past the longest context write no K/V; slot_mappings: [groups, max_num_tokens]."""
        tokens = num_reqs * self.query_len
        slot_mappings[:, :tokens].masked_fill_(self.sample_positions[:tokens] >= self.max_model_len, PAD_SLOT_ID)

    def accept(self, sampled: Tensor, num_reqs: int) -> None:
        """Take in a pass; sampled: [num_reqs * query_len] int64, one token for each of the pass."""
        if not by_kernel(self.rows):
            loops.accept_samples(
                sampled.numpy(), self.inputs.input_ids.numpy(), self.rows[:num_reqs].numpy(), self.counts.numpy(),
                self.outcomes.numpy(), self.limit.numpy(), self.drafts.numpy(), self.query_len,
            )  # fmt: skip
            return
        kernels.accept_samples[num_reqs,](
            sampled, self.inputs.input_ids, self.rows, self.counts, self.outcomes, self.limit, self.drafts,
            self.drafts.stride(0), QUERY_LEN=self.query_len, PADDED=triton.next_power_of_2(self.query_len),
        )  # fmt: skip

    def fill(self, num_reqs: int, logits: Tensor | None) -> None:
        """Propose what is missing after the last pass, as drafts drawn with certainty.

        logits: [max_num_reqs, gamma, vocabulary] draft logits, where they are kept.
        """
        if by_kernel(self.rows):
            self._fill_by_kernels(num_reqs, logits)
            return
        rows, counts = self.rows[:num_reqs], self.counts[:num_reqs]
        loops.fill_drafts(
            rows.numpy(), self.bases.numpy(), counts.numpy(), self.limit.numpy(), self.tokens.numpy(),
            self.drafts.numpy(), self.placeholders.numpy(), self.lookup.min_n, self.lookup.max_n,
        )  # fmt: skip
        if logits is None:
            return
        step = torch.arange(self.gamma)
        missing = (rows >= 0)[:, None] & (step >= counts[:, None]) & (step < self.limit)
        row, step = missing.nonzero(as_tuple=True)
        set_certain(logits, rows[row], step, self.drafts[row, step + 1])

    def count(self) -> None:
        """Send the outcomes of this round to the host, which does not wait for them."""
        self.totals.copy_(self.outcomes.sum(0), non_blocking=True)
        self.counted = True

    def collect(self) -> list[list[int]]:
        """[2][proposals] `totals` of the proposals, of this round or, where a GPU is behind, of the one before."""
        self.counted = False
        return self.totals[:, :-1].tolist()

    def _find(self, num_reqs: int) -> None:
        lookup = self.lookup
        matches.find_matches[num_reqs, self.found.shape[1]](
            self.found, self.found.shape[1], self.rows, self.bases, self.counts, self.limit, self.tokens,
            self.tokens.stride(0), self.drafts, self.drafts.stride(0), self.placeholders, MIN_N=lookup.min_n,
            MAX_N=lookup.max_n, PLACEHOLDERS=len(lookup.placeholders), SIZE=PART,
        )  # fmt: skip

    def _fill_by_kernels(self, num_reqs: int, logits: Tensor | None) -> None:
        self._find(num_reqs)
        kernels.fill_drafts[num_reqs,](
            self.drafts, self.drafts.stride(0), self.found, self.found.shape[1], self.rows, self.bases, self.counts,
            self.limit, self.tokens, self.tokens.stride(0), PADDED=triton.next_power_of_2(self.gamma),
            PADDED_PARTS=triton.next_power_of_2(self.found.shape[1]),
        )  # fmt: skip
        if logits is not None:
            vocabulary = logits.shape[2]
            kernels.fill_logits[num_reqs, self.gamma, cdiv(vocabulary, VOCABULARY_PART)](
                logits, logits.stride(0), logits.stride(1), vocabulary, self.drafts, self.drafts.stride(0), self.rows,
                self.counts, self.limit, torch.finfo(logits.dtype).min, BLOCK=VOCABULARY_PART,
            )  # fmt: skip

    def _prepare_by_loops(self, num_reqs: int) -> None:
        inputs, lookup = self.inputs, self.lookup
        loops.prepare_pass(
            inputs.input_ids.numpy(), inputs.positions.numpy(), inputs.seq_lens.numpy(), self.sample_rows.numpy(),
            self.sample_positions.numpy(), self.steps.numpy(), self.rows[:num_reqs].numpy(), self.bases.numpy(),
            self.counts.numpy(), self.limit.numpy(), self.masked_lens.numpy(), self.tokens.numpy(), self.drafts.numpy(),
            self.placeholders.numpy(), lookup.min_n, lookup.max_n, self.max_model_len, self.gamma, self.query_len,
        )  # fmt: skip
