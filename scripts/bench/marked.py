"""Tables that stand in a page between two marks, and are made from records."""

from pathlib import Path

import typer


def write(page: Path, begin: str, end: str, table: str, check: bool) -> None:
    """Put the table between the marks; check: only end with exit status 1 where the page has another one."""
    text = page.read_text()
    before, rest = text.split(begin)
    made = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    if check and made != text:
        raise typer.Exit(1)
    if not check:
        page.write_text(made)
