"""Shows and writes the record of a command: on the terminal, as JSON, as a report, whatever the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from bnfold.errors import BnfoldError, OutputError

if TYPE_CHECKING:
    from bnfold.report.documents import AnyDocument, Document, ErrorDocument

MODELS = ("model", "reference", "candidate", "models")
"""The parameters that name model files to read."""


def show(record: Document, as_json: bool, reports: Sequence[Path], quiet: bool, verbose: bool) -> None:
    """Write the record of a command to the places that the user asked for.

    Raises:
        OutputError: a place cannot be written to.
    """
    from bnfold.report import files

    for report in reports:
        files.write(record, report)
    with _standard_output():
        if as_json:
            click.echo(files.to_json(record))
        else:
            _print(record, quiet=quiet, verbose=verbose)


def _print(record: Document, *, quiet: bool, verbose: bool) -> None:
    from rich.console import Console

    from bnfold.report import bench_terminal, diff_terminal, fleet_terminal, terminal

    class Terminal(Console):
        """A console that leaves the handling of a reader who has gone to the caller."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    if record["command"] == "verify":
        terminal.show_comparison(record, Terminal(), verbose=verbose, quiet=quiet)
    elif record["command"] == "bench":
        bench_terminal.show(record, Terminal(), verbose=verbose, quiet=quiet)
    elif record["command"] == "diff":
        diff_terminal.show(record, Terminal(), verbose=verbose, quiet=quiet)
    elif record["command"] == "fleet":
        fleet_terminal.show(record, Terminal(), verbose=verbose, quiet=quiet)
    else:
        terminal.show(record, Terminal(), verbose=verbose, quiet=quiet)
        if timed := record.get("bench"):
            bench_terminal.show(timed, Terminal(), verbose=verbose, quiet=quiet)


@contextmanager
def _standard_output() -> Iterator[None]:
    """Standard output. A reader like `head` that has read enough is no error, and changes no exit code.

    Raises:
        OutputError: nothing can be written to it.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it fails again at the end
        raise OutputError(f"standard output: {error.strerror}") from error


def trace(record: AnyDocument, places: Mapping[Path, Path] | None = None) -> None:
    """Add the provenance to a record, if the record is kept.

    Args:
        record: the record of the command that runs.
        places: for each output file, the path where it is now.
    """
    from bnfold.report import provenance

    context = click.get_current_context()
    parameters = context.params
    if not parameters["as_json"] and not parameters["reports"]:
        return
    models: dict[str, Path] = {}
    for name in MODELS:
        value = parameters.get(name) or ()
        models |= {str(path): path for path in (value if isinstance(value, tuple) else (value,))}
    models |= {str(path): place for path, place in (places or {}).items()}
    record["provenance"] = provenance.trace(sys.argv[1:], models, parameters.get("seed"))


def show_error(error: BnfoldError) -> None:
    """Write the record of a command that ends with an error, if one was asked for."""
    from bnfold.report import files

    context = click.get_current_context()
    parameters: dict[str, Any] = context.params
    reports: tuple[Path, ...] = parameters["reports"]
    record: ErrorDocument = {
        "schema": "bnfold/1",
        "command": cast(Any, context.info_name),
        "error": {"kind": type(error).__name__, "message": str(error)},
        "exit_code": error.exit_code,
    }
    trace(record)
    with _standard_output():
        if parameters["as_json"]:
            click.echo(files.to_json(record))
    for report in reports:
        with suppress(BnfoldError):  # the error that is reported may be this one
            files.write(record, report)
