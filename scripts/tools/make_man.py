"""Writes man/*.1, a manual page for each command, from what click knows. The wheel has them in share/man/man1."""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from pathlib import Path

from bnfold.cli import cli
from bnfold.cli.commands import EXIT_CODES

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "man"


def pages() -> dict[str, str]:
    """The text of each page."""
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # a page that says the same is the same
    from click_man.core import write_man_pages

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    with tempfile.TemporaryDirectory() as folder:
        write_man_pages("bnfold", cli, version=version, target_dir=folder)
        made = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
    return {name: text.replace('"1970-01-01"', '""').rstrip() + "\n" + exit_status() for name, text in made.items()}


def exit_status() -> str:
    """The section on exit codes, which click-man leaves out with the rest of an epilog."""
    codes = [line.strip().split("  ", 1) for line in EXIT_CODES.splitlines() if line.startswith("  ")]
    rows = [f".TP\n\\fB{row[0]}\\fP\n{row[1]}" if row[0].isdecimal() else "  ".join(row) for row in codes]
    return "\n".join([".SH EXIT STATUS", *rows]) + "\n"


def main() -> None:
    made = pages()
    if "--check" in sys.argv:
        sys.exit({path.name: path.read_text(encoding="utf-8") for path in TARGET.iterdir()} != made)
    TARGET.mkdir(exist_ok=True)
    for name, text in made.items():
        (TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
