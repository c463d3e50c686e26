"""Proves what a plan does to an ONNX model."""

from __future__ import annotations

import filecmp
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnfold.frontends.limits import UNLIMITED, Limits
from bnfold.frontends.onnx.files.loading import read_proto
from bnfold.frontends.onnx.files.saving import Lent
from bnfold.frontends.onnx.open import OpenOnnxModel
from bnfold.frontends.protocol import OpenModel, Written
from bnfold.graph.protocol import Graph
from bnfold.proof.certificate import Certificate, Name, Relation
from bnfold.proof.checker import Proof, check_pair, check_proof
from bnfold.proof.ledger import Changes, Deeds, Ledger
from bnfold.proof.models import Files, digest
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.onnx_subject import OnnxSubject
from bnfold.verification.smoke import SmokeRun, run_once


class OnnxProver:
    """A `bnfold.verification.proving.Prover`.

    Args:
        opened: the model, before anything is changed.
        changes: the changes that will be made.
    """

    def __init__(self, opened: OpenOnnxModel, changes: Changes) -> None:
        self._opened, self._deeds = opened, deeds_of(opened.graph, changes)
        self._original = _files(opened.original())
        self._ledger = Ledger.of(opened.graph.model, opened.graph.inlined)
        self._seen = {self._ledger.values[value]: kind for value, kind in opened.graph.confirmed_shapes().items()}
        self._assumed: Collection[Name] = ()

    def prove(self) -> Proof:
        """Prove the model in memory, as the edits left it. Weights are computed one at a time."""
        return self._check(_files(self._opened.lend()))

    def prove_file(self, original: Path, written: Written) -> Proof:
        """Prove the file that was written. Unchanged weights are compared as bytes."""
        if self._deeds.are_none and written.data is None and filecmp.cmp(original, written.model, shallow=False):
            return Proof.identical()
        return self._check(_read(written))

    def _check(self, result: Files) -> Proof:
        """A proof that assumes no shapes, if there is one; else one that assumes the shapes of a run."""
        proof = check_pair(self._original, result, self._certificate())
        if proof.is_proved or not self._seen:
            return proof
        self._assumed = self._seen
        proof = check_pair(self._original, result, self._certificate())
        self._assumed = proof.assumed
        return proof

    def _certificate(self) -> Certificate:
        shapes = {name: self._seen[name] for name in self._assumed}
        return replace(self._ledger.certificate(self._deeds), shapes=shapes)

    def certify(self, written: Written) -> Certificate:
        """The certificate, with the digests of both models."""
        return replace(self._certificate(), original=digest(self._original), result=digest(_read(written)))

    def run_once(
        self, original: Path, written: Written, inputs: InputOptions, custom_ops: Sequence[Path] = ()
    ) -> SmokeRun:
        """Run both files once in ONNX Runtime, unoptimised, on the CPU."""
        subject = OnnxSubject(self._original.proto, "the model", original)
        return run_once(original, written.model, lambda: subject.inputs, inputs, custom_ops)


def begin(opened: OpenModel, changes: Changes) -> OnnxProver:
    """Take note of a model before it is changed."""
    assert isinstance(opened, OpenOnnxModel)
    return OnnxProver(opened, changes)


def deeds_of(graph: Graph[Any, Any], changes: Changes) -> Deeds:
    """The changes of a plan to a graph, for a certificate. Call it before the plan is applied."""
    relations = {
        value: Relation(change.pulled, change.pushed)
        for value, change in changes.values.items()
        if change.is_known  # where it is not, the proof fails
    }
    merged = dict(changes.merged)
    for node, into in changes.merged.items():
        merged[graph.outputs(node)[0].producer()] = into  # the Add that is the bias of a matrix product
    return Deeds(relations, dict(changes.stands), frozenset(changes.vanished), merged)


def check_files(reference: Path, candidate: Path, certificate: Certificate, limits: Limits) -> Proof:
    """Whether a certificate proves that two files hold the same model; runs neither.

    Raises:
        InvalidModelError: a file cannot be read, or the certificate is of other models.
    """
    original, result = (Files(read_proto(path, limits), path.parent) for path in (reference, candidate))
    return check_proof(original, result, certificate)


def _files(lent: Lent) -> Files:
    return Files(lent.proto, lent.folder, lent.held)


def _read(written: Written) -> Files:
    return Files(read_proto(written.model, UNLIMITED), written.model.parent)
