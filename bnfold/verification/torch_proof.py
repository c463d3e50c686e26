"""Proves what a plan does to an exported program, a graph module, or what was captured of another module."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from bnfold.errors import IncomparableError, NoEvidenceError, UnsupportedModelError
from bnfold.frontends.limits import UNLIMITED, Limits
from bnfold.frontends.protocol import OpenModel, Written
from bnfold.frontends.torch.capture.copies import copy_module, copy_program
from bnfold.frontends.torch.files.programs import load
from bnfold.frontends.torch.open import Captured, OpenTorchModel
from bnfold.proof.certificate import Certificate
from bnfold.proof.checker import Proof
from bnfold.proof.failure import ProofError
from bnfold.proof.ledger import Changes
from bnfold.proof.torch.check import check_program
from bnfold.proof.torch.ledger import Ledger
from bnfold.proof.torch.same import find_difference
from bnfold.proof.torch.sides import digest, root_of
from bnfold.runtimes.inputs import Feeds, InputOptions, find_one, insist_on_fitting
from bnfold.verification.evidence import insist_on_evidence
from bnfold.verification.smoke import SmokeRun, compare
from bnfold.verification.torch_subject import TorchSubject


class TorchProver:
    """A `bnfold.verification.proving.Prover`.

    Args:
        opened: the model, of which nothing has been changed yet.
        changes: what will be done to it.
    """

    def __init__(self, opened: OpenTorchModel, changes: Changes) -> None:
        self._opened, self._changes = opened, changes
        model = opened.captured.model if opened.captured is not None else opened.model
        self._original: ExportedProgram | fx.GraphModule
        if isinstance(model, ExportedProgram):
            self._original = copy_program(model)
        else:
            self._original = copy_module(model, share=opened.captured is not None)
        self._ledger = Ledger.of(opened.graph.graph, changes, opened.graph.stand)

    def prove(self) -> Proof:
        """Of what the edits left in memory.

        Of a module, that what was captured of it became a folded graph, and that what is captured of the module that is
        given back is that graph; so it does not matter how the module was changed.

        Raises:
            UnsupportedModelError: the module is another graph each time that it is captured.
        """
        captured = self._opened.captured
        if captured is None:
            return self._check(self._opened.settle(None))
        root_of(captured.model).recompile()
        proofs: list[Proof] = []

        def judge(draft: Captured) -> bool:
            """Both are told when the draft is made: it may share tensors with the graph."""
            failure = find_difference(captured.model, draft.model, is_part=bool(draft.lost))
            if failure is None and not captured.gives_alike(draft):
                failure = ProofError("wiring", "", "the module that is given back returns another structure")
            proofs.append(self._check(captured.model) if failure is None else Proof.failed(failure))
            return proofs[-1].is_proved

        try:
            self._opened.settle(judge)
        except UnsupportedModelError:
            if not proofs or not self._is_stable():
                raise
        return proofs[-1]

    def _is_stable(self) -> bool:
        """Whether the module is the same graph when it is captured again."""
        assert self._opened.capture is not None
        return find_difference(self._original, self._opened.capture().model) is None

    def prove_file(self, original: Path, written: Written) -> Proof:
        """Of the program in the file that was written, as it is read again."""
        return self._check(load(written.model, UNLIMITED))

    def _check(self, result: Any) -> Proof:
        certificate = self._ledger.certificate(self._changes, "", "")
        return check_program(self._original, result, certificate, _example(self._opened), has_digests=False)

    def certify(self, written: Written) -> Certificate:
        """With the digests of both programs."""
        result = load(written.model, UNLIMITED)
        return self._ledger.certificate(self._changes, digest(self._original), digest(result))

    def run_once(
        self, original: Path, written: Written, inputs: InputOptions, custom_ops: Sequence[Path] = ()
    ) -> SmokeRun:
        """In eager mode; torch has no kernel that is missing, and nothing here crashes it."""
        began = time.perf_counter()
        assert isinstance(self._original, ExportedProgram)  # files hold nothing else
        try:
            subjects = [
                TorchSubject.of_program(program, name)
                for program, name in ((self._original, "the model"), (load(written.model, UNLIMITED), "the result"))
            ]
            insist_on_fitting(subjects[0].inputs, inputs)
            feeds, expected = _run(subjects[0], inputs)
            if inputs.is_given:
                insist_on_evidence("the inputs", feeds, list(expected.values()))
            actual = dict(zip(subjects[1].outputs, subjects[1].start(subjects[1].outputs)(feeds), strict=True))
        except NoEvidenceError:
            raise
        except IncomparableError as error:
            notes = (f"not run: {error}",)
            return SmokeRun(False, notes=notes, seconds=time.perf_counter() - began, runtime="torch")
        found = compare(lambda: subjects[0], feeds, expected, actual)
        return SmokeRun(
            True,
            found["largest"],
            found["difference"],
            tuple(found["notes"]),
            {name: list(array.shape) for name, array in feeds.items()},
            time.perf_counter() - began,
            "torch",
        )


def _run(subject: TorchSubject, inputs: InputOptions) -> tuple[Feeds, dict[str, Any]]:
    """An input that the original takes, and its outputs."""
    run, expected = subject.start(subject.outputs), dict[str, Any]()

    def attempt(feeds: Feeds) -> IncomparableError | None:
        try:
            expected.update(zip(subject.outputs, run(feeds), strict=True))
        except IncomparableError as error:
            return error
        return None

    return find_one(subject.inputs, inputs, attempt), expected


def _example(opened: OpenTorchModel) -> tuple[Any, ...] | None:
    """What a graph module is called with, in the order of its placeholders."""
    if opened.inputs is None or not isinstance(opened.model, fx.GraphModule):
        return None
    bound = inspect.signature(opened.model.forward).bind(*opened.inputs.args, **opened.inputs.kwargs)
    bound.apply_defaults()
    return tuple(bound.arguments.values())


def begin(opened: OpenModel, changes: Changes) -> TorchProver:
    """Note what a model is before it is changed."""
    assert isinstance(opened, OpenTorchModel)
    return TorchProver(opened, changes)


def check_files(reference: Path, candidate: Path, certificate: Certificate, limits: Limits) -> Proof:
    """Whether a certificate proves that two files hold the same program; runs neither.

    Raises:
        InvalidModelError: a file cannot be read, or the certificate is of other programs.
    """
    return check_program(load(reference, limits), load(candidate, limits), certificate)
