"""The commands of `bnfold fleet`: each has the options of the single command, and those of a fleet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bnfold.cli import commands, recording
from bnfold.cli.parsing import Command, FiniteRange
from bnfold.errors import one_line

OWN = ("model", "models", "reference", "candidate", "output", "proof", "attest", "remarks", "overwrite")
"""Parameters of a single command that name one model or one file, or that a fleet has itself."""

RENDERING = ("as_json", "reports", "quiet", "verbose")

FLEET_OPTIONS = commands.options(
    click.option(
        "--list",
        "listed",
        type=commands.PATH,
        metavar="FILE",
        help="More sources, one a line: paths, URLs, or JSON objects with options of their own.",
    ),
    click.option("--ledger", type=commands.PATH, metavar="FILE", help="A line for each model, appended as it ends."),
    click.option("--workers", type=click.IntRange(1), help="Processes.  [default: by cores and memory]"),
    click.option("--memory", metavar="SIZE", help="Of each worker, as in 4GB.  [default: by the memory here]"),
    click.option("--scheduler", metavar="ADDRESS", help="A running scheduler of Dask: tcp://host:8786."),
    click.option(
        "--max-seconds",
        type=FiniteRange(0, min_open=True),
        default=1800.0,
        show_default="1800",
        help="How long a model may take.",
    ),
    click.option(
        "--keep-going/--no-keep-going",
        default=True,
        help="Go on when a model does not end well.  [default: keep-going]",
    ),
    commands.OUTPUT_OPTIONS,
)


@commands.cli.group(short_help="The same for many models: folders, globs, object stores.")
def fleet() -> None:
    """Fuse, inspect, verify or time many models, each in a process of its own.

    A SOURCE is a model, a folder (.onnx and .pt2 files below it), a glob, or a URL of one of these that fsspec knows,
    as s3://bucket/models/**/*.onnx. A model that the ledger tells of is not done again, unless it failed or changed.
    """


def _single(name: str) -> Callable[[Any], Any]:
    """The options of a single command, for a fleet."""
    single = commands.cli.commands[name]
    inherited = [option for option in single.params if option.name not in (*OWN, *RENDERING)]

    def add(command: Any) -> Any:
        command.params += [option for option in inherited if option.name not in {own.name for own in command.params}]
        return command

    return add


def _arguments(context: click.Context, single: click.Command) -> list[str]:
    """The options of a single command that were given, as its command line has them."""
    given: list[str] = []
    for option in single.params:
        name = option.name or ""
        is_given = context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
        if isinstance(option, click.Option) and name not in (*OWN, *RENDERING) and is_given:
            given += _spelled(option, context.params[name])
    return given


def _spelled(option: click.Option, value: Any) -> Iterator[str]:
    """One option with its value, as a command line has it."""
    name = option.opts[-1]
    if option.is_flag and isinstance(option.flag_value, str):
        if value == option.flag_value:
            yield name
    elif option.is_flag:
        yield name if value else option.secondary_opts[-1]
    elif isinstance(value, dict):
        yield from (f"{name}={key}={entry}" for key, entry in value.items())
    else:
        yield from (f"{name}={entry}" for entry in (value if option.multiple else (value,)))


SOURCES = click.argument("sources", nargs=-1, metavar="[SOURCE]...")


@_single("fuse")
@fleet.command(cls=Command, short_help="Fold, prove and write models.")
@SOURCES
@click.option("-o", "--out", required=True, metavar="FOLDER", help="A folder or a URL; paths below sources are kept.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that the ledger does not know.")
@FLEET_OPTIONS
def fuse(sources: tuple[str, ...], out: str, overwrite: bool, **options: Any) -> None:
    """Fold every BatchNorm of the models that can fold exactly, prove the results, and write them."""
    _run("fuse", sources, options, out=out, overwrite=overwrite)


@_single("inspect")
@fleet.command(cls=Command, short_help="Say where each BatchNorm would go, or why it stays.")
@SOURCES
@FLEET_OPTIONS
def inspect(sources: tuple[str, ...], **options: Any) -> None:
    """Say of every BatchNorm of the models where it would go, or why it stays; writes no model."""
    _run("inspect", sources, options)


@_single("verify")
@fleet.command(cls=Command, short_help="Decide whether models are the same, in pairs.")
@click.argument("sources", nargs=-1, metavar="[REFERENCES CANDIDATES]")
@FLEET_OPTIONS
def verify(sources: tuple[str, ...], **options: Any) -> None:
    """Decide for each model below CANDIDATES whether it is the same as that of the same path below REFERENCES."""
    if len(sources) not in (0, 2):
        raise click.UsageError("verify takes two sources: the references, and the candidates")
    _run("verify", sources[1:], options, baseline=sources[0] if sources else None)


@_single("bench")
@fleet.command(cls=Command, short_help="Time models.")
@SOURCES
@click.option("--baseline", metavar="SOURCE", help="Time each model beside that of the same path there.")
@FLEET_OPTIONS
def bench(sources: tuple[str, ...], baseline: str | None, **options: Any) -> None:
    """Time models, one at a time unless --workers says otherwise, since each disturbs the others."""
    options["workers"] = options["workers"] or (1 if options["scheduler"] is None else None)
    _run("bench", sources, options, baseline=baseline)


def _run(command: Any, sources: Sequence[str], options: dict[str, Any], **further: Any) -> None:
    from bnfold.fleet import engine
    from bnfold.report.fleet_pages import Pages
    from bnfold.report.fleet_record import Rows, record_fleet

    reports: tuple[Path, ...] = options["reports"]
    names = ("listed", "ledger", "workers", "memory", "scheduler", "keep_going")
    page = next((report for report in reports if report.suffix == ".html"), None)
    pages = None if page is None else Pages(page)
    rows = Rows() if pages is None else Rows(pages.add)
    with _progress() as progress:
        result = engine.run(
            command,
            sources,
            options=_arguments(click.get_current_context(), commands.cli.commands[command]),
            seconds=options["max_seconds"],
            progress=progress,
            each=rows.add if reports else (lambda line: None),
            **{name: options[name] for name in names},
            **further,
        )
    record = record_fleet(result)
    recording.trace(record)
    if reports:
        from bnfold.report import files

        complete = rows.complete(record)
        for report in reports:
            files.write(complete, report)
        if pages is not None:
            pages.close()
    recording.show(record, options["as_json"], (), options["quiet"], options["verbose"])
    sys.exit(result.exit_code)


@contextmanager
def _progress() -> Iterator[Callable[[Any], None]]:
    """A progress bar on standard error, if that is a terminal: models done, their rate, and which run."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[running]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("models", rate="", running="")

        def advance(progress: Any) -> None:
            speed = bar.tasks[task].speed
            running = ", ".join(one_line(name, 40) for name in progress.running[:3])
            more = f" and {len(progress.running) - 3} more" if len(progress.running) > 3 else ""
            bar.update(
                task,
                completed=progress.done,
                total=progress.total,
                rate=f"{speed:.1f}/s" if speed else "",
                running=running + more,
            )

        yield advance
