"""The command line: parses, calls, renders, exits.

Each command imports onnx or onnxruntime itself if it needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import click
from click.core import ParameterSource

from bnfold.cli import recording
from bnfold.cli.allocation import collect_seldom, forget_garbage
from bnfold.cli.lazily import lazily
from bnfold.cli.parsing import Command, FiniteRange
from bnfold.errors import BnfoldError, IncomparableError, NotEquivalentError, one_line
from bnfold.frontends.limits import LIMITS, Limits

if TYPE_CHECKING:
    from bnfold.frontends.protocol import Written
    from bnfold.report.documents import BenchDocument, FileDocument
    from bnfold.runtimes.apart import Apart
    from bnfold.runtimes.inputs import InputOptions
    from bnfold.verification.drift import DriftReport

F = TypeVar("F", bound=Callable[..., Any])


def options(*several: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator."""
    return lambda function: functools.reduce(lambda wrapped, option: option(wrapped), reversed(several), function)


def _dims(context: click.Context, parameter: click.Parameter, entries: tuple[str, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in entries:
        name, _, size = entry.rpartition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise click.BadParameter(f"{entry!r} is not NAME=N with N of at least 1")
        sizes[name] = int(size)
    return sizes


def _renamed(context: click.Context, parameter: click.Parameter, entries: tuple[str, ...]) -> dict[str, str]:
    names: dict[str, str] = {}
    for entry in entries:
        old, _, new = entry.partition("=")
        if not old or not new or old in names or new in names.values():
            raise click.BadParameter(f"{entry!r} is not OLD=NEW with names that are given once")
        names[old] = new
    return names


def _reports(context: click.Context, parameter: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in paths:
        if path.suffix not in (".html", ".json", ".xml", ".md"):
            raise click.BadParameter(f"{path}: a report ends in .html, .json, .xml (JUnit) or .md")
        from bnfold.report import files

        files.require(path)
    return paths


SELDOM = (
    "sympy", "onnx_ir._symbolic_shapes", "bnfold.runtimes.reference",
    "bnfold.report.html", "bnfold.report.junit", "bnfold.report.markdown",
)  # fmt: skip
"""Modules that are slow to import, and that most runs of a command do without."""

PATH = click.Path(path_type=Path)

OUTPUT_OPTIONS = options(
    click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output, nothing else there."),
    click.option(
        "--report",
        "reports",
        type=PATH,
        multiple=True,
        callback=_reports,
        help="Also write a report: .html, .json, .md or .xml (JUnit); repeatable.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="The summary only."),
    click.option("-v", "--verbose", is_flag=True, help="More: other affines that fold, inner values, how it ran."),
)

LIMIT_OPTIONS = options(
    click.option(
        "--max-nodes", type=click.IntRange(1), default=LIMITS.nodes, show_default=True, help="Most nodes of a model."
    ),
    click.option(
        "--max-depth", type=click.IntRange(1), default=LIMITS.depth, show_default=True, help="Most graphs in graphs."
    ),
    click.option(
        "--max-bytes", type=click.IntRange(1), default=LIMITS.bytes, show_default=True, help="Most bytes of tensors."
    ),
)

MERGE_OPTION = click.option(
    "--merge/--no-merge",
    default=True,
    help="Let parallel linear branches, and linear operators in a row, become one.  [default: merge]",
)

REMARKS_OPTION = click.option(
    "--remarks", type=PATH, help="Also write what became of each BatchNorm and merge, a line of JSON each."
)

INPUT_OPTIONS = options(
    click.option(
        "--inputs",
        multiple=True,
        type=PATH,
        help="Real inputs: .npz, folder of .npy, or test_data_set_*; repeatable.",
    ),
    click.option(
        "--dim",
        "dims",
        multiple=True,
        callback=_dims,
        metavar="NAME=N",
        help="Size of a dynamic dimension; repeatable.",
    ),
    click.option("--samples", type=click.IntRange(1), default=2, show_default=True, help="How many random inputs."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the drawn inputs."),
)

EFFORT_OPTIONS = options(
    click.option("--fast", "effort", flag_value="fast", help="Fewer drawn inputs, fewer measurements of noise."),
    click.option("--thorough", "effort", flag_value="thorough", help="More of both, and every inner value."),
)


TIMEOUT_OPTION = click.option(
    "--timeout",
    type=FiniteRange(0, min_open=True),
    default=600.0,
    show_default="600",
    metavar="SECONDS",
    help="How long a runtime may take to load a model, or to run it once.",
)

CUSTOM_OPS_OPTION = click.option(
    "--custom-ops",
    multiple=True,
    type=PATH,
    metavar="LIBRARY",
    help="Library of custom operators for ONNX Runtime; repeatable.",
)

EXIT_CODES = """\b
Exit codes:
  0  done, or equivalent
  1  not proved, not equivalent (nothing is written), a gate is not met (--fail-on-..., --require, --no-slower,
     diff --exit-code)
  2  wrong use of the command line, or an output that exists and is not to be replaced
  3  a file is missing, unreadable, invalid or unsafe, or two models cannot be compared
  130  interrupted; nothing is written
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
    short_help="Fold BatchNorm into weights, exactly.",
)
@click.version_option(version("bnfold"), prog_name="bnfold")
def cli() -> None:
    """Fold BatchNorm into weights, exactly, with a reason for every one that stays.

    A MODEL is an .onnx file, or a .pt2 file (what torch.export.save writes).
    """


@cli.command(cls=Command, short_help="Fold, prove and write a model.")
@click.argument("model", type=PATH)
@click.option(
    "-o", "--output", type=PATH, required=True, help="Where to write the folded model, in the format of MODEL."
)
@click.option(
    "--verify",
    type=click.Choice(["proof", "full", "none"]),
    default="proof",
    show_default=True,
    help="Prove each fold and run the result once; compare it on many inputs as well; or neither.",
)
@click.option("--no-verify", is_flag=True, help="The same as --verify none.")
@click.option("--proof", type=PATH, help="Write the certificate of the proof there, whatever --verify says.")
@click.option("--attest", type=PATH, help="Write an in-toto statement of what was done and proved there, to be signed.")
@click.option(
    "--lower",
    type=click.Choice(["depthwise", "mul-add"]),
    help="Write BatchNorms that stay as depthwise convolutions, or as Mul and Add, for runtimes that have none.",
)
@click.option("--only", multiple=True, metavar="GLOB", help="Fold only BatchNorms with such names; repeatable.")
@click.option("--skip", multiple=True, metavar="GLOB", help="Keep BatchNorms with such names; repeatable.")
@MERGE_OPTION
@REMARKS_OPTION
@click.option("--bench", "is_timed", is_flag=True, help="Time the result beside MODEL, at the runtime's default level.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@CUSTOM_OPS_OPTION
@TIMEOUT_OPTION
@INPUT_OPTIONS
@EFFORT_OPTIONS
@LIMIT_OPTIONS
@OUTPUT_OPTIONS
def fuse(
    model: Path,
    output: Path,
    verify: str,
    no_verify: bool,
    proof: Path | None,
    attest: Path | None,
    lower: Literal["depthwise", "mul-add"] | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    merge: bool,
    remarks: Path | None,
    is_timed: bool,
    overwrite: bool,
    custom_ops: tuple[Path, ...],
    timeout: float,
    max_nodes: int,
    max_depth: int,
    max_bytes: int,
    **others: Any,
) -> None:
    """Fold every BatchNorm of MODEL that can fold exactly, prove the result, and write it."""
    from bnfold import api
    from bnfold.cli.allocation import keep_freed_memory
    from bnfold.report import files
    from bnfold.report.record import record_drift, record_file
    from bnfold.report.remarks import render as render_remarks
    from bnfold.verification.equivalence import verify_files
    from bnfold.verification.options import CompareOptions

    keep_freed_memory()
    if is_timed and model.absolute() == output.absolute():
        raise click.UsageError("--bench needs MODEL beside the output, which replaces it")
    inputs, rendering = _inputs(others)

    drift: list[DriftReport] = []

    def recorded(result: api.FileResult) -> FileDocument:
        record = record_file("fuse", result)
        if drift:
            record["drift"] = record_drift(drift[0], None)
        return record

    def render(result: api.FileResult, written: Written) -> dict[Path, str]:
        """Render report and remarks, which appear together with the output."""
        if not rendering["reports"] and remarks is None:
            return {}
        record = recorded(result)
        recording.trace(record, {output: written.model})
        texts = {report: files.render(record, report) for report in rendering["reports"]}
        return texts if remarks is None else {**texts, remarks: render_remarks(record)}

    checks, limits = "none" if no_verify else verify, Limits(max_nodes, max_depth, max_bytes)
    is_run = checks == "full" or inputs.is_given
    with _apart((model,), timeout) if is_run else nullcontext() as other, _progress() as progress:
        if other is not None and inputs.is_given:
            drift += _measure_drift(other, model, inputs, limits, custom_ops)
        try:
            result = api.fuse_file(
                model,
                output,
                selection=api.Selection(only, skip),
                merge=merge,
                checks=checks,
                comparison=CompareOptions(inputs, custom_ops=custom_ops),
                overwrite=overwrite,
                limits=limits,
                progress=progress,
                proof=proof,
                attestation=attest,
                render=render,
                lower=lower,
                verify=verify_files if other is None else partial(other.call, verify_files),
            )
        except NotEquivalentError as error:
            record = recorded(error.result)
            recording.trace(record)
            recording.show(record, **{**rendering, "quiet": True})
            raise
        record = recorded(result)
        recording.trace(record, {output: output})
        if is_timed:
            record["bench"] = _time(model, output, progress, inputs=inputs, custom_ops=custom_ops, timeout=timeout)
    recording.show(record, **(rendering if is_timed else {**rendering, "reports": ()}))


def _measure_drift(
    other: Apart, model: Path, inputs: InputOptions, limits: Limits, custom_ops: Sequence[Path]
) -> Iterator[DriftReport]:
    """How far the data are from the running statistics; nothing, with a line, where the model does not run on them."""
    from bnfold.verification.drift import measure_drift

    try:
        yield other.call(measure_drift, model, inputs, limits, custom_ops)
    except IncomparableError as error:
        click.echo(f"bnfold: running statistics not compared with the inputs: {one_line(str(error))}", err=True)


def _apart(models: Sequence[Path], seconds: float) -> Apart:
    """A process of its own for the runtimes of these models.

    What it needs is imported here, once for both processes. Where torch was imported before, it may have threads, which
    a fork does not have.
    """
    from bnfold.frontends.door import find_entry
    from bnfold.runtimes.apart import METHOD, Apart

    method = "spawn" if "torch" in sys.modules else METHOD
    for model in models:
        entry = find_entry(model)
        entry.part(entry.subject)
    return Apart(seconds, method)


def _time(model: Path, output: Path, progress: Callable[[str, int, int], None], **options: Any) -> BenchDocument | None:
    """Time the result beside its original, as deployed; None, with a line on the terminal, where neither runs."""
    from bnfold.bench.comparison import benchmark
    from bnfold.report.bench_record import record_bench

    try:
        return record_bench(benchmark((model, output), levels=("all",), progress=progress, **options))
    except BnfoldError as error:
        click.echo(f"bnfold: not timed: {one_line(str(error))}", err=True)
        return None


def _inputs(options: dict[str, Any]) -> tuple[InputOptions, dict[str, Any]]:
    """The inputs for the options of `INPUT_OPTIONS` and `EFFORT_OPTIONS`, and the options that are left."""
    from bnfold.runtimes.inputs import Effort, InputOptions

    names = ("inputs", "dims", "samples", "seed", "effort")
    paths, dims, samples, seed, effort = (options[name] for name in names)
    left = {name: value for name, value in options.items() if name not in names}
    return InputOptions(paths, dims, samples, seed, Effort(effort or "standard")), left


@cli.command(cls=Command, short_help="Decide whether two models are the same.")
@click.argument("reference", type=PATH)
@click.argument("candidate", type=PATH)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Where CANDIDATE must agree too, as deployed: cpu, cuda ... (reference: by onnx in float64); repeatable.",
)
@click.option(
    "--min-snr", type=FiniteRange(), metavar="DB", help="Lossy gate: least signal to difference, in decibels."
)
@click.option("--min-argmax", type=FiniteRange(0, 1), metavar="SHARE", help="Lossy gate: least share of equal argmax.")
@click.option("--atol", type=FiniteRange(0), help="Lossy gate: absolute tolerance, in place of the budget.")
@click.option("--rtol", type=FiniteRange(0), help="Lossy gate: relative tolerance, in place of the budget.")
@click.option(
    "--map",
    "renamed",
    multiple=True,
    callback=_renamed,
    metavar="OLD=NEW",
    help="CANDIDATE's name for an input or output of REFERENCE; repeatable.",
)
@click.option("--proof", type=PATH, help="Check this certificate, which `fuse --proof` wrote, and run nothing.")
@click.option("--outputs-only", is_flag=True, help="Do not compare inner values that carry the same name.")
@click.option("--strict-inside", is_flag=True, help="Inner values of one name must agree, even if what follows does.")
@click.option(
    "--allow-interface",
    is_flag=True,
    help="Sizes may be fixed, and names, float types, defaults and declared outputs differ.",
)
@CUSTOM_OPS_OPTION
@TIMEOUT_OPTION
@INPUT_OPTIONS
@EFFORT_OPTIONS
@LIMIT_OPTIONS
@OUTPUT_OPTIONS
def verify(
    reference: Path,
    candidate: Path,
    providers: tuple[str, ...],
    min_snr: float | None,
    min_argmax: float | None,
    atol: float | None,
    rtol: float | None,
    renamed: dict[str, str],
    outputs_only: bool,
    strict_inside: bool,
    allow_interface: bool,
    proof: Path | None,
    custom_ops: tuple[Path, ...],
    timeout: float,
    max_nodes: int,
    max_depth: int,
    max_bytes: int,
    **others: Any,
) -> None:
    """Decide whether CANDIDATE is the same model as REFERENCE, apart from rounding; exit 1 if it is not.

    A lossy gate is for conversions (to float16, to 8 bits): each of its options has to hold, over all of --inputs.
    """
    from bnfold.cli.allocation import keep_freed_memory
    from bnfold.report.record import record_comparison
    from bnfold.verification.equivalence import verify_files
    from bnfold.verification.gate import Gate
    from bnfold.verification.options import CompareOptions

    keep_freed_memory()
    inputs, rendering = _inputs(others)
    if proof is not None:
        _refuse_beside_proof(click.get_current_context())
        from bnfold import api
        from bnfold.report.record import record_proof

        checked = api.prove_files(reference, candidate, proof, Limits(max_nodes, max_depth, max_bytes))
        record = record_proof(checked)
        recording.trace(record)
        recording.show(record, **rendering)
        if not checked.proof.is_proved:
            sys.exit(1)
        return
    gate = Gate.of(min_snr, min_argmax, atol, rtol)
    options = CompareOptions(inputs, providers, gate, outputs_only, strict_inside, allow_interface, renamed, custom_ops)
    limits = Limits(max_nodes, max_depth, max_bytes)
    with _apart((reference, candidate), timeout) as other, _progress() as progress:
        result = other.call(verify_files, reference, candidate, options, limits=limits, progress=progress)
    record = record_comparison(result)
    recording.trace(record)
    recording.show(record, **rendering)
    if not result.verdict.is_equivalent:
        sys.exit(1)


RUNNING = (
    *("providers", "min_snr", "min_argmax", "atol", "rtol", "renamed", "outputs_only", "strict_inside"),
    *("allow_interface", "custom_ops", "timeout", "inputs", "dims", "samples", "seed", "effort"),
)
"""The parameters of `verify` that say how models are run and compared."""


def _refuse_beside_proof(context: click.Context) -> None:
    """Check that no option is given which a check of a certificate, that runs nothing, would leave without effect.

    Raises:
        click.UsageError: one is.
    """
    for option in context.command.params:
        is_given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if option.name in RUNNING and is_given:
            raise click.UsageError(f"--proof runs nothing: {option.opts[-1]} has no effect beside it", context)


@cli.command(cls=Command, short_help="Say where each BatchNorm would go, or why it stays.")
@click.argument("model", type=PATH)
@click.option("--fail-on-foldable", is_flag=True, help="Exit 1 if a BatchNorm that could fold is still there.")
@click.option(
    "--inputs",
    multiple=True,
    type=PATH,
    help="Data to compare the running statistics with: .npz, folder of .npy, or test_data_set_*; repeatable.",
)
@click.option(
    "--fail-on-drift",
    type=FiniteRange(0),
    metavar="X",
    help="Exit 1 if the data's mean is farther off than X running deviations.",
)
@CUSTOM_OPS_OPTION
@TIMEOUT_OPTION
@MERGE_OPTION
@REMARKS_OPTION
@LIMIT_OPTIONS
@OUTPUT_OPTIONS
def inspect(
    model: Path,
    fail_on_foldable: bool,
    inputs: tuple[Path, ...],
    fail_on_drift: float | None,
    custom_ops: tuple[Path, ...],
    timeout: float,
    merge: bool,
    remarks: Path | None,
    max_nodes: int,
    max_depth: int,
    max_bytes: int,
    **rendering: Any,
) -> None:
    """Say of every BatchNorm of MODEL where it would go, or why it stays; writes nothing.

    With --inputs, also how far that data are from its running statistics.
    """
    from bnfold import api
    from bnfold.report import files
    from bnfold.report.record import record_drift, record_file
    from bnfold.report.remarks import render as render_remarks

    if fail_on_drift is not None and not inputs:
        raise click.UsageError("--fail-on-drift needs --inputs")

    limits = Limits(max_nodes, max_depth, max_bytes)
    with _apart((model,), timeout) if inputs else nullcontext() as other, _progress() as progress:
        record = record_file("inspect", api.inspect_file(model, merge=merge, limits=limits, progress=progress))
        if other is not None:
            from bnfold.runtimes.inputs import InputOptions
            from bnfold.verification.drift import measure_drift

            drift = other.call(measure_drift, model, InputOptions(inputs), limits, custom_ops)
            record["drift"] = record_drift(drift, fail_on_drift)
    if fail_on_foldable:
        record["fail_on_foldable"] = True
    recording.trace(record)
    if remarks is not None:
        files.write_text(render_remarks(record), remarks)
    recording.show(record, **rendering)
    has_drifted = fail_on_drift is not None and record["drift"]["largest"] > fail_on_drift
    if has_drifted or (fail_on_foldable and record["batchnorms"]["folded"]):
        sys.exit(1)


@cli.command(cls=Command, short_help="Say what changed between two models.")
@click.argument("reference", type=PATH, metavar="A")
@click.argument("candidate", type=PATH, metavar="B")
@click.option("--exit-code", "has_exit_code", is_flag=True, help="Exit 1 if they differ.")
@LIMIT_OPTIONS
@OUTPUT_OPTIONS
def diff(
    reference: Path,
    candidate: Path,
    has_exit_code: bool,
    max_nodes: int,
    max_depth: int,
    max_bytes: int,
    **rendering: Any,
) -> None:
    """Say what changed from A to B, and where each BatchNorm of A went, whatever tool made B.

    Nodes are matched by names, weights and places in the graph. Neither model is run.
    """
    from bnfold import api
    from bnfold.cli.allocation import never_collecting
    from bnfold.report.diff_record import record_diff

    limits = Limits(max_nodes, max_depth, max_bytes)
    with never_collecting():
        record = record_diff(api.diff_files(reference, candidate, limits=limits))
    if has_exit_code:
        record["fail_on_difference"] = True
    recording.trace(record)
    recording.show(record, **rendering)
    if has_exit_code and not record["identical"]:
        sys.exit(1)


@cli.command(cls=Command, short_help="Time models beside the first of them.")
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option(
    "--level",
    "levels",
    multiple=True,
    type=click.Choice(["disabled", "basic", "extended", "all"]),
    help="Graph optimisation of ONNX Runtime; repeatable.  [default: each of them]",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    default=["cpu"],
    show_default=True,
    metavar="NAME",
    help="Where to run: cpu, cuda ...; repeatable.",
)
@click.option("--threads", type=click.IntRange(1), help="Within an operator.  [default: all available cores]")
@click.option("--warmup", type=click.IntRange(0), default=3, show_default=True, help="Untimed runs of each session.")
@click.option("--rounds", type=click.IntRange(32), default=240, show_default=True, help="Most turns of each model.")
@click.option(
    "--seconds",
    type=FiniteRange(1),
    help="How long a provider and level may take, in place of --rounds.",
)
@click.option(
    "--require",
    type=FiniteRange(0, min_open=True),
    metavar="RATIO",
    help="Exit 1 unless each further MODEL is that many times as fast, with 95 % confidence.",
)
@click.option("--no-slower", is_flag=True, help="Exit 1 if a further MODEL is shown to be slower.")
@click.option("--compile", "compiled", is_flag=True, help="PyTorch models through torch.compile.")
@click.option("--tf32", is_flag=True, help="GPUs may round float32 to TensorFloat-32.")
@CUSTOM_OPS_OPTION
@TIMEOUT_OPTION
@INPUT_OPTIONS
@OUTPUT_OPTIONS
def bench(
    models: tuple[Path, ...],
    inputs: tuple[Path, ...],
    dims: dict[str, int],
    samples: int,
    seed: int,
    **arguments: Any,
) -> None:
    """Time MODELs in turns, and say which are faster or slower than the first, if that can be known."""
    from bnfold.bench.comparison import benchmark
    from bnfold.report.bench_record import record_bench
    from bnfold.runtimes.inputs import InputOptions

    rendering = {name: arguments.pop(name) for name in ("as_json", "reports", "quiet", "verbose")}
    arguments["levels"] = arguments["levels"] or ("disabled", "basic", "extended", "all")
    if len(models) < 2 and (arguments["require"] is not None or arguments["no_slower"]):
        raise click.UsageError("--require and --no-slower need a second MODEL")
    with _progress() as progress:
        result = benchmark(models, inputs=InputOptions(inputs, dims, samples, seed), progress=progress, **arguments)
    record = record_bench(result)
    recording.trace(record)
    recording.show(record, **rendering)
    if not result.passes:
        sys.exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, if that is a terminal. It vanishes at the end, so that --quiet stays quiet."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], completed=done, total=total)

        yield advance


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End as by an error, so that temporary files are removed, with the shell's exit code for a signal."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Run the command line. An error that a user can act on becomes one line and its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    collect_seldom()
    logging.getLogger("onnx_ir").addHandler(logging.NullHandler())  # its important messages are errors of bnfold
    try:
        with lazily(*SELDOM):
            code = cli(prog_name="bnfold", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("bnfold: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    except BnfoldError as error:
        click.echo(f"bnfold: {one_line(str(error))}", err=True)
        sys.exit(error.exit_code)
    finally:
        forget_garbage()
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
