"""The command line: parses, calls, renders, exits.

What needs onnx or onnxruntime is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click

from bnfold.errors import BnfoldError

F = TypeVar("F", bound=Callable[..., Any])


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    return lambda function: functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), function)


def _dims(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for each in given:
        name, _, size = each.rpartition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise click.BadParameter(f"{each!r} is not NAME=N with N of at least 1")
        sizes[name] = int(size)
    return sizes


def _report(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        if path.suffix not in (".html", ".json", ".xml"):
            raise click.BadParameter(f"{path}: a report ends in .html, .json or .xml (JUnit)")
        from bnfold.report import files

        files.require(path)
    return path


PATH = click.Path(path_type=Path)

OUTPUT_OPTIONS = _options(
    click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output, nothing else there."),
    click.option("--report", type=PATH, callback=_report, help="Also write a report: .html, .json, or .xml (JUnit)."),
    click.option("-q", "--quiet", is_flag=True, help="The summary only."),
    click.option("-v", "--verbose", is_flag=True, help="Also the other per-channel affines that fold."),
)

INPUT_OPTIONS = _options(
    click.option("--inputs", "inputs_path", type=PATH, help="Real inputs: .npz, folder of .npy, or test_data_set_*."),
    click.option("--dim", "dims", multiple=True, callback=_dims, metavar="NAME=N", help="Size of a dynamic dimension."),
    click.option("--samples", type=click.IntRange(1), default=2, show_default=True, help="How many drawn inputs."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the drawn inputs."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("bnfold"), prog_name="bnfold")
def cli() -> None:
    """Fold BatchNorm into weights, exactly, with a reason for every one that stays."""


@cli.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Where to write the folded model.")
@click.option("--no-verify", is_flag=True, help="Do not compare the result with MODEL.")
@click.option("--only", multiple=True, metavar="GLOB", help="Fold only BatchNorms with such names.")
@click.option("--skip", multiple=True, metavar="GLOB", help="Keep BatchNorms with such names.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@INPUT_OPTIONS
@OUTPUT_OPTIONS
def fuse(
    model: Path,
    output: Path,
    no_verify: bool,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    overwrite: bool,
    inputs_path: Path | None,
    dims: dict[str, int],
    samples: int,
    seed: int,
    **rendering: Any,
) -> None:
    """Fold every BatchNorm of MODEL that can fold exactly, verify the result, and write it."""
    from bnfold import api
    from bnfold.report.record import record_file
    from bnfold.verification.inputs import InputOptions

    with _progress(rendering) as progress:
        result = api.fuse_file(
            model,
            output,
            selection=api.Selection(only, skip),
            verify=not no_verify,
            inputs=InputOptions(inputs_path, dims, samples, seed),
            overwrite=overwrite,
            progress=progress,
        )
    _render(record_file("fuse", result), **rendering)


@cli.command()
@click.argument("model", type=PATH)
@click.option("--fail-on-foldable", is_flag=True, help="Exit 1 if a BatchNorm that could fold is still there.")
@OUTPUT_OPTIONS
def inspect(model: Path, fail_on_foldable: bool, **rendering: Any) -> None:
    """Say of every BatchNorm of MODEL where it would go, or why it stays; writes nothing."""
    from bnfold import api
    from bnfold.report.record import record_file

    with _progress(rendering) as progress:
        record = record_file("inspect", api.inspect_file(model, progress=progress))
    _render(record, **rendering)
    if fail_on_foldable and record["batchnorms"]["folded"]:
        sys.exit(1)


@contextmanager
def _progress(rendering: dict[str, Any]) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if rendering["quiet"] or not console.is_terminal:
        yield lambda stage, done, total: None
        return
    with Progress(console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], completed=done, total=total)

        yield advance


def _render(record: dict[str, Any], as_json: bool, report: Path | None, quiet: bool, verbose: bool) -> None:
    from rich.console import Console

    from bnfold.report import files, terminal

    if report is not None:
        files.write(record, report)
    if as_json:
        click.echo(files.to_json(record))
    else:
        terminal.show(record, Console(), verbose=verbose, quiet=quiet)


def main() -> None:
    """Run the command line; an error that a user can act on is one line and its exit code."""
    try:
        cli(prog_name="bnfold")
    except BnfoldError as error:
        click.echo(f"bnfold: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
