"""Random graphs: never wrong, one outcome for each BatchNorm, valid, and the same interface.

Sizes are small and drawn from few values, so that coincidences happen (channels equal to height equal to batch).
Set BNFOLD_EXAMPLES to draw more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Outcome, Refusal
from tests.toys.onnx_graphs import assert_settled, every_value

EXAMPLES = int(os.environ.get("BNFOLD_EXAMPLES", "2000"))
TOLERANCE = 1e-10

Draw = Callable[..., int]


@dataclass
class Builder:
    """A graph under construction, and how its next choice is drawn."""

    draw: Draw
    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def choose(self, options: list) -> object:
        return options[self.draw(len(options))]

    def value(self, fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> str | None:
        names = [name for name, shape in self.shapes.items() if fits(shape)]
        return names[-1 - (self.draw(len(names)) if self.draw(5) == 4 else 0)] if names else None

    def constant(self, array: np.ndarray, *, is_variance: bool = False) -> str:
        same = [
            name for name, known in self.constants.items() if known.shape == array.shape and known.dtype == array.dtype
        ]
        if same and array.dtype == np.float64 and not is_variance and self.draw(4) == 0:
            return same[0]  # shared
        name = f"k{len(self.constants)}"
        self.constants[name] = array
        return name

    def normal(self, *shape: int) -> str:
        array = self.random.standard_normal(shape)
        if self.draw(3) == 0:
            array = np.abs(array)
        return self.constant(array)

    def integers(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> str:
        name = f"v{len(self.shapes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        self.shapes[name] = shape
        return name


def images(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4


def batchnorm(b: Builder) -> None:
    if x := b.value(lambda shape: len(shape) >= 2):
        c = b.shapes[x][1]
        beta = b.constant(np.zeros(c)) if b.draw(3) == 0 else b.normal(c)
        mean = b.constant(np.zeros(c)) if b.draw(3) == 0 else b.normal(c)
        var = b.constant(b.random.random(c) + 0.5, is_variance=True)
        b.add("BatchNormalization", [x, b.normal(c), beta, mean, var], b.shapes[x])


def conv(b: Builder) -> None:
    if x := b.value(images):
        n, c, h, w = b.shapes[x]
        k, p = b.choose([(1, 0), (3, 1), (2, 0), (3, 0)])  # type: ignore[misc]
        if h + 2 * p < k or w + 2 * p < k:
            return
        groups = c if b.draw(4) == 0 else 1
        out = groups * (1 + b.draw(2)) if groups > 1 else 2 + b.draw(2)
        inputs = [x, b.normal(out, c // groups, k, k)] + ([b.normal(out)] if b.draw(2) else [])
        b.add("Conv", inputs, (n, out, h + 2 * p - k + 1, w + 2 * p - k + 1), group=groups, pads=[p] * 4)


def conv_transpose(b: Builder) -> None:
    if x := b.value(images):
        n, c, h, w = b.shapes[x]
        if max(h, w) > 4:
            return
        # one group: onnx.reference is wrong, or fails, with more
        b.add("ConvTranspose", [x, b.normal(c, 2, 2, 2)], (n, 2, h + 1, w + 1))


def matmul(b: Builder) -> None:
    if x := b.value(lambda shape: len(shape) >= 2):
        shape, out = b.shapes[x], 2 + b.draw(2)
        if b.draw(4) == 0:
            y = b.add("MatMul", [b.normal(out, shape[-2]), x], (*shape[:-2], out, shape[-1]))
        else:
            y = b.add("MatMul", [x, b.normal(shape[-1], out)], (*shape[:-1], out))
        if b.draw(2):
            length = b.shapes[y][-1]
            inputs = [y, b.normal(length)]
            b.add("Add", inputs[::-1] if b.draw(2) else inputs, b.shapes[y])


def gemm(b: Builder) -> None:
    if x := b.value(lambda shape: len(shape) == 2):
        (rows, fan_in), out = b.shapes[x], 2 + b.draw(2)
        transposed = b.draw(2)
        weight = b.normal(out, fan_in) if transposed else b.normal(fan_in, out)
        bias: list[str] = [[], [b.normal(out)], [b.normal(1)], [b.normal(rows, 1)]][b.draw(4)]
        b.add("Gemm", [x, weight, *bias], (rows, out), transB=transposed, alpha=0.5 + b.draw(2), beta=2.0)


def arithmetic(b: Builder) -> None:
    if x := b.value():
        shape = b.shapes[x]
        axis = b.draw(len(shape))
        sizes = [size if k == axis else 1 for k, size in enumerate(shape)]
        sizes = [[], sizes[axis:], sizes, list(shape)][b.draw(4)]
        constant = b.normal(*sizes)
        op = b.choose(["Mul", "Add", "Sub", "Div"])
        inputs = [x, constant] if b.draw(2) or op == "Div" else [constant, x]
        b.add(str(op), inputs, shape)


def add(b: Builder) -> None:
    if x := b.value():
        shape = b.shapes[x]
        other = b.value(lambda each: each == shape or (len(each) == len(shape) == 4 and each == (*shape[:2], 1, 1)))
        if other:
            b.add(str(b.choose(["Add", "Sub", "Sum"])), [x, other], shape)


def concat(b: Builder) -> None:
    if x := b.value():
        shape = b.shapes[x]
        axis = b.draw(len(shape))
        rest = (shape[:axis], shape[axis + 1 :])
        other = b.value(lambda each: len(each) == len(shape) and (each[:axis], each[axis + 1 :]) == rest)
        assert other is not None
        total = shape[axis] + b.shapes[other][axis]
        b.add("Concat", [x, other], (*shape[:axis], total, *shape[axis + 1 :]), axis=axis)


def activation(b: Builder) -> None:
    if x := b.value():
        b.add(str(b.choose(["Relu", "LeakyRelu", "Identity", "Sigmoid"])), [x], b.shapes[x])


def transpose(b: Builder) -> None:
    if x := b.value():
        order = list(b.random.permutation(len(b.shapes[x])))
        b.add("Transpose", [x], tuple(b.shapes[x][k] for k in order), perm=[int(k) for k in order])


def reshape(b: Builder) -> None:
    if x := b.value():
        shape = b.shapes[x]
        kind = b.draw(4)
        if kind == 0:
            axis = b.draw(len(shape) + 1)
            after = (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
            b.add("Flatten", [x], after, axis=axis)
            return
        if kind == 1 and len(shape) > 2:
            axis = b.draw(len(shape) - 1)
            after = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
        elif kind == 2 and len(shape) < 5:
            axis = b.draw(len(shape))
            factor = next((k for k in (2, 3) if shape[axis] % k == 0), 1)
            parts = (factor, shape[axis] // factor)
            after = (*shape[:axis], *(parts if b.draw(2) else parts[::-1]), *shape[axis + 1 :])
        else:
            after = tuple(shape[k] for k in b.random.permutation(len(shape)))
        b.add("Reshape", [x, b.integers(*after)], after)


def pool(b: Builder) -> None:
    if x := b.value(lambda shape: images(shape) and min(shape[2:]) >= 2):
        n, c, h, w = b.shapes[x]
        kind = b.draw(4)
        if kind == 0:
            b.add("GlobalAveragePool", [x], (n, c, 1, 1))
        elif kind == 1:
            b.add("MaxPool", [x], (n, c, h - 1, w - 1), kernel_shape=[2, 2])
        elif kind == 2:
            b.add("AveragePool", [x], (n, c, h, w), kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1)
        else:  # unpadded: onnx.reference makes NaN of some padded windows that do not count the padding
            b.add("AveragePool", [x], (n, c, h - 1, w - 1), kernel_shape=[2, 2])


def reduce(b: Builder) -> None:
    if x := b.value(lambda shape: len(shape) >= 3):
        shape = b.shapes[x]
        axis, keep = b.draw(len(shape)), b.draw(2)
        after = (*shape[:axis], *([1] if keep else []), *shape[axis + 1 :])
        op = str(b.choose(["ReduceMean", "ReduceMax"]))
        b.add(op, [x, b.integers(axis)], after, keepdims=keep)


def cut(b: Builder) -> None:
    if x := b.value():
        shape = b.shapes[x]
        axis = b.draw(len(shape))
        kind = b.draw(3)
        if kind == 0:
            index = [b.draw(shape[axis]) for _ in range(2)]
            b.add("Gather", [x, b.integers(*index)], (*shape[:axis], 2, *shape[axis + 1 :]), axis=axis)
        elif kind == 1:
            inputs = [x, b.integers(shape[axis] - 1), b.integers(-shape[axis] - 1), b.integers(axis), b.integers(-1)]
            b.add("Slice", inputs, shape)
        elif shape[axis] >= 2:
            first, second = f"v{len(b.shapes)}", f"v{len(b.shapes) + 1}"
            sizes = (1, shape[axis] - 1)
            inputs = [x, b.integers(*sizes)]
            b.nodes.append(helper.make_node("Split", inputs, [first, second], name=f"Split_{len(b.nodes)}", axis=axis))
            for name, size in zip((first, second), sizes, strict=True):
                b.shapes[name] = (*shape[:axis], size, *shape[axis + 1 :])


def pad(b: Builder) -> None:
    if x := b.value(lambda shape: images(shape) and min(shape[2:]) >= 2):
        n, c, h, w = b.shapes[x]
        mode = str(b.choose(["reflect", "edge", "constant"]))
        b.add("Pad", [x, b.integers(0, 0, 1, 0, 0, 0, 0, 1)], (n, c, h + 1, w + 1), mode=mode)


def shuffle(b: Builder) -> None:
    if x := b.value(lambda shape: images(shape) and shape[1] % 4 == 0):
        n, c, h, w = b.shapes[x]
        mode = str(b.choose(["DCR", "CRD"]))
        b.add("DepthToSpace", [x], (n, c // 4, 2 * h, 2 * w), blocksize=2, mode=mode)
    elif x := b.value(lambda shape: images(shape) and shape[2] % 2 == shape[3] % 2 == 0):
        n, c, h, w = b.shapes[x]
        b.add("SpaceToDepth", [x], (n, 4 * c, h // 2, w // 2), blocksize=2)


def expand(b: Builder) -> None:
    if x := b.value(lambda shape: 1 in shape):
        after = tuple(3 if size == 1 else size for size in b.shapes[x])
        b.add("Expand", [x, b.integers(*after)], after)


def select(b: Builder) -> None:
    if x := b.value():
        shape = b.shapes[x]
        mask = b.constant(b.random.random(shape[b.draw(len(shape)) :]) < 0.5)
        axis = b.draw(len(shape))
        sizes = [size if k == axis else 1 for k, size in enumerate(shape)]
        other = (
            b.value(lambda each: each == shape) if b.draw(3) == 0 else b.normal(*[[], sizes, list(shape)][b.draw(3)])
        )
        assert other is not None
        b.add("Where", [mask, x, other] if b.draw(2) else [mask, other, x], shape)


def einsum(b: Builder) -> None:
    if x := b.value(lambda shape: len(shape) >= 2):
        shape, out = b.shapes[x], 2 + b.draw(2)
        letters = "abcdef"[: len(shape)]
        axis = b.draw(len(shape))
        sizes = {**dict(zip(letters, shape, strict=True)), "z": out}
        result = letters.replace(letters[axis], "z")
        if b.draw(3) == 0:
            result = "".join(result[k] for k in b.random.permutation(len(result)))
        kernel = [f"{letters[axis]}z", f"z{letters[axis]}"][b.draw(2)]
        terms = [(x, letters), (b.normal(*(sizes[letter] for letter in kernel)), kernel)][:: 1 if b.draw(2) else -1]
        equation = f"{terms[0][1]},{terms[1][1]}->{result}"
        b.add("Einsum", [terms[0][0], terms[1][0]], tuple(sizes[letter] for letter in result), equation=equation)


STEPS = [batchnorm, conv, batchnorm, arithmetic, add, concat, activation, transpose, reshape, pool, reduce, cut, pad]
STEPS += [matmul, gemm, conv_transpose, shuffle, expand, select, einsum, batchnorm]


def build(draw: Draw, seed: int, steps: Sequence[Callable[[Builder], None]] = STEPS) -> onnx.ModelProto:
    b = Builder(draw, np.random.default_rng(seed))
    sizes = [2, 3, 4]
    shape = (sizes[draw(3)], sizes[draw(3)], sizes[draw(3)], sizes[draw(3)])
    b.shapes["x"] = shape
    for _ in range(2 + draw(9)):
        steps[draw(len(steps))](b)
        if max(np.prod(each) for each in b.shapes.values()) > 5000:
            break
    read = {name for node in b.nodes for name in node.input}
    made = [name for node in b.nodes for name in node.output]
    outputs = [name for name in made if name not in read or draw(12) == 0] or ["x"]
    if outputs == ["x"]:
        outputs = [b.add("Identity", ["x"], shape)]
    graph = helper.make_graph(
        b.nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape)],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, b.shapes[name]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in b.constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def check(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Outcome, ...]]:
    """Fuse a model, and assert all that must hold whatever the model is."""
    before = model.SerializeToString()
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)
    assert model.SerializeToString() == before
    onnx.checker.check_model(fused, full_check=True)
    assert list(fused.graph.input) == list(model.graph.input)
    assert list(fused.graph.output) == list(model.graph.output)
    norms = [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]
    named = [each.batchnorm for each in outcomes if isinstance(each, Refusal) or each.is_batchnorm]
    assert named == norms
    kept = {each.batchnorm for each in outcomes if isinstance(each, Refusal)}
    assert {node.name for node in fused.graph.node if node.op_type == "BatchNormalization"} == kept
    assert len(fused.graph.node) <= len(model.graph.node)
    expected, actual = every_value(model), every_value(fused)
    for name in expected.keys() & actual.keys():
        finite = np.isfinite(expected[name])  # a constant that divides may be zero
        assert np.array_equal(expected[name][~finite], actual[name][~finite], equal_nan=True)
        size = max(1.0, float(np.abs(expected[name][finite]).max(initial=0.0)))
        error = float(np.abs(expected[name][finite] - actual[name][finite]).max(initial=0.0)) / size
        assert error < TOLERANCE, f"{name} is off by {error:.1e}"
    assert_settled(fused)
    return fused, outcomes


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(st.data(), st.integers(0, 2**16))
def test_random_graphs_are_never_wrong(data: st.DataObject, seed: int) -> None:
    model = build(lambda count: data.draw(st.integers(0, count - 1)), seed)
    note(onnx.printer.to_text(model))
    check(model)
    assert_settled(bnfold.fuse(model, merge=False), merge=False)


def test_random_graphs_fold_often() -> None:
    """The graphs are not so odd that nothing in them ever folds."""
    found: list[Outcome] = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        found.extend(check(build(lambda count, random=random: int(random.integers(count)), seed))[1])
    folds = [each for each in found if isinstance(each, Fold)]
    assert sum(each.is_batchnorm for each in folds) >= 40
    assert {each.direction for each in folds} == {"upstream", "downstream"}
    assert sum(bool(each.through) for each in folds) >= 15
