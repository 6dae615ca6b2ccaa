"""The file in which a cost model outlives its engine."""

import json
import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

from vllm_std.control.cost_model import CostModel


def save(costs: CostModel, path: Path) -> None:
    """Raises OSError where the file cannot be written; what was there then stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{uuid4().hex}.new")  # other engines may be saving the same costs, or reading them
    try:
        new.write_text(json.dumps(asdict(costs), indent=1) + "\n")
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def load(path: Path) -> CostModel | None:
    """None where there is no such file, or one that is not a cost model."""
    try:
        costs = CostModel(**json.loads(path.read_text()))
        return costs if _is_sound(costs) else None
    except (OSError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _is_sound(costs: CostModel) -> bool:
    """Whether it can be computed with; raises TypeError, ValueError or AttributeError for some that cannot."""
    grids = (costs.tokens, costs.dense), (costs.batch, costs.draft), (costs.batch, costs.select)
    numbers = [costs.per_kv, costs.select_per_kv, costs.windows]
    for key, (ratio, share, steps) in costs.corrections.items():
        _, batch, kv = key.split("/")
        numbers += [ratio, share, steps, int(batch), int(kv)]
    numbers += [number for xs, ys in grids for number in (*xs, *ys)]
    finite = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    ascend = all(xs and len(xs) == len(ys) and xs == sorted({*xs}) for xs, ys in grids)
    return finite and ascend and type(costs.source) is str and min(costs.dense) > 0
