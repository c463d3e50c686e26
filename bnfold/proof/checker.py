"""Checks that a result is its original, given a certificate that relates their values.

The certificate claims a relation ``pulled(v) == pushed(w)`` between each value `v` of the original and the value `w` of
the result that stands for it. Where it says nothing, the two are equal. Each node of the original is then one
obligation: if the relations of its inputs hold, those of its outputs hold. Inputs and outputs of the model are equal,
so by induction over the nodes the models are equal. The checker shares no code with the planner, its rules or the
readers of operators.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace

import onnx

from bnfold.errors import InvalidModelError
from bnfold.proof import batchnorm, carriers, lowered, merges, operands, weighted
from bnfold.proof.certificate import Certificate, Name
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import is_linear
from bnfold.proof.models import Files, Scope, Side, digest, first_output, write_out
from bnfold.proof.operators import check_linear
from bnfold.proof.pair import Pair
from bnfold.proof.rounding import Worst
from bnfold.proof.shapes import infer
from bnfold.proof.wiring import check_interface, check_models, check_node, check_rest

KINDS = ("wiring", "weights", "carriers", "merges")
"""The kinds of obligations."""

READS_NO_CONTENT = {
    "CastLike": 1,
    **dict.fromkeys(("EyeLike", "RandomNormalLike", "RandomUniformLike", "Shape", "Size"), 0),
}
"""Operators that read no more than the shape or element type of one input, with the index of that input."""


@dataclass(frozen=True)
class Proof:
    """What became of the obligations.

    Attributes:
        obligations: how many of each kind were met.
        folds: how many nodes vanished, or became part of another operator as a BatchNormalization.
        weights: how many numbers were checked one by one.
        worst_ulp: the largest error among these numbers.
        failures: the obligations that are not met; empty where all is proved.
        seconds: the time that the check took.
        is_identical: whether both models are the same bytes, so that there is nothing else to prove.
        assumed: values whose shapes are not proved. A run of the original showed them.
    """

    obligations: dict[str, int]
    folds: int
    weights: int
    worst_ulp: float
    failures: tuple[ProofError, ...]
    seconds: float
    is_identical: bool = False
    assumed: tuple[Name, ...] = ()

    @classmethod
    def identical(cls, seconds: float = 0.0) -> Proof:
        """The proof for a result that is its original, byte for byte."""
        return cls(dict.fromkeys(KINDS, 0) | {"wiring": 1}, 0, 0, 0.0, (), seconds, is_identical=True)

    @classmethod
    def failed(cls, failure: ProofError) -> Proof:
        """What there is to say where nothing else was looked at."""
        return cls(dict.fromkeys(KINDS, 0), 0, 0, 0.0, (failure,), 0.0)

    @property
    def is_proved(self) -> bool:
        """Whether the result is the original."""
        return not self.failures


@dataclass(eq=False)
class _Tally:
    met: Counter[str] = field(default_factory=Counter)
    folds: int = 0
    worst: Worst = field(default_factory=Worst)
    failures: list[ProofError] = field(default_factory=list)
    assumed: tuple[Name, ...] = ()


def check_proof(original: Files, result: Files, certificate: Certificate) -> Proof:
    """Whether a certificate proves that a result is its original.

    Raises:
        InvalidModelError: it is the certificate of other models, or it names what they do not have.
    """
    began = time.perf_counter()
    for files, claimed, which in ((original, certificate.original, "original"), (result, certificate.result, "result")):
        if digest(files) != claimed:
            raise InvalidModelError(f"the certificate is of another {which}")
    seconds = time.perf_counter() - began
    if certificate.original == certificate.result and certificate.is_empty:
        return Proof.identical(seconds)
    proof = check_pair(original, result, certificate)
    return replace(proof, seconds=proof.seconds + seconds)


def check_pair(original: Files, result: Files, certificate: Certificate) -> Proof:
    """`check_proof` for whoever made the certificate of these two models: the digests are not compared."""
    began = time.perf_counter()
    tally = _Tally()
    try:
        written_out = write_out(original, certificate.inlined)
        pair = Pair(Side(written_out, infer, certificate.shapes), Side(result, infer), certificate)
        pair.insist_on_names()
        check_models(pair)
        for path in pair.original.scopes:
            _check_scope(pair, path, tally)
        tally.met["wiring"] += 1
        tally.assumed = tuple(sorted(pair.original.used))
    except ProofError as failure:
        tally.failures.append(failure)
    except (ValueError, TypeError, KeyError, OSError) as error:  # a malformed file
        tally.failures.append(ProofError("wiring", "", f"the models cannot be read: {type(error).__name__}: {error}"))
    obligations = {kind: tally.met[kind] for kind in KINDS}
    seconds = time.perf_counter() - began
    failures, worst = tuple(tally.failures), tally.worst
    return Proof(obligations, tally.folds, worst.count, worst.ulps, failures, seconds, assumed=tally.assumed)


def _check_scope(pair: Pair, path: str, tally: _Tally) -> None:
    """Check all obligations of one graph."""
    scope, other = pair.original.scopes[path], pair.counterpart(path)
    check_interface(pair, scope, other)
    roots = merges.roots(pair, scope)
    unread = _find_unread(scope)
    beside = pair.within(scope, unread)
    for node in scope.nodes:
        name = first_output(node)
        key = path, name
        if key in pair.certificate.merged:
            if name in roots or any(value in roots for value in node.output):
                seen = beside if name in unread else pair
                tally.worst = tally.worst.joined(merges.check_merge(seen, scope, other, node))
                tally.met["merges"] += 1
            tally.folds += node.op_type == "BatchNormalization"
            continue
        if key in pair.certificate.vanished:
            tally.folds += 1
            if merges.is_read_outside(pair, scope, node):
                carriers.check_vanished(pair, scope, node)
                tally.met["carriers" if node.op_type != "BatchNormalization" else "weights"] += 1
            continue
        if node.op_type == "BatchNormalization" and _is_computed(pair, scope, other, node):
            tally.worst = tally.worst.joined(batchnorm.check_computed(pair, scope, other, node))
            tally.met["weights"] += 1
            tally.folds += 1
            continue
        if not any(pair.name(scope, value) in other.makers for value in node.output if value):
            if not scope.is_constant_node(node):
                raise ProofError("wiring", name, "the result has no such node, and nothing says that it vanished")
            if any(pair.name(scope, value) != value or pair.relation(scope, value) for value in node.output if value):
                raise ProofError("wiring", name, "a constant is gone, and something else stands for it")
            tally.folds += node.op_type == "BatchNormalization"
            continue
        _check_node(beside if name in unread else pair, scope, other, node, tally)
    check_rest(pair, scope, other)


def _is_computed(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto) -> bool:
    """Whether a BatchNormalization of constants is gone, and a constant, or nothing that is read, stands for it."""
    if node.domain not in ("", "ai.onnx") or not scope.is_constant(node.output[0]):
        return False
    name = pair.name(scope, node.output[0])
    maker = other.makers.get(name)
    is_stored = name in other.initializers if maker is None else maker.op_type == "Constant"
    if maker is not None and is_stored:
        pair.accounted.add(id(maker))
    pair.computed.update([(other.path, name)] if is_stored else [])
    return is_stored


def _check_node(pair: Pair, scope: Scope, other: Scope, node: onnx.NodeProto, tally: _Tally) -> None:
    if pair.is_bias_add(scope, node):
        return  # checked with the product that it belongs to
    outputs = [node.output[0]] if pair.bias_add(scope, node) is None else [pair.bias_add(scope, node).output[0]]  # type: ignore[union-attr]
    outputs += list(node.output[1:])
    is_changed = any(pair.relation(scope, name) for name in (*node.input, *outputs) if name)
    is_lowered = node.op_type == "BatchNormalization" and lowered.is_lowered(pair, scope, other, node)
    if (not is_changed and not is_lowered) or _reads_no_change(pair, scope, node):
        check_node(pair, scope, other, node)
        for value in node.output if is_changed else ():
            if pair.relation(scope, value):
                raise ProofError("wiring", first_output(node), "its output cannot change")
        return
    is_default = node.domain in ("", "ai.onnx")
    if is_default and is_lowered:
        tally.worst = tally.worst.joined(lowered.check_lowered(pair, scope, other, node))
        tally.met["weights"] += 1
    elif is_default and node.op_type == "BatchNormalization":
        tally.worst = tally.worst.joined(batchnorm.check_batchnorm(pair, scope, other, node))
        tally.met["weights"] += 1
    elif is_linear(scope, node) and pair.has_kernel(scope, node):
        tally.worst = tally.worst.joined(check_linear(pair, scope, other, node))
        tally.met["weights"] += 1
    elif (operand := operands.find_operand(pair, scope, other, node)) is not None:
        tally.worst = tally.worst.joined(operands.check_operand(pair, scope, other, node, operand))
        tally.met["weights"] += 1
    elif is_default and node.op_type in weighted.WEIGHTED:
        check_node(pair, scope, other, node)
        weighted.check_weighted(pair, scope, node)
        tally.met["carriers"] += 1
    else:
        check_node(pair, scope, other, node)
        carriers.check_carrier(pair, scope, node)
        tally.met["carriers"] += 1


def _reads_no_change(pair: Pair, scope: Scope, node: onnx.NodeProto) -> bool:
    """Whether a node reads only the shape or the element type of each value that changed."""
    if node.domain not in ("", "ai.onnx"):
        return False
    index = READS_NO_CONTENT.get(node.op_type)
    changed = {place for place, value in enumerate(node.input) if value and pair.relation(scope, value)}
    return index is not None and changed <= {index}


def _find_unread(scope: Scope) -> set[str]:
    """Values that lead to no output of their graph, so that nobody sees how they change.

    Nodes of other domains and nodes with bodies are kept, since they may do more than make a value.
    """
    counts = Counter(value for node in scope.nodes for value in node.input)
    needed = {value for value, count in scope.readers.items() if counts[value] != count}  # read by a body, or an output
    unread: set[str] = set()
    for node in reversed(scope.nodes):
        has_bodies = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        outputs = set(filter(None, node.output))
        if node.domain in ("", "ai.onnx") and not has_bodies and needed.isdisjoint(outputs):
            unread |= outputs
        else:
            needed.update(node.input)
    return unread
