"""The command line, and what only a process of its own may do."""

from bnfold.cli import fleet as _fleet  # noqa: F401, which adds its commands
from bnfold.cli.commands import cli, main

__all__ = ["cli", "main"]
