"""A section of a page in docs/ that a script writes, between markers of its own."""

from __future__ import annotations

from pathlib import Path


def write_section(page: Path, name: str, text: str) -> None:
    """Put `text` between the markers of a section; a page or a section that is not there yet is begun."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    old = page.read_text() if page.exists() else "# Performance\n"
    if start not in old:
        old = f"{old}\n{start}\n{end}\n"
    before, _, rest = old.partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")
