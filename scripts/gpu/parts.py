"""What is measured on one GPU, in the order of its worth: models, engines ("sides") and cells. No torch in here."""

from dataclasses import dataclass, field, replace

from gpu.shapes import SHAPES

NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4}


def std(**options) -> dict:
    return {"method": "std", "num_speculative_tokens": 7} | options


@dataclass(frozen=True)
class TimedCell:
    """What is timed: `batch` requests with `context` cached tokens each decode on the engine `side`.

    gamma: draft length, or "adaptive": as std chooses it, step by step. rate: the chance of a draft to be accepted
    where it is set and not real (vLLM's synthetic acceptance); None too where nothing is drafted.
    """

    side: str
    batch: int
    context: int
    gamma: int | str = 0
    rate: float | None = None
    temperature: float = 0.0

    def __str__(self) -> str:
        drafts = "" if self.side == "plain" else f" gamma={self.gamma}"
        rate = "" if self.rate is None else f" p={self.rate}"
        temperature = f" T={self.temperature}" if self.temperature else ""
        return f"{self.side} {self.batch} x {self.context:,}{drafts}{rate}{temperature}"


@dataclass(frozen=True)
class Part:
    """rows: (requests, tokens of context). sides: options of speculative decoding, plain vLLM is always there as well.

    drafts: by side, (draft length, synthetic acceptance, temperature) of each of its cells. tokens: of an answer.
    turns: how often each cell is timed. together: all engines fit the GPU at once and take turns; else plain vLLM runs
    before the others and again after them. minutes: what the part takes on an H100, roughly.
    """

    title: str
    model: str
    rows: tuple[tuple[int, int], ...]
    sides: dict[str, dict]
    drafts: dict[str, tuple]
    minutes: int
    tokens: int = 192
    turns: int = 4
    together: bool = False
    tiny: bool = field(default=False)

    def cells(self, side: str) -> list[TimedCell]:
        drafts = self.drafts[side] if side != "plain" else [(0, None, heat) for heat in self.temperatures]
        return [TimedCell(side, *row, *draft) for row in self.rows for draft in drafts]

    @property
    def temperatures(self) -> list[float]:
        return sorted({draft[2] for drafts in self.drafts.values() for draft in drafts})

    @property
    def trained(self) -> bool:
        """Whether the model has weights of its own, and not dummy ones."""
        return self.model not in SHAPES

    def shrunk(self) -> "Part":
        """The same on a tiny model, to try it without a GPU: its times say nothing."""
        context, top_k = {"smollm2": (1200, 512), "video": (900, 192)}.get(self.model, (256, 192))
        rows = tuple((min(2, batch), context + 64 * place) for place, (batch, _) in enumerate(self.rows[:2]))
        sides = {
            name: given | ({"top_k": top_k, "calibrate": False} if given["method"] == "std" else {})
            for name, given in self.sides.items()
        }
        drafts = {name: given[:2] for name, given in self.drafts.items()}
        return replace(self, rows=rows, sides=sides, drafts=drafts, tokens=64, turns=2, tiny=True)


PARTS = {
    "7b": Part(
        "Qwen2-VL-7B's decoder, dummy weights", "qwen2-7b", ((32, 32000),),
        {"std": std(top_k=1024), "std K=512": std(top_k=512)},
        {
            "std": (
                (5, 0.9, 0.0), ("adaptive", 0.9, 0.0), (7, 0.95, 0.0), (3, 0.9, 0.0), (0, None, 0.0), (7, 0.9, 0.0),
                ("adaptive", 0.95, 0.0), (5, 0.95, 0.0), (3, 0.95, 0.0),
            ),
            "std K=512": ((5, 0.9, 0.0), (7, 0.95, 0.0), ("adaptive", 0.9, 0.0), ("adaptive", 0.95, 0.0)),
        },
        minutes=9,
    ),
    "8b": Part(
        # 144 KiB of KV a token: 48 x 10K do not fit 80 GB beside the weights, 36 x 10K do.
        "Qwen3-8B's shape, dummy weights", "qwen3-8b", ((8, 32000), (48, 10000), (36, 10000)),
        {"std": std(top_k=1024), "ngram": NGRAM},
        {
            "std": ((5, 0.9, 0.0), ("adaptive", 0.9, 0.0), (7, 0.95, 0.0), ("adaptive", 0.95, 0.0)),
            "ngram": ((5, 0.9, 0.0), (5, 0.95, 0.0)),
        },
        minutes=9,
    ),
    "smollm2": Part(
        "SmolLM2-135M-Instruct", "smollm2", ((64, 7500),),
        {"std": std(top_k=1024), "std proposals=3": std(top_k=1024, proposals=3), "ngram": NGRAM},
        {
            "std": (
                (5, None, 0.0), ("adaptive", None, 0.0), (5, None, 0.7), ("adaptive", None, 0.7), (7, None, 0.0),
                (3, None, 0.0),
            ),
            "std proposals=3": ((7, None, 0.0), ("adaptive", None, 0.0), ("adaptive", None, 0.7)),
            "ngram": ((5, None, 0.0), (5, None, 0.7)),
        },
        minutes=6, tokens=128, together=True,
    ),
    "video": Part(
        "bundled video model", "video", ((64, 8100),),
        {"std": std(top_k=192), "std proposals=3": std(top_k=192, proposals=3)},
        {
            "std": ((5, None, 0.0), ("adaptive", None, 0.0), (7, None, 0.0), ("adaptive", None, 0.7), (3, None, 0.0)),
            "std proposals=3": ((7, None, 0.0), ("adaptive", None, 0.0)),
        },
        minutes=6, tokens=128, together=True,
    ),
    "never-slower": Part(
        "Qwen2-VL-7B's decoder, dummy weights, std with its defaults", "qwen2-7b", ((1, 32000), (32, 2048)),
        {"std": {"method": "std"}}, {"std": tuple(("adaptive", rate, 0.0) for rate in (0.9, 0.6, 0.0))},
        minutes=6, tokens=384, turns=6, together=True,
    ),
    "mha": Part(
        "Vicuna-7B's shape, dummy weights", "vicuna-7b", ((8, 8192), (1, 32000)), {"std": std(top_k=1024)},
        {"std": ((5, 0.9, 0.0), ("adaptive", 0.9, 0.0), (7, 0.95, 0.0))}, minutes=5,
    ),
}  # fmt: skip
