"""Options of the speculative method `std`."""

from dataclasses import field
from typing import Any, ClassVar, Literal, get_args

from pydantic import field_validator
from vllm.config import SpeculativeConfig
from vllm.config.speculative import DraftSampleMethod, RejectionSampleMethod
from vllm.config.utils import config

from vllm_std import option_values as values
from vllm_std.mask import MaskShape

SelectionPolicy = Literal["verify", "text", "streaming"]
LOSSLESS_METHODS = ("standard", "block", "synthetic")  # of rejection sampling; `synthetic` is for benchmarks
DEFAULT_TOP_K = 1024  # tokens, as in the paper
DEFAULT_FLOOR = 256  # tokens that a share of the context keeps at least
DRAFT_LENGTHS = (0, 1, 2, 3, 5, 8, 13, 21)  # tokens; far apart where long, because each may need CUDA graphs of its own
WHOLE_NUMBERS = ("num_speculative_tokens", "top_k_floor", "refresh", "sink", "recent", *values.LOOKUP_OPTIONS)
LENGTH_OPTIONS = ("num_speculative_tokens", "adaptive", "calibrate")
SELECTION_OPTIONS = ("top_k", "top_k_floor", "selection", "refresh", "sink", "recent")
SAMPLING_OPTIONS = ("draft_sample_method", "rejection_sample_method", *values.SYNTHETIC_OPTIONS)


@config
class StdConfig(SpeculativeConfig):
    """What a user may set with `--speculative-config '{"method": "std", ...}'`."""

    method: Literal["std"] = "std"
    num_speculative_tokens: int = 8
    """Draft length (gamma): tokens drafted before each dense pass. At least 1."""
    top_k: int | float = None  # type: ignore[assignment]
    """Context a draft step attends to, sink and recent window included, rounded up to KV blocks: tokens, or as a number
    with a decimal point, 0 < top_k <= 1.0, the share of each request's context.
    Default: 1024 as in the paper, or all of a shorter `--max-model-len`."""
    top_k_floor: int | None = None
    """Least tokens that a share keeps. Default: 256."""
    selection: SelectionPolicy = "verify"
    """Which blocks are kept: `verify` (scored in each round by the token just verified, from key summaries), `text`
    (the paper's: scored once, by the end of the prompt), `streaming` (sink and recent window only)."""
    refresh: int = 1
    """Rounds from one scoring to the next, for `verify`."""
    sink: int = 16
    """Tokens at the start of the context that are always kept, rounded up to KV blocks."""
    recent: int = 64
    """Tokens before the drafted ones that are always kept, rounded up to KV blocks."""
    proposals: int = 0
    """Tokens that an n-gram lookup proposes for each draft step, which then drafts up to so many more; 0 is a step for
    each draft."""
    prompt_lookup_min: int | None = None
    """Least tokens of an n-gram, for `proposals`. Default: 1."""
    prompt_lookup_max: int | None = None
    """Most tokens of an n-gram, for `proposals`. Default: 3."""
    adaptive: bool = True
    """Choose the draft length of each step, from 0 to `num_speculative_tokens`, so that drafting never costs more than
    it gains; `false` always drafts `num_speculative_tokens`."""
    calibrate: bool = True
    """Measure at start-up what steps take (seconds, kept in vLLM's cache directory), for `adaptive`; `false`
    estimates it from the model and the hardware."""
    draft_sample_method: DraftSampleMethod = "probabilistic"
    """`probabilistic` keeps acceptance when temperature > 0, at `max_num_seqs * num_speculative_tokens * vocabulary`
    logits of memory; `greedy` saves that memory."""
    rejection_sample_method: RejectionSampleMethod = "standard"
    """vLLM's own; `fly` is refused, because it is lossy."""

    OPTIONS: ClassVar[tuple[str, ...]] = LENGTH_OPTIONS + SELECTION_OPTIONS + values.LOOKUP_OPTIONS + SAMPLING_OPTIONS

    costs: Any = field(default=None, init=False)
    """The cost model, once the engine has one (`control.CostModel`)."""

    kv_groups: Any = field(default=None, init=False)
    """The KV cache groups of the engine, once it has them (`patches.blocks.Group`)."""

    graph_limit: int = field(default=1024, init=False)
    """Tokens of the longest verifying pass that is captured as one CUDA graph, unless a user limits them: the GPU takes
    longer for more tokens than the host takes to launch them."""

    @classmethod
    def from_options(cls, given: dict[str, Any], target_model_config, target_parallel_config) -> "StdConfig":
        """Build from what the user gave. Raises ValueError naming the option, its value and what works."""
        values.known(given, cls.OPTIONS)
        return cls(**given, target_model_config=target_model_config, target_parallel_config=target_parallel_config)

    def __post_init__(self):
        # The target is its own draft: the same weights, the same layers, the same KV cache.
        self.draft_model_config = self.target_model_config
        self.draft_parallel_config = self.target_parallel_config
        limit = self.target_model_config.max_model_len
        if self.top_k is None:
            self.top_k = min(DEFAULT_TOP_K, limit)
        for option in ("top_k", *WHOLE_NUMBERS):
            values.at_most(option, getattr(self, option), limit)
        values.refuse_pointless(self)
        if isinstance(self.top_k, float) and self.top_k_floor is None:
            self.top_k_floor = min(DEFAULT_FLOOR, limit)
        if self.proposals:
            least, most = self.prompt_lookup_min, self.prompt_lookup_max
            self.prompt_lookup_min, self.prompt_lookup_max = values.ngram_lengths(least, most)

    def mask_shape(self, block_size: int) -> MaskShape:
        """Raises ValueError where blocks of so many tokens leave none to choose."""
        limit = self.target_model_config.max_model_len
        return MaskShape.plan(self.top_k, self.sink, self.recent, block_size, limit, self.top_k_floor or 0)

    def changed(self, **options) -> "StdConfig":
        """The same with other options, checked as at start-up."""
        given = {option: getattr(self, option) for option in self.OPTIONS} | options
        if "top_k" in options and "top_k_floor" not in options:
            given["top_k_floor"] = None
        return StdConfig.from_options(given, self.target_model_config, self.target_parallel_config)

    def use_ngram(self) -> bool:
        # Makes the runner keep the requests' tokens on the device, where n-grams are looked up.
        return bool(self.proposals)

    def uses_draft_model(self) -> bool:
        # Makes the scheduler reserve num_speculative_tokens lookahead slots (VllmConfig.num_lookahead_tokens).
        return True

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        """Draft lengths that a step may have, in tokens, ascending."""
        longest = self.num_speculative_tokens
        if not self.adaptive:
            return (longest,)
        return (*(length for length in DRAFT_LENGTHS if length < longest), longest)

    @property
    def most_lookahead(self) -> int:
        """Most tokens after the verified ones that draft steps write K/V of."""
        return self.num_speculative_tokens + self.proposals

    @property
    def needs_queries(self) -> bool:
        """Whether blocks are scored by queries of the dense pass, which it then has to capture."""
        return self.selection != "streaming"

    @property
    def max_num_new_slots_for_drafting(self) -> int:
        return 0

    _top_k = field_validator("top_k", mode="before")(values.tokens_or_share)
    _numbers = field_validator(*WHOLE_NUMBERS, mode="before")(values.whole_number)
    _switches = field_validator("adaptive", "calibrate", mode="before")(values.switch)
    _selection = field_validator("selection", mode="before")(values.one_of(get_args(SelectionPolicy)))
    _sampling = field_validator("draft_sample_method", mode="before")(values.one_of(get_args(DraftSampleMethod)))
    _lossless = field_validator("rejection_sample_method", mode="before")(values.one_of(LOSSLESS_METHODS))
    _rates = field_validator("synthetic_acceptance_rates", mode="before")(values.rates_by_position)
    _length = field_validator("synthetic_acceptance_length", mode="before")(values.mean_length)
