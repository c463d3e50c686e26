"""The closed form of a linear operator whose input and output changed; and checks that the stored weights are that.

Of ``y = K * x + b``, with ``x = in(x')`` and ``y' = out(y)``:

    K'[o, i] = out.scale[o] * K[o, i] * in.scale[i]
    b'[o]    = out.scale[o] * (b[o] + sum_i K[o, i] in.shift[i]) + out.shift[o]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from bnfold.algebra.affine import Affine
from bnfold.proof.failure import ProofError
from bnfold.proof.models import Scope, first_output
from bnfold.proof.rounding import UNIT, Array, Worst, Wrong, check_rounded

AnyArray = npt.NDArray[Any]

BLOCK = 1 << 20
"""How many elements of a kernel are checked at a time."""

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "DeformConv"})

PRODUCTS = frozenset({"Einsum", "FusedMatMul", "MatMul"})
"""Operators with the kernel on either side, and without a bias."""

LINEAR = frozenset({*CONVOLUTIONS, "Gemm", *PRODUCTS, *RECURRENT})


@dataclass(frozen=True, eq=False)
class Kernel:
    """A stored kernel, seen as ``[rows, columns, taps]``.

    Attributes:
        values: the stored elements, in this shape.
        groups: how many runs the rows are cut into, each of which has its own columns.
        is_by_output: whether rows are output channels and columns input channels; else it is the other way round.
        factor: multiplies every element (Gemm's alpha).
    """

    values: AnyArray
    groups: int
    is_by_output: bool
    factor: float = 1.0

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of output and input channels."""
        rows, columns = self.values.shape[0], self.values.shape[1] * self.groups
        return (rows, columns) if self.is_by_output else (columns, rows)

    def blocks(self) -> Iterator[slice]:
        """Runs of rows of about `BLOCK` elements."""
        rows = self.values.shape[0]
        step = max(1, BLOCK // max(1, self.values.size // max(1, rows)))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def along_rows(self, vector: Array, rows: slice) -> Array:
        """A per-channel vector of the rows' side, laid out along the rows."""
        return vector[rows].reshape(-1, 1, 1)

    def along_columns(self, vector: Array, rows: slice) -> Array:
        """A per-channel vector of the columns' side, laid out along the columns of each row."""
        groups = np.arange(self.values.shape[0])[rows] // (self.values.shape[0] // self.groups)
        columns: Array = vector.reshape(self.groups, -1)[groups][:, :, None]
        return columns

    def solve(self, rows: slice, inner: Array | None, outer: Array | None) -> Array:
        """Rows of the new kernel, in float64. The input's scale is multiplied first."""
        solved: AnyArray = self.values[rows]
        if self.factor != 1 or (inner is None and outer is None) or solved.dtype.kind != "f":
            solved = solved.astype(np.float64) * self.factor
        sides = (self.along_columns, self.along_rows) if self.is_by_output else (self.along_rows, self.along_columns)
        for vector, side in zip((inner, outer), sides, strict=True):
            if vector is not None:
                solved = np.multiply(solved, side(vector, rows), dtype=np.float64)
        return solved

    def carry(self, shift: Array) -> tuple[Array, Array]:
        """What the kernel makes of a constant input, and the same with absolute values."""
        out = np.zeros(self.sizes[0])
        size = np.zeros(self.sizes[0])
        for rows in self.blocks():
            values = self.solve(rows, None, None)
            side = self.along_columns if self.is_by_output else self.along_rows
            taps = values.sum(axis=2), np.abs(values).sum(axis=2)
            parts = taps[0] * side(shift, rows)[:, :, 0], taps[1] * side(np.abs(shift), rows)[:, :, 0]
            if self.is_by_output:
                out[rows], size[rows] = parts[0].sum(axis=1), parts[1].sum(axis=1)
                continue
            groups = np.arange(self.values.shape[0])[rows] // (self.values.shape[0] // self.groups)
            for total, part in ((out, parts[0]), (size, parts[1])):
                np.add.at(total.reshape(self.groups, -1), groups, part)
        return out, size


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    for entry in node.attribute:
        if entry.name == name:
            if entry.ref_attr_name:
                raise ProofError("weights", first_output(node), f"a caller of the function gives its {name}")
            content = helper.get_attribute_value(entry)
            return content.decode() if isinstance(content, bytes) else content
    return default


def is_linear(scope: Scope, node: onnx.NodeProto) -> bool:
    """Whether a node is one of these operators. FusedMatMul is ONNX Runtime's, if no function of the model is."""
    if node.op_type != "FusedMatMul":
        return node.op_type in LINEAR and node.domain in ("", "ai.onnx")
    functions = scope.side.files.proto.functions
    return node.domain == "com.microsoft" and all(
        (body.domain, body.name) != (node.domain, node.op_type) for body in functions
    )


def turned(node: onnx.NodeProto) -> tuple[bool, bool]:
    """Of which operands a product exchanges the last two axes."""
    if node.op_type != "FusedMatMul":
        return False, False
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise ProofError("weights", first_output(node), "it moves an axis of the batch")
    return bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))


def data_index(scope: Scope, node: onnx.NodeProto) -> int:
    """The index of a linear operator's data input."""
    return 1 if node.op_type in PRODUCTS and not scope.is_constant(node.input[1]) else 0


@dataclass(frozen=True)
class Equation:
    """An Einsum that is a product with a matrix: where the channels lie in its input and output.

    Attributes:
        axis_in, axis_out: the channel axes of input and output.
        rank: the number of the output's axes.
        is_by_output: whether the rows of the matrix are output channels.
    """

    axis_in: int
    axis_out: int
    rank: int
    is_by_output: bool


def read_equation(scope: Scope, node: onnx.NodeProto) -> Equation:
    """Read the letters of an Einsum. Each term has each letter once, and only the matrix's two differ."""
    name, equation = first_output(node), str(attribute(node, "equation", "")).replace(" ", "")
    terms, _, result = equation.partition("->")
    index = data_index(scope, node)
    parts = terms.split(",")
    if len(parts) != 2 or "." in equation or "->" not in equation or len(parts[1 - index]) != 2:
        raise ProofError("weights", name, f"{equation!r} is no product with a matrix")
    data, matrix = parts[index], parts[1 - index]
    # the letter that is summed over, and the one that takes its place
    for first, second in (tuple(matrix), tuple(matrix[::-1])):
        is_product = first in data and second not in data and set(result) == set(data) - {first} | {second}
        if is_product and all(len(set(term)) == len(term) for term in (data, matrix, result)):
            return Equation(data.index(first), result.index(second), len(result), matrix[0] == second)
    raise ProofError("weights", name, f"{equation!r} is no product with a matrix")


def read_kernel(scope: Scope, node: onnx.NodeProto, values: AnyArray) -> Kernel:
    """The kernel of a linear operator, with its layout."""
    try:
        return _layout(scope, node, values)
    except (ValueError, ZeroDivisionError, IndexError) as error:
        raise ProofError("weights", first_output(node), f"its weight does not fit it ({error})") from error


def _layout(scope: Scope, node: onnx.NodeProto, values: AnyArray) -> Kernel:
    shape = values.shape
    if node.op_type in CONVOLUTIONS:
        groups = int(attribute(node, "group", 1))
        if shape[0] % groups:
            raise ValueError(f"{shape[0]} rows in {groups} groups")
        return Kernel(values.reshape(*shape[:2], -1), groups, node.op_type != "ConvTranspose")
    if node.op_type == "Gemm":
        is_by_output = bool(attribute(node, "transB", 0))
        return Kernel(values.reshape(*shape, 1), 1, is_by_output, float(attribute(node, "alpha", 1.0)))
    if node.op_type == "Einsum":
        return Kernel(values.reshape(*shape, 1), 1, read_equation(scope, node).is_by_output)
    if node.op_type in ("FusedMatMul", "MatMul"):
        index = data_index(scope, node)
        is_by_output = (index == 1) != turned(node)[1 - index]
        factor = float(attribute(node, "alpha", 1.0)) if node.op_type == "FusedMatMul" else 1.0
        return Kernel(values.reshape(*shape[-2:], 1), 1, is_by_output, factor)
    return Kernel(values.reshape(-1, shape[-1], 1), 1, True)


def check_kernel(node: str, old: Kernel, new: Kernel, inner: Affine | None, outer: Affine | None) -> Worst:
    """Check that a kernel is the closed form of another one.

    In float32 and narrower types, the two roundings in float64 on the way are allowed for. In float64 the order of the
    products counts: the input's scale comes first.
    """
    if (old.values.shape, old.groups, old.is_by_output) != (new.values.shape, new.groups, new.is_by_output):
        raise ProofError("weights", node, f"its weight has shape {new.values.shape}, not {old.values.shape}")
    if old.values.dtype != new.values.dtype:
        raise ProofError("weights", node, f"its weight is of type {new.values.dtype}, not {old.values.dtype}")
    if new.factor != 1:
        raise ProofError("weights", node, f"its alpha is {new.factor}")
    slack = 0.0 if new.values.dtype == np.float64 else 4 * UNIT
    worst = Worst()
    for rows in old.blocks():
        exact = old.solve(rows, inner.scale if inner else None, outer.scale if outer else None)
        outcome = check_rounded(new.values[rows], exact, slack * np.abs(exact))
        if isinstance(outcome, Wrong):
            row, column, tap = np.unravel_index(outcome.index, exact.shape)
            place = f"row {rows.start + int(row)}, column {int(column)}, tap {int(tap)} of its weight"
            raise ProofError("weights", node, _numbers(place, outcome))
        worst = worst.joined(outcome)
    return worst


def solve_bias(old: Kernel, bias: Array | None, inner: Affine | None, outer: Affine | None) -> tuple[Array, Array]:
    """The new bias, and how far float64 arithmetic may be from it. Channels lie on the last axis."""
    out = old.sizes[0]
    total = np.zeros(out) if bias is None else bias
    size = np.abs(total)
    if inner is not None and inner.has_shift:
        carried, sizes = old.carry(inner.shift)
        total, size = total + carried, size + sizes
    if outer is not None:
        total = outer.scale * total + outer.shift
        size = np.abs(outer.scale) * size + np.abs(outer.shift)
    count = old.values.size // max(1, out) + 8
    return total, count * UNIT * size


def check_bias(node: str, exact: Array, error: Array, stored: AnyArray | None) -> Worst:
    """Check that a bias is the exact one, rounded once. A missing bias must be exactly zero."""
    exact, error = exact.reshape(-1), error.reshape(-1)
    if stored is None:
        if exact.any():
            channel = int(np.argmax(exact != 0))
            raise ProofError(
                "weights", node, f"channel {channel} of its bias is missing, and should be {exact[channel]!r}"
            )
        return Worst()
    if stored.size != exact.size:
        raise ProofError("weights", node, f"its bias has {stored.size} channels, not {exact.size}")
    outcome = check_rounded(stored.reshape(-1), exact, error)
    if isinstance(outcome, Wrong):
        raise ProofError("weights", node, _numbers(f"channel {outcome.index} of its bias", outcome))
    return outcome


def _numbers(place: str, wrong: Wrong) -> str:
    return f"{place} is {wrong.stored!r} and should be {wrong.exact!r}, {wrong.ulps:.3g} ulp away"
