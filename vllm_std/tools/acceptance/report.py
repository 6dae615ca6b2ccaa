"""A summary of the lab, for a terminal."""

from collections.abc import Callable

from rich.table import Table

from vllm_std.tools.acceptance.grid import show_k

POSITIONS = (1, 2, 3, 5, 8, 13, 21)  # draft positions that the second table shows, and the last one
Column = Callable[[dict], str]  # a cell of the summary: what the column says of it


def acceptance_table(summary: dict) -> Table:
    """A row for each cell of the grid; columns that would say the same in every row are left out."""
    cells = summary["cells"]
    columns = _setting_columns(cells) | _measured_columns(cells) | _comparison_column(cells)
    shortest, longest = summary["context"]
    table = Table(title=f"{summary['settings']['model']}, contexts of {shortest:,} to {longest:,} tokens")
    for name in columns:
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for cell in cells:
        table.add_row(*(text(cell) for text in columns.values()))
    return table


def _setting_columns(cells: list[dict]) -> dict[str, Column]:
    columns: dict[str, Column] = {
        "policy": lambda cell: cell["policy"],
        "K": lambda cell: show_k(cell["k"]),
        "gamma": lambda cell: str(cell["gamma"]),
    }
    return columns | {name: lambda cell, name=name: f"{cell[name]:g}" for name in _varying(cells)}


def _measured_columns(cells: list[dict]) -> dict[str, Column]:
    tasks = sorted({task for cell in cells for task in cell["tasks"]})
    columns: dict[str, Column] = {
        "acceptance [95 %]": lambda cell: share_text(cell, "acceptance", interval=True),
        "tokens a pass": lambda cell: f"{cell['mean_acceptance_length']:.2f}" if cell["rounds"] else "-",
    }
    columns |= {task: lambda cell, task=task: share_text(cell["tasks"].get(task, {}), "acceptance") for task in tasks}
    if any("drafts_a_step" in cell for cell in cells):
        columns["drafts a step"] = lambda cell: share_text(cell, "drafts_a_step")
        columns |= {f"{task}, drafts a step": _drafts_a_step(task) for task in tasks}
    if any(cell["right"] is not None for cell in cells):
        columns["right"] = lambda cell: share_text(cell, "right")
    columns["prompts"] = lambda cell: str(cell["prompts"])
    columns["rounds"] = lambda cell: f"{cell['rounds']:,}"
    return columns


def _drafts_a_step(task: str) -> Column:
    return lambda cell: share_text(cell["tasks"].get(task, {}), "drafts_a_step")


def _comparison_column(cells: list[dict]) -> dict[str, Column]:
    """The difference to the policy of --against, where one was given."""
    policies = [cell["against"]["policy"] for cell in cells if "against" in cell]
    if not policies:
        return {}
    return {
        f"less {policies[0]} [95 %]": lambda cell: share_text(
            cell.get("against", {}), "difference", interval=True, sign="+"
        )
    }


def positions_table(summary: dict) -> Table:
    """Two rows for each cell: what is accepted at a draft position, and tokens of a round that ends there."""
    cells = [cell for cell in summary["cells"] if cell["positions"]]
    varying = _varying(cells)
    longest = max(len(cell["positions"]) for cell in cells)
    shown = sorted({*POSITIONS, longest} & set(range(1, longest + 1)))
    table = Table(title="By draft position: accepted where all before it were; tokens of a round that ends there")
    table.add_column("policy", no_wrap=True)
    for name in ("K", "gamma", *varying, "", *map(str, shown)):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        names = cell["policy"], show_k(cell["k"]), str(cell["gamma"]), *(f"{cell[name]:g}" for name in varying)
        known = [cell["positions"][position - 1] for position in shown if position <= len(cell["positions"])]
        table.add_row(*names, "accepted", *(_plus_minus(at["acceptance"], at["interval"], 3) for at in known))
        table.add_row(*names, "tokens", *(_plus_minus(at["tokens"], at["tokens_interval"], 2) for at in known))
    return table


def _varying(cells: list[dict]) -> list[str]:
    """Settings that differ between cells, beside those that are always shown."""
    return [name for name in ("refresh", "temperature") if len({cell[name] for cell in cells}) > 1]


def _plus_minus(value: float | None, interval: list[float] | None, digits: int) -> str:
    """A value, and half of its interval."""
    if value is None:
        return "-"
    half = f" ±{(interval[1] - interval[0]) / 2:.{digits}f}" if interval else ""
    return f"{value:.{digits}f}{half}"


def share_text(entry: dict, name: str, interval: bool = False, sign: str = "") -> str:
    """entry[name] with its interval, if that is asked for; a dash where it is not known."""
    if entry.get(name) is None:
        return "-"
    text = f"{entry[name]:{sign}.3f}"
    if interval and entry["interval"]:
        text += " [{:{sign}.3f}, {:{sign}.3f}]".format(*entry["interval"], sign=sign)
    return text


def greedy_sentence(summary: dict) -> str:
    """Whether greedy answers were the same in all cells; empty where none can be compared."""
    greedy = summary["greedy"]
    if not greedy["prompts"]:
        return ""
    if not greedy["differ"]:
        return f"Greedy answers are equal token by token in all cells, for {greedy['prompts']} prompts."
    dtype = summary["settings"]["dtype"]
    why = "a fault" if dtype == "float32" else f"as happens at near ties in {dtype}"
    return f"Greedy answers of {len(greedy['differ'])} of {greedy['prompts']} prompts differ between cells ({why})."
