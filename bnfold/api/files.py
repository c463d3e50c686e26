"""Folding a file into another: planned, folded, written apart, checked, and only then published."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

from bnfold.api.deciding import EVERYTHING, Decision, Progress, Request, Selection, decide, silent
from bnfold.api.guilt import find_guilty
from bnfold.errors import (
    InvalidModelError,
    NotEquivalentError,
    OutputError,
    OutputExistsError,
    UnreadableTensorError,
    UnsupportedModelError,
)
from bnfold.frontends.door import Entry, find_entry, open_model
from bnfold.frontends.limits import LIMITS, UNLIMITED, Limits
from bnfold.frontends.onnx.files.publishing import beside, publish, staging
from bnfold.frontends.protocol import Cautions, Size, Written
from bnfold.graph.cost import Cost, measure_costs
from bnfold.graph.outcome import Outcome
from bnfold.proof.checker import Proof
from bnfold.verification.attestation import Seal, attest, describe
from bnfold.verification.equivalence import Comparison, verify_files
from bnfold.verification.options import CompareOptions
from bnfold.verification.proving import Prover, describe_failure
from bnfold.verification.smoke import SmokeRun
from bnfold.verification.verdict import Verdict

STANDARD = CompareOptions()


class Checks(StrEnum):
    """The checks of `fuse` before it writes a result.

    PROOF proves each fold and runs original and result once, FULL compares them on many inputs by measured budgets as
    well, NONE does neither. A kind of model without a prover is compared in full in place of the proof.
    """

    PROOF = "proof"
    FULL = "full"
    NONE = "none"


@dataclass(frozen=True)
class FileResult:
    """The result of folding a file, or of the plan for it.

    Attributes:
        model, output: the files; no output where nothing is written.
        outcomes: one for each BatchNorm, one for each other per-channel affine that folds, and one for each merge.
        warnings: warnings about running statistics and declared shapes.
        before, after: sizes; `after` is None where nothing is written.
        verdict: of the verification; None where it was not asked for.
        seconds: the time that all of it took.
        proof: the proof; None where there was none.
        smoke: the smoke run; None where there was none.
        costs: what each BatchNorm costs in the original, by scope and name.
    """

    model: Path
    output: Path | None
    outcomes: tuple[Outcome, ...]
    warnings: Cautions
    before: Size
    after: Size | None
    verdict: Verdict | None
    seconds: float
    proof: Proof | None = None
    smoke: SmokeRun | None = None
    costs: Mapping[tuple[str, str], Cost] = field(default_factory=dict)


def inspect_file(
    model: Path, *, merge: bool = True, limits: Limits = LIMITS, progress: Progress = silent
) -> FileResult:
    """Plan what `fuse_file` would do, and write nothing.

    Raises:
        BnfoldError: the file cannot be read.
    """
    start, request = time.perf_counter(), Request(merge=merge)
    with _naming(model):
        planned = _planned(model, decide(open_model(model, request.options(limits)), request, progress))
    return replace(planned, seconds=time.perf_counter() - start)


def _planned(model: Path, decision: Decision) -> FileResult:
    """What was decided of a file, of which nothing has been changed yet."""
    opened = decision.opened
    outcomes, costs = decision.explain(), measure_costs(opened.graph)
    return FileResult(model, None, outcomes, decision.warn(), opened.measure(), None, None, 0.0, costs=costs)


def fuse_file(
    model: Path,
    output: Path,
    *,
    selection: Selection = EVERYTHING,
    merge: bool = True,
    checks: Checks | str = Checks.PROOF,
    comparison: CompareOptions = STANDARD,
    overwrite: bool = False,
    limits: Limits = LIMITS,
    progress: Progress = silent,
    proof: Path | None = None,
    attestation: Path | None = None,
    render: Callable[[FileResult, Written], Mapping[Path, str]] = lambda result, written: {},
    lower: Literal["depthwise", "mul-add"] | None = None,
    verify: Callable[..., Comparison] = verify_files,
) -> FileResult:
    """Fold a file into another, which appears complete or not at all, and only if it is equivalent.

    Args:
        model: the file to read.
        output: the file to write; it may be the same with `overwrite`.
        selection: the BatchNorms that may fold.
        merge: whether linear operators may become one.
        checks: the checks before the result is written.
        comparison: how the models are compared, if they are run.
        overwrite: replace an `output` that exists.
        limits: how much `model` may ask for.
        progress: called at each stage.
        proof: where to write the certificate, once the checker has accepted it; for ONNX models only.
        attestation: where to write an in-toto statement about all of it.
        render: texts to write beside the output, all or nothing, given the result and the files as they are now.
        lower: as for `fuse`.
        verify: compares two files as `verify_files` does, in another process for example.

    Raises:
        OutputExistsError: `output` exists and `overwrite` is False.
        NotEquivalentError: the result differs from the original, or is not proved; nothing was written.
        BnfoldError: the file cannot be read, run or written.
    """
    start, checks = time.perf_counter(), Checks(checks)
    entry = _insist_on_places(model, output, proof, attestation, overwrite=overwrite)
    request = Request.of(selection, merge=merge, lower=lower)
    with _naming(model):
        opened = open_model(model, request.options(limits, comparison.inputs, inplace=True))
        seal = Seal.of(opened.files)
        decision = decide(opened, request, progress)
        planned = _planned(model, decision)
        is_proving = checks is not Checks.NONE or proof is not None or attestation is not None
        prover = decision.begin(entry) if is_proving else None
        if prover is None and proof is not None:
            raise UnsupportedModelError(f"{model}: folds of such models have no certificate")
        decision.apply()
    with staging(output) as folder:
        with _naming(model):
            written = opened.save(folder / output.name)
        inspector = _Inspector(output, checks, comparison, limits, verify, progress, start)
        checked = inspector.check(planned, written, prover, request)
        after = Size(opened.measure().nodes, written.bytes)
        done = replace(checked, output=output, after=after, seconds=time.perf_counter() - start)
        texts: dict[Path, str] = {}
        if proof is not None and prover is not None:
            texts[proof] = prover.certify(written).to_json()
        if attestation is not None:
            texts[attestation] = _attest(done, written, seal, request, checks)
        texts |= render(done, written)
        with beside(texts):
            publish(written, output)
    return replace(done, seconds=time.perf_counter() - start)


@dataclass(frozen=True)
class _Inspector:
    """Checks a file that was written, before it is published.

    Attributes:
        output: where it will be published.
        checks: the checks that are asked for.
        comparison: how the models are compared, if they are run.
        limits: how much the model may ask for.
        verify: compares two files.
        progress: called at each stage.
        start: when all began.
    """

    output: Path
    checks: Checks
    comparison: CompareOptions
    limits: Limits
    verify: Callable[..., Comparison]
    progress: Progress
    start: float

    def check(self, planned: FileResult, written: Written, prover: Prover | None, request: Request) -> FileResult:
        """What was planned, with what the checks found.

        Raises:
            NotEquivalentError: the file differs from the original, or is not proved.
        """
        found, model = planned, planned.model
        if prover is not None:
            self.progress("prove", 0, 1)
            proof = prover.prove_file(model, written)
            found = replace(found, proof=proof)
            if not proof.is_proved:
                raise self._refuse(found, f"not written, since {describe_failure(proof)}")
            self.progress("prove", 1, 1)
        if self.checks is Checks.FULL or (self.checks is Checks.PROOF and prover is None):
            verdict = self.verify(
                model, written.model, self.comparison, limits=UNLIMITED, progress=self.progress
            ).verdict
            found = replace(found, verdict=verdict)
            if not verdict.is_equivalent:
                folder = written.model.parent
                guilty = find_guilty(
                    model, folder, planned.outcomes, request, self.comparison, self.limits, self.verify
                )
                raise self._refuse(found, _complaint(verdict, guilty))
        elif self.checks is Checks.PROOF and prover is not None and found.proof and not found.proof.is_identical:
            smoke = prover.run_once(model, written, self.comparison.inputs, self.comparison.custom_ops)
            found = replace(found, smoke=smoke)
            if smoke.difference:
                raise self._refuse(
                    found,
                    "not written, since it is proved, and yet does not run like the original: "
                    f"{smoke.difference}; please report this as a bug",
                )
        return found

    def _refuse(self, found: FileResult, why: str) -> NotEquivalentError:
        return NotEquivalentError(f"{self.output}: {why}", replace(found, seconds=time.perf_counter() - self.start))


def _complaint(verdict: Verdict, guilty: str | None) -> str:
    worst = verdict.first_divergence.verdict if verdict.first_divergence else verdict.worst
    by = f"; {guilty} is the first that makes a difference" if guilty else ""
    return (
        f"not written, since {worst.name!r} differs from the original's: {worst.reason} "
        f"(error {worst.error:.2e}, budget {worst.budget:.2e}){by}; please report this as a bug"
    )


def _attest(done: FileResult, written: Written, seal: Seal, request: Request, checks: Checks) -> str:
    """The in-toto statement about a result."""
    subject = [describe(file, file.name) for file in reversed(written.files)]
    options = {
        "only": [*request.selection.only],
        "skip": [*request.selection.skip],
        "merge": request.merge,
        "lower": request.lower,
        "verify": str(checks),
    }
    return attest(subject, seal.describe(), options, done.outcomes, done.proof, done.smoke, done.verdict)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the name of the model to the errors about it."""
    try:
        yield
    except UnreadableTensorError as error:
        raise InvalidModelError(f"{path}: {error}") from error


def _insist_on_places(
    model: Path, output: Path, proof: Path | None, attestation: Path | None, *, overwrite: bool
) -> Entry:
    """The front end of a model, once it is clear that all files can be written.

    Raises:
        OutputError: one cannot, or two are the same.
    """
    _insist_on_writable(output, overwrite=overwrite)
    entry = find_entry(model)
    if find_entry(output) is not entry:
        raise OutputError(f"{output}: an output has the format of its model, {model.suffix or 'ONNX'}")
    taken = {model.absolute(), output.absolute()}
    for path, what in ((proof, "a certificate"), (attestation, "an attestation")):
        if path is not None:
            _insist_on_writable(path, overwrite=overwrite)
            if path.absolute() in taken:
                raise OutputError(f"{path}: {what} needs a file of its own")
            taken.add(path.absolute())
    return entry


def _insist_on_writable(output: Path, *, overwrite: bool) -> None:
    try:
        if os.path.lexists(output) and not overwrite:
            raise OutputExistsError(f"{output}: exists already; use --overwrite to replace it")
        if output.is_dir():
            raise OutputExistsError(f"{output}: is a folder")
        if output.exists() and not output.is_file():
            raise OutputExistsError(f"{output}: is a device or a pipe, which a file cannot replace")
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror})") from error
