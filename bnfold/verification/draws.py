"""Replaces operators of ONNX that draw random numbers by operators that give the same numbers in every model.

A seed does not do that: each runtime makes its own numbers of it, and each run of a session goes on where the last one
ended. So the numbers come from a table in the model, at places that depend on the shape alone. Operators that lead to
no output draw nothing, since an optimiser may have removed them from the other model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.frontends.onnx.nesting import bodies, nested_nodes

AnyArray = npt.NDArray[Any]

TABLE = 65_537
"""How many numbers a table has: a prime, so that rows of a tensor are not alike."""

OLDEST = 15
"""The first opset that has all the operators of a replacement."""

NORMAL = frozenset({"RandomNormal", "RandomNormalLike"})

UNIFORM = frozenset({"RandomUniform", "RandomUniformLike"})

DRAWS = NORMAL | UNIFORM | {"Bernoulli", "Dropout", "Multinomial"}
"""All operators of ONNX that may draw random numbers."""

FIXABLE = DRAWS - {"Multinomial"}
"""Those that do not draw by weights of their own."""


def fix_draws(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model with fixed numbers in place of random ones, and how many operators were replaced.

    Some are left: operators that draw by weights of their own (Multinomial), those in bodies and functions, and those
    of models below opset 15.
    """
    if not any(map(_draws, proto.graph.node)):
        return proto, 0
    version = max((opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")), default=0)
    needed = _needed(proto.graph)
    constants = _constants(proto.graph)
    draws = {
        index: _Draw(node, number, constants)
        for number, (index, node) in enumerate(
            (index, node) for index, node in enumerate(proto.graph.node) if _draws(node) and needed & set(node.output)
        )
    }
    replaced = {index: nodes for index, draw in draws.items() if version >= OLDEST and (nodes := draw.replacement())}
    if not replaced:
        return proto, 0
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.node[:]
    for index, node in enumerate(proto.graph.node):
        fixed.graph.node.extend(replaced.get(index, [node]))
    for index in replaced:
        fixed.graph.initializer.extend(draws[index].tables)
    fixed.ir_version = max(fixed.ir_version, 4)  # before, each initializer had to be an input
    return fixed, len(replaced)


def _draws(node: onnx.NodeProto) -> bool:
    if node.op_type not in FIXABLE or node.domain not in ("", "ai.onnx"):
        return False
    return node.op_type != "Dropout" or (len(node.input) > 2 and bool(node.input[2]))


def _needed(graph: onnx.GraphProto) -> set[str]:
    """The values that lead to outputs."""
    needed = {info.name for info in graph.output}
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            needed.update(name for body in bodies(node) for inner in nested_nodes(body) for name in inner.input)
    return needed


def _constants(graph: onnx.GraphProto) -> Mapping[str, onnx.TensorProto]:
    """Small constants, by name."""
    constants = {tensor.name: tensor for tensor in graph.initializer if not tensor.dims and tensor.data_location != 1}
    for node in graph.node:
        if node.op_type == "Constant" and (value := _attribute(node, "value")) is not None:
            constants[node.output[0]] = value
    return constants


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    return next(
        (helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), default
    )


class _Draw:
    """One operator that draws.

    Args:
        node: the operator.
        number: its position among the operators that draw.
        constants: the small constants of its graph.
    """

    def __init__(self, node: onnx.NodeProto, number: int, constants: Mapping[str, onnx.TensorProto]) -> None:
        self._node, self._number, self._constants = node, number, constants
        self.tables: list[onnx.TensorProto] = []

    def replacement(self) -> list[onnx.NodeProto]:
        """The nodes in its place; none where it stays."""
        kind, (out, *more) = self._node.op_type, self._node.output
        generator = np.random.default_rng([7, self._number])
        if kind in NORMAL:
            mean, scale = _attribute(self._node, "mean", 0.0), _attribute(self._node, "scale", 1.0)
            return list(
                self._look_up(mean + scale * generator.standard_normal(TABLE), out, self._type(), self._shape())
            )
        if kind in UNIFORM:
            low, high = _attribute(self._node, "low", 0.0), _attribute(self._node, "high", 1.0)
            return list(self._look_up(generator.uniform(low, high, TABLE), out, self._type(), self._shape()))
        uniform = list(self._look_up(generator.random(TABLE), self._name("u"), TensorProto.FLOAT, None))
        if kind == "Bernoulli":
            return [*uniform, *self._compare(out)]
        training = self._constants.get(self._node.input[2])
        if training is None or not numpy_helper.to_array(training).all():
            return []
        return [*uniform, *self._drop(out, more)]

    def _name(self, what: str) -> str:
        return f"{self._node.output[0]}/{what}"

    def _store(self, what: str, array: AnyArray) -> str:
        self.tables.append(numpy_helper.from_array(array, self._name(what)))
        return self._name(what)

    def _shape(self) -> Sequence[int] | None:
        """The shape in an attribute; None stands for that of the first input."""
        sizes: Sequence[int] | None = _attribute(self._node, "shape")
        return sizes

    def _type(self) -> int:
        """The element type in an attribute; 0 stands for that of the first input."""
        return int(_attribute(self._node, "dtype", 0 if self._node.input else TensorProto.FLOAT))

    def _look_up(
        self, table: npt.NDArray[np.float64], out: str, dtype: int, shape: Sequence[int] | None
    ) -> Iterator[onnx.NodeProto]:
        """Look up the numbers of a table in order, starting over at its end, to fill a shape."""
        stored = table.astype(helper.tensor_dtype_to_np_dtype(dtype or TensorProto.FLOAT))
        if shape is None:
            yield helper.make_node("Shape", [self._node.input[0]], [self._name("shape")])
        else:
            self._store("shape", np.array(shape, np.int64))
        zero, one = self._store("zero", np.array(0, np.int64)), self._store("one", np.array(1, np.int64))
        size = self._store("size", np.array(TABLE, np.int64))
        count, places, index, row = (self._name(part) for part in ("count", "places", "index", "row"))
        yield helper.make_node("ReduceProd", [self._name("shape")], [count], keepdims=0)
        yield helper.make_node("Range", [zero, count, one], [places])
        yield helper.make_node("Mod", [places, size], [index])
        yield helper.make_node("Gather", [self._store("table", stored), index], [row])
        if dtype:
            yield helper.make_node("Reshape", [row, self._name("shape")], [out])
        else:
            yield helper.make_node("Reshape", [row, self._name("shape")], [self._name("untyped")])
            yield helper.make_node("CastLike", [self._name("untyped"), self._node.input[0]], [out])

    def _compare(self, out: str) -> Iterator[onnx.NodeProto]:
        """One where a uniform number is below the probability."""
        data = self._node.input[0]
        yield helper.make_node("Cast", [data], [self._name("p")], to=TensorProto.FLOAT)
        yield helper.make_node("Less", [self._name("u"), self._name("p")], [self._name("is_one")])
        if dtype := _attribute(self._node, "dtype"):
            yield helper.make_node("Cast", [self._name("is_one")], [out], to=dtype)
        else:
            yield helper.make_node("CastLike", [self._name("is_one"), data], [out])

    def _drop(self, out: str, more: Sequence[str]) -> Iterator[onnx.NodeProto]:
        """Zeros where a uniform number is below the ratio, and the rest scaled up."""
        data, ratio = self._node.input[0], self._node.input[1] if self._node.input[1] else ""
        ratio = ratio or self._store("ratio", np.array(0.5, np.float32))
        one = self._store("whole", np.array(1, np.float32))
        kept, share, mask, part = (more[0] if more and more[0] else self._name("kept"), *map(self._name, "smp"))
        yield helper.make_node("Cast", [ratio], [f"{share}/ratio"], to=TensorProto.FLOAT)
        yield helper.make_node("Less", [self._name("u"), f"{share}/ratio"], [f"{share}/dropped"])
        yield helper.make_node("Not", [f"{share}/dropped"], [kept])
        yield helper.make_node("Sub", [one, f"{share}/ratio"], [share])
        yield helper.make_node("Cast", [kept], [mask], to=TensorProto.FLOAT)
        yield helper.make_node("Div", [mask, share], [part])
        yield helper.make_node("CastLike", [part, data], [f"{part}/typed"])
        yield helper.make_node("Mul", [data, f"{part}/typed"], [out])
