"""How many real faults the verification catches, and how many correct models it refuses.

Every kind of fault that folding is known to make is put into every kind of model; every correct way to rewrite a model
is tried beside. Each candidate is judged by `bnfold.verify`, and by what people use instead: `numpy.allclose` and
`torch.testing.assert_close` on one random input.

Usage: python scripts/benchmarks/faults.py [--docs docs/verification.md] [--seeds N]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

import bnfold
from bnfold.runtimes import reference as exact
from bnfold.runtimes.tensors import FLOATS
from bnfold.verification.draws import fix_draws
from bnfold.verification.widening import widen
from scripts.benchmarks import fault_models

torch.set_num_threads(1)

Model = onnx.ModelProto
Array = np.ndarray


class Network:
    """An ONNX model whose weights are easy to change.

    A fault changes the original, which is then folded correctly: the same as folding the right model wrongly.
    """

    def __init__(self, model: Model) -> None:
        self.model = Model()
        self.model.CopyFrom(model)
        self.graph = self.model.graph

    def tensor(self, name: str) -> onnx.TensorProto:
        """An initializer, or that which a Cast reads."""
        stored = next((each for each in self.graph.initializer if each.name == name), None)
        maker = self.maker(name)
        if stored is None and maker is not None:
            assert maker.op_type == "Cast", name
            return self.tensor(maker.input[0])
        assert stored is not None, name
        return stored

    def get(self, name: str) -> Array:
        return numpy_helper.to_array(self.tensor(name)).copy()

    def set(self, name: str, array: Array) -> None:
        tensor = self.tensor(name)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(numpy_helper.to_array(tensor).dtype), tensor.name))

    def edit(self, name: str, change: Callable[[Array], Array]) -> None:
        wide = self.get(name).astype(np.float64)
        self.set(name, change(wide))

    def nodes(self, *ops: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type in ops]

    @property
    def norms(self) -> list[onnx.NodeProto]:
        return self.nodes("BatchNormalization")

    def maker(self, name: str) -> onnx.NodeProto | None:
        return next((node for node in self.graph.node if name in node.output), None)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def pairs(self) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """Linear operators with the BatchNorm that alone reads them."""
        for norm in self.norms:
            linear = self.maker(norm.input[0])
            if linear is not None and linear.op_type in LINEAR and len(self.readers(norm.input[0])) == 1:
                yield linear, norm

    def affine(self, norm: onnx.NodeProto) -> tuple[Array, Array]:
        """Scale and shift of a BatchNorm."""
        gamma, beta, mean, var = (self.get(name).astype(np.float64) for name in norm.input[1:])
        scale = gamma / np.sqrt(var + epsilon(norm))
        return scale, beta - mean * scale


LINEAR = ("Conv", "ConvTranspose", "Gemm")


def epsilon(norm: onnx.NodeProto) -> float:
    return next((each.f for each in norm.attribute if each.name == "epsilon"), 1e-5)


def attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((each.i for each in node.attribute if each.name == name), default)


Fault = Callable[[Network], bool]
"""Puts a fault into a network; False where there is no place for it."""

FAULTS: dict[str, tuple[Fault, bool]] = {}
"""By name: the fault, and whether it is put in after the folding."""


def fault(name: str, *, after: bool = False) -> Callable[[Fault], Fault]:
    def register(function: Fault) -> Fault:
        FAULTS[name] = function, after
        return function

    return register


def on_parameters(index: int, change: Callable[[Array], Array], *, every: bool = True) -> Fault:
    """A fault in one parameter (1 gamma, 2 beta, 3 mean, 4 variance) of every BatchNorm, or of one in the middle."""

    def apply(network: Network) -> bool:
        norms = network.norms if every else network.norms[len(network.norms) // 2 :][:1]
        for norm in norms:
            network.edit(norm.input[index], change)
        return bool(norms)

    return apply


def scale_epsilon(factor: float) -> Fault:
    def apply(network: Network) -> bool:
        for norm in network.norms:
            value = epsilon(norm) * factor
            kept = [each for each in norm.attribute if each.name != "epsilon"]
            del norm.attribute[:]
            norm.attribute.extend([*kept, helper.make_attribute("epsilon", value)])
        return bool(network.norms)

    return apply


FAULTS["epsilon 10 times too large"] = scale_epsilon(10), False
FAULTS["epsilon 100 times too large"] = scale_epsilon(100), False
FAULTS["epsilon left out"] = scale_epsilon(0), False
FAULTS["beta left out"] = on_parameters(2, lambda beta: 0 * beta), False
FAULTS["mean left out"] = on_parameters(3, lambda mean: 0 * mean), False
FAULTS["gamma left out"] = on_parameters(1, np.ones_like), False
FAULTS["gamma squared"] = on_parameters(1, lambda gamma: gamma**2), False
FAULTS["sign of mean"] = on_parameters(3, lambda mean: -mean), False
FAULTS["no square root of the variance"] = on_parameters(4, lambda var: var**2), False
FAULTS["unbiased variance (n = 10,000)"] = on_parameters(4, lambda var: var * (10_000 / 9_999)), False
FAULTS["channels shifted by one, in gamma"] = on_parameters(1, lambda gamma: np.roll(gamma, 1)), False
FAULTS["one beta in all off by 1e-3"] = on_parameters(2, lambda beta: beta + 1e-3, every=False), False
FAULTS["one mean in all off by 1 %"] = on_parameters(3, lambda mean: mean * 1.01, every=False), False


@fault("mean and variance swapped")
def _(network: Network) -> bool:
    for norm in network.norms:
        mean, var = network.get(norm.input[3]), network.get(norm.input[4])
        network.set(norm.input[3], var)
        network.set(norm.input[4], np.abs(mean))
    return bool(network.norms)


@fault("channels shifted by one, in all parameters")
def _(network: Network) -> bool:
    for norm in network.norms:
        for name in norm.input[1:]:
            network.edit(name, lambda array: np.roll(array, 1))
    return bool(network.norms)


@fault("statistics of two BatchNorms swapped")
def _(network: Network) -> bool:
    for first, second in zip(network.norms, network.norms[1:], strict=False):
        if network.get(first.input[1]).shape == network.get(second.input[1]).shape:
            for index in (3, 4):
                first.input[index], second.input[index] = second.input[index], first.input[index]
            return True
    return False


@fault("one BatchNorm skipped")
def _(network: Network) -> bool:
    norm = network.norms[len(network.norms) // 2]
    return skip(network, norm)


@fault("last BatchNorm skipped")
def _(network: Network) -> bool:
    return skip(network, network.norms[-1])


def skip(network: Network, norm: onnx.NodeProto) -> bool:
    for node in network.readers(norm.output[0]):
        for index, name in enumerate(node.input):
            if name == norm.output[0]:
                node.input[index] = norm.input[0]
    network.graph.node.remove(norm)
    return True


@fault("bias dropped")
def _(network: Network) -> bool:
    return on_bias(network, lambda bias, scale: 0 * bias)


@fault("bias not scaled")
def _(network: Network) -> bool:
    return on_bias(network, lambda bias, scale: bias / scale)


def on_bias(network: Network, change: Callable[[Array, Array], Array]) -> bool:
    found = [(linear, norm) for linear, norm in network.pairs() if len(linear.input) > 2]
    for linear, norm in found:
        scale = network.affine(norm)[0]
        network.edit(linear.input[2], lambda bias, scale=scale: change(bias, scale))
    return bool(found)


@fault("scale along the input axis of square weights")
def _(network: Network) -> bool:
    for linear, norm in network.pairs():
        kernel = network.get(linear.input[1]).astype(np.float64)
        scale = network.affine(norm)[0]
        if kernel.shape[0] == kernel.shape[1] and attribute(linear, "group", 1) == 1:
            rows = scale.reshape(-1, *[1] * (kernel.ndim - 1))
            columns = scale.reshape(1, -1, *[1] * (kernel.ndim - 2))
            right, wrong = (columns, rows) if linear.op_type == "ConvTranspose" else (rows, columns)
            network.set(linear.input[1], kernel * wrong / right)
            return True
    return False


@fault("order of groups")
def _(network: Network) -> bool:
    for linear, norm in network.pairs():
        groups = attribute(linear, "group", 1)
        if groups > 1:
            scale = network.affine(norm)[0]
            wrong = scale.reshape(groups, -1)[::-1].reshape(-1)
            network.edit(linear.input[1], lambda kernel, r=wrong / scale: kernel * r.reshape(-1, 1, 1, 1))
            return True
    return False


@fault("kernel of equal sides transposed")
def _(network: Network) -> bool:
    for linear in network.nodes("Conv", "ConvTranspose"):
        kernel = network.get(linear.input[1])
        if kernel.ndim == 4 and kernel.shape[2] > 1:
            network.set(linear.input[1], kernel.swapaxes(2, 3))
            return True
    return False


@fault("fold through ReLU")
def _(network: Network) -> bool:
    """``relu(norm(x))`` as ``norm(relu(x))``, which is the same exchange as the other way round."""
    for norm in network.norms:
        readers = network.readers(norm.output[0])
        if len(readers) == 1 and readers[0].op_type == "Relu":
            relu = readers[0]
            norm.op_type, relu.op_type = "Relu", "BatchNormalization"
            parameters, attributes = list(norm.input[1:]), list(norm.attribute)
            del norm.input[1:], norm.attribute[:]
            relu.input.extend(parameters)
            relu.attribute.extend(attributes)
            return True
    return False


@fault("fold through zero padding")
def _(network: Network) -> bool:
    """A bias behind a convolution as one in front of it: the border differs."""
    for linear in network.nodes("Conv"):
        norm = network.maker(linear.input[0])
        pads = next((list(each.ints) for each in linear.attribute if each.name == "pads"), [])
        data = network.maker(norm.input[0]) if norm is not None and norm.op_type == "Relu" else None
        if any(pads) and data is not None and data.op_type == "BatchNormalization" and len(linear.input) > 2:
            kernel = network.get(linear.input[1]).astype(np.float64)
            shift = np.full(kernel.shape[1], 0.1)
            if attribute(linear, "group", 1) > 1:
                return False
            moved = f"{linear.name}_moved"
            index = list(network.graph.node).index(linear)
            constant = numpy_helper.from_array(
                (-shift).reshape(1, -1, 1, 1).astype(network.get(linear.input[2]).dtype), f"{moved}_shift"
            )
            network.graph.initializer.append(constant)
            node = helper.make_node("Add", [linear.input[0], constant.name], [moved], name=moved)
            linear.input[0] = moved
            network.graph.node.insert(index, node)
            network.set(linear.input[2], network.get(linear.input[2]) + kernel.sum(axis=(2, 3)) @ shift)
            return True
    return False


@fault("fold despite a second use")
def _(network: Network) -> bool:
    for norm in network.norms:
        others = [node for node in network.readers(norm.input[0]) if node is not norm]
        if others and network.maker(norm.input[0]).op_type in LINEAR:
            node = others[0]
            node.input[list(node.input).index(norm.input[0])] = norm.output[0]
            order = list(network.graph.node)
            if order.index(node) < order.index(norm):
                network.graph.node.remove(norm)
                network.graph.node.insert(order.index(node), norm)
            return True
    return False


@fault("two outputs swapped", after=True)
def _(network: Network) -> bool:
    outputs = network.graph.output
    if len(outputs) < 2:
        return False
    first, second = outputs[0].name, outputs[1].name
    for node in network.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = {first: second, second: first}.get(name, name)
    return True


@fault("order of a concatenation")
def _(network: Network) -> bool:
    for node in network.nodes("Concat"):
        if len(node.input) == 2:
            node.input[0], node.input[1] = node.input[1], node.input[0]
            return True
    return False


@fault("residual input read behind its block", after=True)
def _(network: Network) -> bool:
    for node in network.nodes("Add"):
        data = [name for name in node.input if network.maker(name) is not None]
        if len(data) == 2:
            node.input[0] = node.input[1]
            return True
    return False


@fault("ReLU left out", after=True)
def _(network: Network) -> bool:
    nodes = network.nodes("Relu")
    return bool(nodes) and skip(network, nodes[-1])


def on_weight(change: Callable[[Array], Array], which: int = 0) -> Fault:
    def apply(network: Network) -> bool:
        linear = network.nodes(*LINEAR)
        if not linear:
            return False
        node = linear[which if which < 0 else len(linear) // 2]
        network.edit(node.input[1], change)
        return True

    return apply


def on_entry(change: Callable[[float], float]) -> Callable[[Array], Array]:
    def apply(kernel: Array) -> Array:
        index = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
        kernel[index] = change(kernel[index])
        return kernel

    return apply


def on_channel(factor: float) -> Callable[[Array], Array]:
    def apply(kernel: Array) -> Array:
        kernel[kernel.shape[0] // 2] *= factor
        return kernel

    return apply


def to_bfloat16(array: Array) -> Array:
    return torch.from_numpy(array).bfloat16().double().numpy()


def to_int8(array: Array) -> Array:
    step = np.abs(array).max() / 127
    return np.round(array / step) * step


FAULTS["one channel off by 0.1 %"] = on_weight(on_channel(1.001)), True
FAULTS["one channel of the last layer off by 0.1 %"] = on_weight(on_channel(1.001), -1), True
FAULTS["one weight off by 1 %"] = on_weight(on_entry(lambda value: value * 1.01)), True
FAULTS["sign of one weight"] = on_weight(on_entry(lambda value: -value)), True
FAULTS["NaN in one weight"] = on_weight(on_entry(lambda value: np.nan)), True
FAULTS["infinity in one weight (overflow)"] = on_weight(on_entry(lambda value: np.inf)), True
FAULTS["weights rounded to bfloat16"] = on_weight(to_bfloat16), True
FAULTS["weights rounded to 8 bits"] = on_weight(to_int8), True


@fault("channels of a kernel shifted by one", after=True)
def _(network: Network) -> bool:
    return on_weight(lambda kernel: np.roll(kernel, 1, axis=0))(network)


@fault("bias of the last layer off by 1e-4 of its size", after=True)
def _(network: Network) -> bool:
    linear = [node for node in network.nodes(*LINEAR) if len(node.input) > 2]
    if not linear:
        return False
    network.edit(linear[-1].input[2], lambda bias: bias + 1e-4 * np.abs(bias).max())
    return True


@fault("padding on the other side", after=True)
def _(network: Network) -> bool:
    for node in network.nodes("Conv"):
        for each in node.attribute:
            if each.name == "pads" and list(each.ints) == [1, 1, 1, 1]:
                each.ints[:] = [2, 2, 0, 0]
                return True
    return False


Variant = Callable[[Model], Model | None]

VARIANTS: dict[str, Variant] = {}
"""Correct rewritings: each gives the same model, rounded in another way."""


def variant(name: str) -> Callable[[Variant], Variant]:
    def register(function: Variant) -> Variant:
        VARIANTS[name] = function
        return function

    return register


@variant("folded by bnfold, in float64")
def _(model: Model) -> Model:
    return bnfold.fuse(model)


def fold_in_float32(order: int) -> Variant:
    """The usual code, ``w * (gamma / sqrt(var + eps))``, in float32, the operations in either order."""

    def apply(model: Model) -> Model:
        network = Network(model)
        for linear, norm in list(network.pairs()):
            kernel, *bias = (network.get(name) for name in linear.input[1:])
            gamma, beta, mean, var = (network.get(name).astype(np.float32) for name in norm.input[1:])
            root = np.sqrt(var + np.float32(epsilon(norm)))
            axis = 1 if linear.op_type == "ConvTranspose" else 0
            shape = [1] * kernel.ndim
            shape[axis] = -1
            wide = kernel.astype(np.float32)
            scaled = wide * (gamma / root).reshape(shape)
            if order:
                scaled = wide * gamma.reshape(shape) / root.reshape(shape)
            old = bias[0].astype(np.float32) if bias else np.zeros_like(mean)
            new = (old - mean) * (gamma / root) + beta
            if order:
                new = gamma * old / root + (beta - gamma * mean / root)
            network.set(linear.input[1], scaled)
            if not bias:
                name = f"{linear.name}_bias"
                network.graph.initializer.append(
                    numpy_helper.from_array(new.astype(network.get(norm.input[1]).dtype), name)
                )
                linear.input.append(name)
            else:
                network.set(linear.input[2], new)
            linear.output[0] = norm.output[0]
            network.graph.node.remove(norm)
        return network.model

    return apply


VARIANTS["folded in float32"] = fold_in_float32(0)
VARIANTS["folded in float32, in another order"] = fold_in_float32(1)


def optimised_by_runtime(level: str) -> Variant:
    def apply(model: Model) -> Model:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
            options.optimized_model_filepath = str(path)
            options.log_severity_level = 4
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(path)

    return apply


VARIANTS["optimised by onnxruntime, basic"] = optimised_by_runtime("BASIC")
VARIANTS["optimised by onnxruntime, extended"] = optimised_by_runtime("EXTENDED")
VARIANTS["optimised by onnxruntime, all"] = optimised_by_runtime("ALL")


def decomposed(steps: Callable[[Network, onnx.NodeProto], Sequence[tuple[str, Array]]]) -> Variant:
    """Every BatchNorm as arithmetic with per-channel constants of its own type."""

    def apply(model: Model) -> Model:
        network = Network(model)
        ranks = {each.name: 4 for each in network.graph.node}
        for norm in list(network.norms):
            maker = network.maker(norm.input[0])
            rank = 2 if maker is not None and maker.op_type == "Gemm" else ranks[norm.name]
            index = list(network.graph.node).index(norm)
            network.graph.node.remove(norm)
            value = norm.input[0]
            chain = list(steps(network, norm))
            for step, (op, constant) in enumerate(chain):
                name = f"{norm.name}_{step}"
                shaped = constant.reshape(1, -1, *[1] * (rank - 2)).astype(network.get(norm.input[1]).dtype)
                network.graph.initializer.append(numpy_helper.from_array(shaped, f"{name}_constant"))
                made = norm.output[0] if step == len(chain) - 1 else name
                node = helper.make_node(op, [value, f"{name}_constant"], [made], name=name)
                network.graph.node.insert(index + step, node)
                value = made
        return network.model

    return apply


def as_affine(network: Network, norm: onnx.NodeProto) -> list[tuple[str, Array]]:
    scale, shift = network.affine(norm)
    return [("Mul", scale), ("Add", shift)]


def as_normalisation(network: Network, norm: onnx.NodeProto) -> list[tuple[str, Array]]:
    gamma, beta, mean, var = (network.get(name).astype(np.float64) for name in norm.input[1:])
    return [("Sub", mean), ("Div", np.sqrt(var + epsilon(norm))), ("Mul", gamma), ("Add", beta)]


VARIANTS["BatchNorm as Mul and Add"] = decomposed(as_affine)
VARIANTS["BatchNorm as Sub, Div, Mul and Add"] = decomposed(as_normalisation)


@variant("weights moved by one unit in the last place")
def _(model: Model) -> Model:
    network = Network(model)
    generator = np.random.default_rng(99)
    for node in network.nodes(*LINEAR):
        kernel = network.get(node.input[1])
        away = np.where(generator.integers(0, 2, kernel.shape) == 1, np.inf, -np.inf).astype(kernel.dtype)
        network.set(node.input[1], np.nextafter(kernel, away))
    return network.model


@variant("biases as Add")
def _(model: Model) -> Model:
    network = Network(bnfold.fuse(model))
    for node in network.nodes("Conv", "ConvTranspose"):
        if len(node.input) > 2:
            bias = network.get(node.input[2])
            name, made = f"{node.name}_split", node.output[0]
            network.graph.initializer.append(numpy_helper.from_array(bias.reshape(1, -1, 1, 1), f"{name}_bias"))
            index = list(network.graph.node).index(node)
            del node.input[2:]
            node.output[0] = name
            network.graph.node.insert(index + 1, helper.make_node("Add", [f"{name}_bias", name], [made], name=name))
    return network.model


def rearranged(change: Callable[[np.random.Generator, int], tuple[Array, Array]]) -> Variant:
    """The channels between a convolution and the next one in another order and of another size, and back again.

    Args:
        change: gives an order and positive factors for as many channels.
    """

    def apply(model: Model) -> Model | None:
        network, generator, found = Network(bnfold.fuse(model)), np.random.default_rng(3), False
        for first in network.nodes("Conv"):
            readers = network.readers(first.output[0])
            behind = network.readers(readers[0].output[0]) if [each.op_type for each in readers] == ["Relu"] else []
            if [each.op_type for each in behind] != ["Conv"] or len(first.input) < 3:
                continue
            second = behind[0]
            if attribute(first, "group", 1) != 1 or attribute(second, "group", 1) != 1:
                continue
            order, factors = change(generator, network.get(first.input[2]).size)
            rows, columns = factors.reshape(-1, 1, 1, 1), factors.reshape(1, -1, 1, 1)
            network.edit(first.input[1], lambda kernel, o=order, f=rows: kernel[o] * f)
            network.edit(first.input[2], lambda bias, o=order, f=factors: bias[o] * f)
            network.edit(second.input[1], lambda kernel, o=order, f=columns: kernel[:, o] / f)
            found = True
        return network.model if found else None

    return apply


VARIANTS["channels in another order between layers"] = rearranged(
    lambda generator, size: (generator.permutation(size), np.ones(size))
)
VARIANTS["channels of another size between layers"] = rearranged(
    lambda generator, size: (np.arange(size), 2.0 ** generator.integers(-3, 4, size))
)


@variant("names of the first part for what is fused")
def _(model: Model) -> Model | None:
    """As other tools name it: a folded convolution makes a value of the convolution's name, not of the BatchNorm's."""
    first = {norm.output[0]: linear.output[0] for linear, norm in Network(model).pairs()}
    outputs = {info.name for info in model.graph.output}
    network, found = Network(bnfold.fuse(model)), False
    for node in network.graph.node:
        for names in (node.input, node.output):
            renamed = [first.get(name, name) if name not in outputs else name for name in names]
            found |= renamed != list(names)
            names[:] = renamed
    return network.model if found else None


@variant("Gemm as MatMul and Add")
def _(model: Model) -> Model | None:
    original = bnfold.fuse(model)
    network, gemms = Network(original), Network(original).nodes("Gemm")
    for node in network.nodes("Gemm"):
        kernel = network.get(node.input[1]).astype(network.get(node.input[-1]).dtype)
        product, made = f"{node.name}_product", node.output[0]
        matrix = numpy_helper.from_array(
            np.ascontiguousarray(kernel.T if attribute(node, "transB") else kernel), f"{product}_b"
        )
        network.graph.initializer.append(matrix)
        index = list(network.graph.node).index(node)
        nodes = [
            helper.make_node(
                "MatMul", [node.input[0], matrix.name], [product if len(node.input) > 2 else made], name=product
            )
        ]
        if len(node.input) > 2:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [made], name=node.name))
        network.graph.node.remove(node)
        for offset, each in enumerate(nodes):
            network.graph.node.insert(index + offset, each)
    return network.model if gemms else None


@variant("converted to opset 21")
def _(model: Model) -> Model:
    return onnx.version_converter.convert_version(bnfold.fuse(model), 21)


@dataclass
class Tally:
    """Of one kind of fault, or of one correct variant.

    Attributes:
        tried: models it was put into.
        idle: models on which it has no effect at all, in float64; not counted.
        refused: by each judge.
        passed: models that `bnfold.verify` passed, with the exact relative effect.
    """

    tried: int = 0
    idle: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)


JUDGES = ("bnfold", "allclose, rtol 1e-3, atol 1e-5", "numpy.allclose", "torch.testing.assert_close")


def run(model: Model, x: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    model = fix_draws(model)[0]  # the tolerances get the same random numbers in both models
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def refusals(reference: Model, candidate: Model, x: Array) -> dict[str, bool]:
    expected, actual = run(reference, x), run(candidate, x)
    pairs = list(zip(expected, actual, strict=True))

    def all_close(**tolerance: float) -> bool:
        return all(np.allclose(b, a, **tolerance) for a, b in pairs)

    def assert_close() -> bool:
        try:
            for a, b in pairs:
                torch.testing.assert_close(torch.from_numpy(b), torch.from_numpy(a))
        except AssertionError:
            return False
        return True

    verdict = bnfold.verify(reference, candidate)
    return dict(
        zip(
            JUDGES,
            (not verdict.is_equivalent, not all_close(rtol=1e-3, atol=1e-5), not all_close(), not assert_close()),
            strict=True,
        )
    )


def in_float64(model: Model) -> Model:
    return widen(fix_draws(model)[0], None, FLOATS, onnx.TensorProto.DOUBLE)


def effect(reference: Model, candidate: Model, x: Array) -> float:
    """Largest difference of the outputs and of the inner values of one name, in float64, over their size."""
    names = [name for node in reference.graph.node for name in node.output]
    theirs = {name for node in candidate.graph.node for name in node.output}
    shared = [name for name in names if name in theirs]
    expected = exact.evaluate(in_float64(reference), {"x": x}, shared, 60)
    actual = exact.evaluate(in_float64(candidate), {"x": x}, shared, 60)
    if expected is None or actual is None:
        raise RuntimeError("the reference evaluator cannot run the model")
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        if a.shape == b.shape:
            peak = np.abs(a).max() or 1.0
            with np.errstate(invalid="ignore"):
                worst = max(worst, float(np.nan_to_num(np.abs(b - a).max() / peak, nan=np.inf)))
    return worst


def faulty(model: Model, name: str) -> Model | None:
    change, is_after = FAULTS[name]
    network = Network(bnfold.fuse(model) if is_after else model)
    if not change(network):
        return None
    return network.model if is_after else bnfold.fuse(network.model)


def study(seeds: int, kinds: Sequence[str]) -> tuple[dict[str, Tally], dict[str, Tally]]:
    faults = {name: Tally() for name in FAULTS}
    variants = {name: Tally() for name in VARIANTS}
    for seed in range(seeds):
        for kind in kinds:
            described = fault_models.KINDS[kind]
            model = fault_models.make(described, seed)
            x = (
                np.random.default_rng(seed)
                .standard_normal((2, 3, 16, 16))
                .astype(np.float16 if described.half else np.float32)
            )
            for name, tally in faults.items():
                candidate = faulty(model, name)
                if candidate is None:
                    continue
                size = effect(model, candidate, x)
                rounding = effect(model, bnfold.fuse(model), x) if size < 1e-2 else 0.0
                if size <= 1.5 * rounding:
                    tally.idle += 1
                    continue
                judged = refusals(model, candidate, x)
                count(tally, judged)
                if not judged["bnfold"]:
                    tally.passed.append(f"{kind} ({size:.1e}, rounding {rounding:.1e})")
            for name, tally in variants.items():
                candidate = VARIANTS[name](model)
                if candidate is None:
                    continue
                judged = refusals(model, candidate, x)
                count(tally, judged)
                if judged["bnfold"]:
                    tally.passed.append(f"{kind}: {bnfold.verify(model, candidate).worst.reason}")
            print(f"seed {seed}, {kind}: done", flush=True)
    return faults, variants


def count(tally: Tally, judged: dict[str, bool]) -> None:
    tally.tried += 1
    for judge, refused in judged.items():
        tally.refused[judge] = tally.refused.get(judge, 0) + refused


def table(tallies: dict[str, Tally], what: str) -> list[str]:
    lines = [f"| {what} | models | {' | '.join(JUDGES)} |", f"|---|---:|{'---:|' * len(JUDGES)}"]
    for name, tally in tallies.items():
        cells = [f"{tally.refused.get(judge, 0)}" for judge in JUDGES]
        lines.append(f"| {name} | {tally.tried} | {' | '.join(cells)} |")
    total = sum(tally.tried for tally in tallies.values())
    sums = [sum(tally.refused.get(judge, 0) for tally in tallies.values()) for judge in JUDGES]
    lines.append(f"| **all** | **{total}** | {' | '.join(f'**{each} ({each / total:.1%})**' for each in sums)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="write the tables between the markers of this page")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", choices=fault_models.KINDS, default=list(fault_models.KINDS))
    given = parser.parse_args()
    faults, variants = study(given.seeds, given.kinds)
    lines = [
        f"{len(FAULTS)} kinds of fault and {len(VARIANTS)} correct variants in {len(given.kinds)} kinds of "
        f"model, {given.seeds} of each (`python scripts/benchmarks/faults.py --seeds {given.seeds}`). "
        "Numbers are candidates refused.",
        "",
        *table(faults, "fault"),
        "",
        "Passed by bnfold, with the largest effect in float64 over the size of the value:",
        "",
        *[f"- {name}: {', '.join(tally.passed)}" for name, tally in faults.items() if tally.passed],
        "",
        *table(variants, "correct variant"),
        "",
        *[f"- {name}: {', '.join(tally.passed)}" for name, tally in variants.items() if tally.passed],
    ]
    print("\n".join(lines))
    if given.docs is not None:
        start, end = "<!-- faults: start -->\n", "<!-- faults: end -->"
        text = given.docs.read_text()
        head, rest = text.split(start)
        given.docs.write_text(head + start + "\n".join(lines) + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
