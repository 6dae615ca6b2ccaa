"""What is looked up for a draft step."""

from dataclasses import dataclass
from typing import Any

from vllm_std.config import StdConfig


@dataclass(frozen=True)
class Lookup:
    """Options of the n-gram lookup, as vLLM's `ngram` method has them.

    proposals: tokens proposed for a pass. min_n, max_n: least and most tokens of an n-gram. placeholders: tokens that
    stand for images, videos or audio, which are not proposed.
    """

    proposals: int
    min_n: int
    max_n: int
    placeholders: tuple[int, ...]

    @classmethod
    def of(cls, options: StdConfig, hf_config: Any) -> "Lookup":
        """hf_config: of the model, as transformers loads it."""
        names = (f"{kind}_token_{what}" for kind in ("image", "video", "audio") for what in ("id", "index"))
        found = {getattr(hf_config, name, None) for name in names}
        placeholders = tuple(sorted(token for token in found if type(token) is int))
        least, most = options.prompt_lookup_min, options.prompt_lookup_max
        assert least is not None and most is not None  # set with `proposals`
        return cls(options.proposals, least, most, placeholders)
