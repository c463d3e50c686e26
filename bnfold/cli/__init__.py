"""The command line, and what only a process of its own may do."""

from bnfold.cli.commands import cli, main

__all__ = ["cli", "main"]
