"""A summary for a terminal."""

from collections.abc import Callable

from rich.table import Table

from vllm_std.tools.acceptance.grid import show_k


def table(summary: dict) -> Table:
    """The summary for a terminal; columns that say the same in every row are left out."""
    cells = summary["cells"]
    tasks = sorted({task for cell in cells for task in cell["tasks"]})
    varies = {name for name in ("refresh", "temperature") if len({cell[name] for cell in cells}) > 1}
    columns: dict[str, Callable] = {
        "policy": lambda cell: cell["policy"],
        "K": lambda cell: show_k(cell["k"]),
        "gamma": lambda cell: str(cell["gamma"]),
        **{name: lambda cell, name=name: f"{cell[name]:g}" for name in sorted(varies)},
        "acceptance [95 %]": show,
        "length": lambda cell: "-" if cell["rounds"] == 0 else f"{cell['mean_acceptance_length']:.2f}",
        **{task: lambda cell, task=task: show(cell["tasks"].get(task, {}), interval=False) for task in tasks},
        **({"right": lambda cell: show(cell, "right", interval=False)} if _known(cells, "right") else {}),
        "prompts": lambda cell: str(cell["prompts"]),
        "rounds": lambda cell: f"{cell['rounds']:,}",
    }
    if any("against" in cell for cell in cells):
        policy = next(cell["against"]["policy"] for cell in cells if "against" in cell)
        columns[f"less {policy} [95 %]"] = lambda cell: show(cell.get("against", {}), "difference", sign="+")
    least, most = summary["context"]
    shown = Table(title=f"{summary['settings']['model']}, contexts of {least:,} to {most:,} tokens")
    for name in columns:
        shown.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    for cell in cells:
        shown.add_row(*(text(cell) for text in columns.values()))
    return shown


def positions(summary: dict) -> Table:
    """Two lines for each cell: what is accepted at a draft position, and tokens of a round that ends there."""
    cells = [cell for cell in summary["cells"] if cell["positions"]]
    varies = [name for name in ("refresh", "temperature") if len({cell[name] for cell in cells}) > 1]
    longest = max(len(cell["positions"]) for cell in cells)
    some = sorted({1, 2, 3, 5, 8, 13, 21, longest} & set(range(1, longest + 1)))
    shown = Table(title="By draft position: accepted where all before it were; tokens of a round that ends there")
    shown.add_column("policy", no_wrap=True)
    for name in ("K", "gamma", *varies, "", *map(str, some)):
        shown.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        names = cell["policy"], show_k(cell["k"]), str(cell["gamma"]), *(f"{cell[name]:g}" for name in varies)
        known = [cell["positions"][position - 1] for position in some if position <= len(cell["positions"])]
        shown.add_row(*names, "accepted", *(_give(at["acceptance"], at["interval"], 3) for at in known))
        shown.add_row(*names, "tokens", *(_give(at["tokens"], at["tokens_interval"], 2) for at in known))
    return shown


def _give(value: float | None, interval: list[float] | None, digits: int) -> str:
    """A value, and half of its interval."""
    if value is None:
        return "-"
    around = f" ±{(interval[1] - interval[0]) / 2:.{digits}f}" if interval else ""
    return f"{value:.{digits}f}{around}"


def _known(cells: list[dict], name: str) -> bool:
    return any(cell[name] is not None for cell in cells)


def show(entry: dict, name: str = "acceptance", interval: bool = True, sign: str = "") -> str:
    if entry.get(name) is None:
        return "-"
    text = f"{entry[name]:{sign}.3f}"
    if interval and entry["interval"]:
        text += " [{:{sign}.3f}, {:{sign}.3f}]".format(*entry["interval"], sign=sign)
    return text


def greedy_sentence(summary: dict) -> str:
    greedy = summary["greedy"]
    if not greedy["prompts"]:
        return ""
    if not greedy["differ"]:
        return f"Greedy answers are equal token by token in all cells, for {greedy['prompts']} prompts."
    dtype = summary["settings"]["dtype"]
    why = "a fault" if dtype == "float32" else f"near ties in {dtype} part so"
    return f"Greedy answers of {len(greedy['differ'])} of {greedy['prompts']} prompts differ between cells ({why})."
