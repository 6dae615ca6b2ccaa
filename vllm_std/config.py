"""Options of the speculative method `std`."""

from dataclasses import field
from typing import Any, Literal, get_args

from pydantic import field_validator
from vllm.config import SpeculativeConfig
from vllm.config.speculative import DraftSampleMethod, RejectionSampleMethod
from vllm.config.utils import config

from vllm_std.mask import MaskShape

SelectionPolicy = Literal["verify", "exact", "text", "streaming", "random"]
STATIC_POLICIES = ("text", "streaming")  # never scored again, so refresh does not apply to them
DEFAULT_TOP_K, DEFAULT_FLOOR = 1024, 256
LENGTHS = (0, 1, 2, 3, 5, 8, 13, 21)


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
    coverage: float | None = None
    """Adaptive budget, 0 < coverage < 1: as few blocks as hold this share of the attention in every layer, at most
    `top_k`. Default: always `top_k`."""
    selection: SelectionPolicy = "verify"
    """Which blocks are kept: `verify` (re-scored by the token just verified, from key summaries), `exact` (the same
    from all keys: the ceiling, slow), `text` (the paper's: scored once by the end of the prompt), `streaming` (sink and
    recent only), `random` (a control)."""
    refresh: int = 1
    """Rounds from one scoring to the next, for `verify`, `exact` and `random`."""
    sink: int = 16
    """Tokens at the start of the context that are always kept, rounded up to KV blocks."""
    recent: int = 64
    """Tokens before the drafted ones that are always kept, rounded up to KV blocks."""
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

    OPTIONS = (
        "num_speculative_tokens", "top_k", "top_k_floor", "coverage", "selection", "refresh", "sink", "recent",
        "adaptive", "calibrate",
        "draft_sample_method", "rejection_sample_method", "synthetic_acceptance_rates", "synthetic_acceptance_length",
    )  # fmt: skip

    costs: Any = field(default=None, init=False)
    """The cost table, once the engine has one (`control.Costs`)."""

    kv_groups: Any = field(default=None, init=False)
    """The KV cache groups of the engine, once it has them (`patches.blocks.Group`)."""

    graph_limit: int = field(default=1024, init=False)
    """Tokens of the longest verifying pass that is captured as one CUDA graph; a longer one takes a GPU longer than its
    launches take the host. A user's own limit is kept to."""

    @classmethod
    def from_options(cls, given: dict[str, Any], target_model_config, target_parallel_config) -> "StdConfig":
        """Build from what the user gave. Raises ValueError naming the option, its value and what works."""
        unknown = sorted(set(given) - {"method", *cls.OPTIONS})
        if unknown:
            raise ValueError(
                f"speculative method 'std' has no option {bare(unknown[0])}={shown(given[unknown[0]])}; it has "
                f"{', '.join(cls.OPTIONS)}."
            )
        return cls(**given, target_model_config=target_model_config, target_parallel_config=target_parallel_config)

    def __post_init__(self):
        # The target is its own draft: the same weights, the same layers, the same KV cache.
        self.prompt_lookup_max = self.prompt_lookup_min = 0
        self.draft_model_config = self.target_model_config
        self.draft_parallel_config = self.target_parallel_config
        limit = self.target_model_config.max_model_len
        if self.top_k is None:
            self.top_k = min(DEFAULT_TOP_K, limit)
        for option in ("num_speculative_tokens", "top_k", "top_k_floor", "refresh", "sink", "recent"):
            value = getattr(self, option)
            if value is not None and value > limit:
                raise ValueError(f"{option}={shown(value)} is more than max_model_len={limit}; use at most {limit}.")
        share = isinstance(self.top_k, float)
        _refuse("top_k_floor", self.top_k_floor, not share, "give top_k as a share of the context, such as 0.05")
        if share and self.top_k_floor is None:
            self.top_k_floor = min(DEFAULT_FLOOR, limit)
        fixed = self.selection in STATIC_POLICIES
        _refuse("refresh", self.refresh, fixed and self.refresh != 1, "use selection verify, exact or random")
        unscored = self.selection in ("streaming", "random")
        _refuse("coverage", self.coverage, unscored, "use selection verify, exact or text")
        for option in ("synthetic_acceptance_rates", "synthetic_acceptance_length"):
            real = self.rejection_sample_method != "synthetic"
            _refuse(option, getattr(self, option), real, "use rejection_sample_method synthetic")

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

    def uses_draft_model(self) -> bool:
        # Makes the scheduler reserve num_speculative_tokens lookahead slots (VllmConfig.num_lookahead_tokens).
        return True

    @property
    def draft_lengths(self) -> tuple[int, ...]:
        """What a step may draft; longer ones lie further apart, because each may need CUDA graphs of its own."""
        most = self.num_speculative_tokens
        return (*(length for length in LENGTHS if length < most), most) if self.adaptive else (most,)

    @property
    def needs_queries(self) -> bool:
        """Whether blocks are scored by queries of the dense pass, which it then has to capture."""
        return self.selection not in ("streaming", "random")

    @property
    def max_num_new_slots_for_drafting(self) -> int:
        return 0

    @field_validator("top_k", mode="before")
    @classmethod
    def _tokens_or_share(cls, value: Any) -> int | float:
        whole, share = type(value) is int and value >= 1, type(value) is float and 0 < value <= 1
        if not (whole or share):
            raise ValueError(
                f"top_k={shown(value)} is neither a whole number of tokens >= 1 nor a share, 0 < top_k <= 1.0."
            )
        return value

    @field_validator("coverage", mode="before")
    @classmethod
    def _share(cls, value: Any) -> float | None:
        if value is not None and not (type(value) is float and 0 < value < 1):
            raise ValueError(f"coverage={shown(value)} is not a share of attention, 0 < coverage < 1.")
        return value

    @field_validator("num_speculative_tokens", "top_k_floor", "sink", "recent", "refresh", mode="before")
    @classmethod
    def _whole_number(cls, value: Any, info) -> int | None:
        if value is None and info.field_name == "top_k_floor":
            return None
        least = 0 if info.field_name in ("sink", "recent", "top_k_floor") else 1
        if type(value) is not int or value < least:
            unit = "rounds" if info.field_name == "refresh" else "tokens"
            raise ValueError(f"{info.field_name}={shown(value)} is not a whole number of {unit} >= {least}.")
        return value

    @field_validator("adaptive", "calibrate", mode="before")
    @classmethod
    def _switch(cls, value: Any, info) -> bool:
        if type(value) is not bool:
            raise ValueError(f"{info.field_name}={shown(value)} is neither true nor false.")
        return value

    @field_validator("selection", mode="before")
    @classmethod
    def _known_policy(cls, value: Any) -> str:
        return _one_of("selection", value, get_args(SelectionPolicy))

    @field_validator("draft_sample_method", mode="before")
    @classmethod
    def _known_sampling(cls, value: Any) -> str:
        return _one_of("draft_sample_method", value, get_args(DraftSampleMethod))

    @field_validator("synthetic_acceptance_rates", mode="before")
    @classmethod
    def _rates(cls, value: Any, info) -> list[float] | None:
        length = info.data.get("num_speculative_tokens")
        shares = type(value) in (list, tuple) and all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in value)
        if value is not None and not (shares and length in (None, len(value))):
            raise ValueError(f"synthetic_acceptance_rates={shown(value)} is not a list of {length} numbers, 0 to 1.")
        return value

    @field_validator("synthetic_acceptance_length", mode="before")
    @classmethod
    def _mean_length(cls, value: Any, info) -> float | None:
        most = info.data.get("num_speculative_tokens", 0) + 1
        if value is not None and not (type(value) in (int, float) and 1 <= value <= most):
            raise ValueError(
                f"synthetic_acceptance_length={shown(value)} is not a number from 1 to num_speculative_tokens + 1."
            )
        return value

    @field_validator("rejection_sample_method", mode="before")
    @classmethod
    def _lossless(cls, value: Any) -> str:
        return _one_of("rejection_sample_method", value, ("standard", "block", "synthetic"))


def shown(value: Any) -> str:
    """A value as error messages show it: on one line, and short, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an endless number; a list in a list in a list ...
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:40]}...{text[-20:]}"


def bare(name: Any) -> str:
    """The name of an option that is not one, as error messages show it."""
    return shown(name).strip("'\"")


def _one_of(option: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{option}={shown(value)} is not known; use one of {', '.join(known)}.")
    return value


def _refuse(option: str, value: Any, meaningless: bool, works: str) -> None:
    if meaningless and value is not None:
        raise ValueError(f"{option}={shown(value)} has no effect with these options: {works}.")
