"""Whether the checker rejects every wrong result, and accepts the right one, in four element types.

    python scripts/benchmarks/proof_faults.py [--docs docs/proof.md] [--draws N] [NAME...]

The models are those of `scripts/benchmarks/fault_models.py` and five architectures of timm (`pip install timm`, with
the torchvision that fits torch). Each is folded, and its result is then broken in one place that is drawn, in one way
after the other. A certificate is made for what it was before; only the digest in it is that of the broken result.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from bnfold.api import certify
from bnfold.proof.certificate import Certificate
from bnfold.proof.checker import Proof, check_proof
from bnfold.proof.models import Files, digest
from scripts.benchmarks import fault_models
from scripts.benchmarks.page import write_section

torch.set_num_threads(1)

ARCHITECTURES = ("mobilenetv2_100", "efficientnet_b0", "resnet18", "repghostnet_050", "densenet121")
"""Of timm."""

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
}

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# ---------------------------------------------------------------------------------------------------------- the models


def converted(original: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The same graph with all that is float32 in another type."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    dtype = helper.tensor_dtype_to_np_dtype(kind)

    def convert(tensor: TensorProto) -> None:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))

    for tensor in model.graph.initializer:
        convert(tensor)
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = kind
    del model.graph.value_info[:]
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                convert(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    return model


def models(names: Sequence[str]) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Each network that was asked for, in float32."""
    for name, made in fault_models.KINDS.items():
        if name in names and not made.half:
            yield name, fault_models.make(made)
    for name in names:
        if name in ARCHITECTURES:
            import timm

            from scripts.benchmarks.proof_zoo import exported, randomised

            torch.manual_seed(0)
            module = randomised(timm.create_model(name, pretrained=False))
            yield name, exported(module, torch.randn(1, 3, 128, 128), dynamo=False)


# ---------------------------------------------------------------------------------------------------------- the faults


@dataclass(eq=False)
class Broken:
    """A folded model that is about to be broken.

    Attributes:
        model: a copy of the result.
        original: what it was made of.
        merged: names of operators that stand for several.
        draw: chooses places.
    """

    model: onnx.ModelProto
    original: onnx.ModelProto
    merged: set[str]
    draw: np.random.Generator
    tensors: dict[str, TensorProto] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = {each.name: each for each in self.model.graph.initializer}

    def one(self, found: Sequence[onnx.NodeProto]) -> onnx.NodeProto | None:
        """One of several nodes, if there are any."""
        return found[int(self.draw.integers(len(found)))] if found else None

    def nodes(self, *ops: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if not ops or node.op_type in ops]

    def fresh(self, *, is_bias: bool) -> list[onnx.NodeProto]:
        """Linear operators whose kernel, or bias, folding made."""
        known = {each.name for each in self.original.graph.initializer}
        index = 2 if is_bias else 1
        return [
            node
            for node in self.nodes(*LINEAR)
            if len(node.input) > index and node.input[index] in self.tensors and node.input[index] not in known
        ]

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.tensors[name]).copy()

    def store(self, name: str, array: np.ndarray) -> None:
        dtype = numpy_helper.to_array(self.tensors[name]).dtype
        self.tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype)), name))

    def read_instead(self, name: str, other: str, but: Sequence[onnx.NodeProto] = ()) -> None:
        """Let what reads one value read another."""
        for node in self.model.graph.node:
            for index, read in enumerate(node.input):
                if read == name and not any(node is each for each in but):
                    node.input[index] = other


Fault = Callable[[Broken], bool]
"""Breaks a model; False where there is no place for it, or where nothing would be wrong."""

FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Fault], Fault]:
    def register(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return register


def neighbour(array: np.ndarray, index: int) -> None:
    """Replace one number by the next of its type, away from zero."""
    kind = {2: np.int16, 4: np.int32, 8: np.int64}[array.dtype.itemsize]
    array.reshape(-1).view(kind)[index] += 1


def one_off(broken: Broken, *, is_bias: bool) -> bool:
    """In float64, weights of a merge are sums, which may be off by the rounding of these."""
    index = 2 if is_bias else 1
    found = broken.fresh(is_bias=is_bias)
    is_wide = any(broken.array(each.input[index]).dtype == np.float64 for each in found)
    node = broken.one([each for each in found if not (is_wide and each.name in broken.merged)])
    if node is None:
        return False
    name = node.input[2 if is_bias else 1]
    array = broken.array(name)
    places = np.flatnonzero(array)
    if not len(places):
        return False
    neighbour(array, int(broken.draw.choice(places)))
    broken.store(name, array)
    return True


@fault("one weight, one ulp off")
def _(broken: Broken) -> bool:
    return one_off(broken, is_bias=False)


@fault("one bias, one ulp off")
def _(broken: Broken) -> bool:
    """In float64 a bias, which is a sum, may be off by the rounding of that sum."""
    node = broken.one(broken.fresh(is_bias=True))
    if node is not None and broken.array(node.input[2]).dtype == np.float64:
        array = broken.array(node.input[2])
        places = np.flatnonzero(array)
        if not len(places):
            return False
        array[broken.draw.choice(places)] *= 1 + 1e-9
        broken.store(node.input[2], array)
        return True
    return one_off(broken, is_bias=True)


@fault("one channel, 1 % off")
def _(broken: Broken) -> bool:
    node = broken.one(broken.fresh(is_bias=False))
    if node is None:
        return False
    array = broken.array(node.input[1])
    rows = np.flatnonzero(np.abs(array.astype(np.float64)).reshape(len(array), -1).max(axis=1) > 0)
    if not len(rows):
        return False
    array[broken.draw.choice(rows)] *= array.dtype.type(1.01)
    broken.store(node.input[1], array)
    return True


@fault("two channels swapped")
def _(broken: Broken) -> bool:
    node = broken.one([each for each in broken.fresh(is_bias=False) if broken.tensors[each.input[1]].dims[0] > 1])
    if node is None:
        return False
    array = broken.array(node.input[1])
    first, second = broken.draw.choice(len(array), 2, replace=False)
    if np.array_equal(array[first], array[second]):
        return False
    array[[first, second]] = array[[second, first]]
    broken.store(node.input[1], array)
    return True


@fault("epsilon dropped")
def _(broken: Broken) -> bool:
    """The kernel that a fold without epsilon would have made; only where that is another one in its type."""
    norms = {each.input[0]: each for each in broken.original.graph.node if each.op_type == "BatchNormalization"}
    makers = {each.name: each for each in broken.original.graph.node if each.output and each.output[0] in norms}
    node = broken.one([each for each in broken.fresh(is_bias=False) if each.op_type == "Conv" and each.name in makers])
    if node is None or node.name in broken.merged:
        return False
    norm = norms[makers[node.name].output[0]]
    stored = {each.name: each for each in broken.original.graph.initializer}
    var = numpy_helper.to_array(stored[norm.input[4]]).astype(np.float64)
    epsilon = next((each.f for each in norm.attribute if each.name == "epsilon"), 1e-5)
    array = broken.array(node.input[1])
    factor = np.sqrt((var + epsilon) / var).reshape(-1, *[1] * (array.ndim - 1))
    wrong = (array.astype(np.float64) * factor).astype(array.dtype)
    if np.array_equal(wrong, array):
        return False
    broken.store(node.input[1], wrong)
    return True


@fault("another border")
def _(broken: Broken) -> bool:
    def pads(node: onnx.NodeProto) -> onnx.AttributeProto | None:
        return next((each for each in node.attribute if each.name == "pads"), None)

    node = broken.one([each for each in broken.nodes("Conv", "ConvTranspose") if pads(each) is not None])
    if node is None:
        return False
    found = pads(node)
    assert found is not None
    found.ints[int(broken.draw.integers(len(found.ints)))] += 1
    return True


@fault("a node lost")
def _(broken: Broken) -> bool:
    ops = ("Relu", "Sigmoid", "Clip", "MaxPool", "AveragePool", "HardSwish", "HardSigmoid", "Softmax", "Tanh")
    node = broken.one(broken.nodes(*ops))
    if node is None or node.output[0] in {each.name for each in broken.model.graph.output}:
        return False
    broken.read_instead(node.output[0], node.input[0])
    broken.model.graph.node.remove(node)
    return True


@fault("an attribute changed")
def _(broken: Broken) -> bool:
    found = [each for each in broken.nodes() if any(a.type in (1, 2, 7) for a in each.attribute)]
    node = broken.one(found)
    if node is None:
        return False
    options = [each for each in node.attribute if each.type in (1, 2, 7) and (each.type != 7 or each.ints)]
    if not options:
        return False
    option = options[int(broken.draw.integers(len(options)))]
    if option.type == onnx.AttributeProto.FLOAT:
        option.f = np.nextafter(np.float32(option.f), np.float32(np.inf))
    elif option.type == onnx.AttributeProto.INT:
        option.i += 1
    else:
        option.ints[int(broken.draw.integers(len(option.ints)))] += 1
    return True


@fault("an edge swapped")
def _(broken: Broken) -> bool:
    """A node reads what another one of the same kind in front of it made."""
    made: dict[str, list[str]] = {}
    places: list[tuple[onnx.NodeProto, list[str]]] = []
    kinds = {name: node.op_type for node in broken.nodes() for name in node.output}
    for node in broken.nodes():
        kind = kinds.get(node.input[0], "") if node.input else ""
        others = [name for name in made.get(kind, []) if name != node.input[0]]
        if others:
            places.append((node, others))
        for name in node.output:
            made.setdefault(node.op_type, []).append(name)
    if not places:
        return False
    node, others = places[int(broken.draw.integers(len(places)))]
    node.input[0] = others[int(broken.draw.integers(len(others)))]
    return True


@fault("a tap of a merged kernel, 1 % off")
def _(broken: Broken) -> bool:
    node = broken.one([each for each in broken.fresh(is_bias=False) if each.name in broken.merged])
    if node is None:
        return False
    array = broken.array(node.input[1])
    sizes = np.abs(array.astype(np.float64)).reshape(-1)
    place = int(broken.draw.choice(np.flatnonzero(sizes >= np.median(sizes))))
    array.reshape(-1)[place] *= array.dtype.type(1.01)
    if np.array_equal(array, broken.array(node.input[1])):
        return False
    broken.store(node.input[1], array)
    return True


@fault("another group")
def _(broken: Broken) -> bool:
    def group(node: onnx.NodeProto) -> onnx.AttributeProto | None:
        return next((each for each in node.attribute if each.name == "group" and each.i > 1), None)

    node = broken.one([each for each in broken.nodes("Conv", "ConvTranspose") if group(each) is not None])
    if node is None:
        return False
    found = group(node)
    assert found is not None
    found.i = 1
    return True


@fault("a stale weight")
def _(broken: Broken) -> bool:
    """An operator reads the kernel that it had in the original."""
    before = {each.name: each for each in broken.original.graph.node}
    stored = {each.name: each for each in broken.original.graph.initializer}
    found = [
        each for each in broken.fresh(is_bias=False) if each.name in before and before[each.name].input[1] in stored
    ]
    node = broken.one(found)
    if node is None:
        return False
    old = stored[before[node.name].input[1]]
    if numpy_helper.to_array(old).tobytes() == broken.array(node.input[1]).tobytes():
        return False
    broken.model.graph.initializer.remove(broken.tensors[node.input[1]])
    if old.name not in broken.tensors:
        broken.model.graph.initializer.add().CopyFrom(old)
    node.input[1] = old.name
    return True


@fault("a value renamed")
def _(broken: Broken) -> bool:
    ends = {each.name for each in broken.model.graph.output}
    node = broken.one([each for each in broken.nodes() if each.output[0] not in ends and not each.attribute])
    if node is None:
        return False
    broken.read_instead(node.output[0], "another name")
    node.output[0] = "another name"
    return True


# ------------------------------------------------------------------------------------------------------------ the runs


@dataclass
class Row:
    """What became of one model in one type."""

    name: str
    kind: str
    proof: Proof
    tried: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        missed = ", ".join(f"{count} {name}" for name, count in self.missed.items())
        cells = (
            self.name,
            self.kind,
            self.proof.folds,
            self.proof.obligations["merges"],
            "accepted" if self.proof.is_proved else f"**rejected**: {self.proof.failures[0]}",
            f"{self.tried.total() - self.missed.total()} of {self.tried.total()}" + (f" (**{missed}**)" * bool(missed)),
        )
        return f"| {' | '.join(map(str, cells))} |"


def check(original: onnx.ModelProto, result: onnx.ModelProto, certificate: Certificate) -> Proof:
    return check_proof(Files(original), Files(result), replace(certificate, result=digest(Files(result))))


def run(name: str, original: onnx.ModelProto, kind: str, draws: int) -> Row:
    """Fold, break, check."""
    typed = converted(original, TYPES[kind])
    result, certificate = certify(typed)
    hosts = set(certificate.merged.values())
    merged = {node.name for node in typed.graph.node if node.output[0] in hosts}
    row = Row(name, kind, check(typed, result, certificate))
    began = time.perf_counter()
    for label, break_it in FAULTS.items():
        for draw in range(draws):
            copy = onnx.ModelProto()
            copy.CopyFrom(result)
            if not break_it(Broken(copy, typed, merged, np.random.default_rng([draw, len(label)]))):
                continue
            row.tried[label] += 1
            row.missed[label] += check(typed, copy, certificate).is_proved
    row.missed = +row.missed
    row.seconds = time.perf_counter() - began
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[*fault_models.KINDS, *ARCHITECTURES])
    parser.add_argument("--draws", type=int, default=4, help="places in which each model is broken in each way")
    parser.add_argument("--docs", type=Path, help="write the tables between their markers in this page")
    options = parser.parse_args()
    rows: list[Row] = []
    lines = [
        "| model | type | folds | merges | the right result | wrong results rejected |",
        "|---|---|---:|---:|---|---:|",
    ]
    print(*lines, sep="\n")
    for name, original in models(options.names):
        for kind in TYPES:
            rows.append(run(name, original, kind, options.draws))
            lines.append(str(rows[-1]))
            print(lines[-1], flush=True)
    lines += ["", "| fault | tried | rejected |", "|---|---:|---:|"]
    for label in FAULTS:
        tried, missed = (sum(getattr(row, what)[label] for row in rows) for what in ("tried", "missed"))
        lines.append(f"| {label} | {tried} | {tried - missed} |")
    print(*lines[len(rows) + 2 :], sep="\n")
    if options.docs:
        write_section(options.docs, "faults", "\n".join(lines))
    raise SystemExit(any(row.missed or not row.proof.is_proved for row in rows))


if __name__ == "__main__":
    main()
