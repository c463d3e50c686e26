"""Proves what a plan does to an ONNX model."""

from __future__ import annotations

import filecmp
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from bnfold.frontends.limits import UNLIMITED
from bnfold.frontends.onnx.files.loading import read_proto
from bnfold.frontends.onnx.files.saving import Lent
from bnfold.frontends.onnx.open import OpenOnnxModel
from bnfold.frontends.protocol import Written
from bnfold.proof.certificate import Certificate, Name
from bnfold.proof.checker import Proof, check_pair
from bnfold.proof.ledger import Deeds, Ledger
from bnfold.proof.models import Files, digest
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.onnx_subject import OnnxSubject
from bnfold.verification.smoke import SmokeRun, run_once


class OnnxProver:
    """A `bnfold.verification.proving.Prover`.

    Args:
        opened: the model, of which nothing has been changed yet.
        deeds: what will be done to it.
    """

    def __init__(self, opened: OpenOnnxModel, deeds: Deeds) -> None:
        self._opened, self._deeds = opened, deeds
        self._original = _files(opened.original())
        self._ledger = Ledger.of(opened.graph.model)
        self._seen = {self._ledger.values[value]: kind for value, kind in opened.graph.confirmed_shapes().items()}
        self._assumed: Collection[Name] = ()

    def prove(self) -> Proof:
        """Of what the edits left in memory; weights are computed for it one at a time."""
        return self._check(_files(self._opened.lend()))

    def prove_file(self, original: Path, written: Written) -> Proof:
        """Of what was written; what did not change is the same bytes."""
        if self._deeds.are_none and written.data is None and filecmp.cmp(original, written.model, shallow=False):
            return Proof.identical()
        return self._check(_read(written))

    def _check(self, result: Files) -> Proof:
        """A proof that assumes no shape, where there is one; else one that assumes what a run showed."""
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
        """With the digests of both."""
        return replace(self._certificate(), original=digest(self._original), result=digest(_read(written)))

    def run_once(self, original: Path, written: Written, inputs: InputOptions) -> SmokeRun:
        """In ONNX Runtime, unoptimised, on the CPU."""
        subject = OnnxSubject(self._original.proto, "the model", original)
        return run_once(original, written.model, lambda: subject.inputs, inputs)


def begin(opened: OpenOnnxModel, deeds: Deeds) -> OnnxProver:
    """Note what a model is before it is changed."""
    return OnnxProver(opened, deeds)


def _files(lent: Lent) -> Files:
    return Files(lent.proto, lent.folder, lent.held)


def _read(written: Written) -> Files:
    return Files(read_proto(written.model, UNLIMITED), written.model.parent)
