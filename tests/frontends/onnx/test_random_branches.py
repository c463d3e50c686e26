"""Random branchy graphs: merging is never wrong, never costs more, and `merge=False` merges nothing.

A second fold of the result finds nothing.

A graph grows by branches of a few values (convolutions of random windows, strides, dilations, pads and groups,
averages, per-channel affines, identities), which are added up in random trees, concatenated or chained. Sizes are drawn
from few values, so that coincidences happen. Set BNFOLD_EXAMPLES to draw more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Fold, Merge, Outcome, Refusal
from tests.toys.onnx_branches import cost
from tests.toys.onnx_graphs import assert_settled, every_value

EXAMPLES = int(os.environ.get("BNFOLD_EXAMPLES", "400"))
TOLERANCE = 1e-9

Shape = tuple[int, ...]


def pick(random: np.random.Generator, options: list[Any]) -> Any:
    return options[int(random.integers(len(options)))]


@dataclass
class Builder:
    """A graph under construction; `outer` are values of the graph around it, which it may read."""

    random: np.random.Generator
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    outer: dict[str, Shape] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)

    def chance(self, one_in: int) -> bool:
        return int(self.random.integers(one_in)) == 0

    def known(self) -> dict[str, Shape]:
        return {**self.outer, **self.shapes}

    def constant(self, array: np.ndarray) -> str:
        same = [name for name, known in self.constants.items() if known.shape == array.shape]
        if same and self.chance(12):
            return pick(self.random, same)
        name = f"{self.prefix}k{len(self.constants)}"
        self.constants[name] = array
        return name

    def normal(self, *shape: int) -> str:
        array = self.random.standard_normal(shape)
        return self.constant(np.zeros(shape) if self.chance(10) else array)

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        name = f"{self.prefix}v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, inputs, [name], name=f"{self.prefix}{op}_{len(self.nodes)}", **attributes)
        )
        self.shapes[name] = shape
        for each in inputs:
            self.reads[each] = self.reads.get(each, 0) + 1
        return name


def channels_of(b: Builder, x: str) -> int:
    return b.known()[x][1]


def batchnorm(b: Builder, x: str) -> str:
    c = channels_of(b, x)
    var = f"{b.prefix}k{len(b.constants)}"
    b.constants[var] = b.random.random(c) + 0.5
    return b.add("BatchNormalization", [x, b.normal(c), b.normal(c), b.normal(c), var], b.known()[x])


def arithmetic(b: Builder, x: str) -> str:
    shape = b.known()[x]
    c, axes = shape[1], len(shape) - 2
    constant = b.normal(*pick(b.random, [(1, c, *[1] * axes), (c, *[1] * axes), (1,), (), (*[1] * axes,)]))
    op = pick(b.random, ["Mul", "Add", "Sub", "Add", "Neg"])
    if op == "Neg":
        return b.add("Neg", [x], shape)
    inputs = [x, constant]
    return b.add(op, inputs[:: pick(b.random, [1, -1])], shape)


def identity(b: Builder, x: str) -> str:
    return b.add(pick(b.random, ["Identity", "Dropout"]), [x], b.known()[x])


def rectifier(b: Builder, x: str) -> str:
    return b.add(pick(b.random, ["Relu", "Tanh"]), [x], b.known()[x])


def window_of(b: Builder, sizes: Shape, strides: list[int]) -> tuple[dict[str, Any], Shape] | None:
    """Attributes of a convolution or pool with these strides; mostly such that sizes stay, if strides are one."""
    taps, dilations, begins, ends, after = [], [], [], [], []
    odd = not b.chance(5)
    for size, stride in zip(sizes, strides, strict=True):
        k = pick(b.random, [1, 3, 3, 5] if odd else [1, 2, 3, 4])
        d = pick(b.random, [1, 1, 1, 2])
        reach = d * (k - 1)
        begin, end = (reach // 2, reach - reach // 2)
        if b.chance(6):
            begin, end = int(b.random.integers(3)), int(b.random.integers(3))
        elif b.chance(4):
            begin = end = 0
        if size + begin + end < reach + 1:
            return None
        taps.append(k)
        dilations.append(d)
        begins.append(begin)
        ends.append(end)
        after.append((size + begin + end - reach - 1) // stride + 1)
    attributes: dict[str, Any] = {"kernel_shape": taps, "strides": strides}
    auto = b.chance(8)
    if auto and set(dilations) == {1}:
        attributes["auto_pad"] = pick(b.random, ["SAME_UPPER", "SAME_LOWER", "VALID"])
        if attributes["auto_pad"] == "VALID":
            if any(size < k for size, k in zip(sizes, taps, strict=True)):
                return None
            after = [(size - k) // stride + 1 for size, k, stride in zip(sizes, taps, strides, strict=True)]
        else:
            after = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    else:
        attributes |= {"dilations": dilations, "pads": [*begins, *ends]}
    return attributes, tuple(after)


def convolution(b: Builder, x: str, strides: list[int], out: int, *, point: bool = False) -> str | None:
    n, c, *sizes = b.known()[x]
    found = window_of(b, tuple(sizes), strides)
    if point:
        found = (
            {"kernel_shape": [1] * len(sizes), "strides": strides},
            tuple((size - 1) // stride + 1 for size, stride in zip(sizes, strides, strict=True)),
        )
    if found is None:
        return None
    attributes, after = found
    divisors = [g for g in range(1, c + 1) if c % g == 0 and out % g == 0]
    groups = divisors[-1] if b.chance(4) else pick(b.random, divisors) if b.chance(3) else 1
    inputs = [x, b.normal(out, c // groups, *attributes["kernel_shape"])] + ([b.normal(out)] if b.chance(2) else [])
    return b.add("Conv", inputs, (n, out, *after), group=groups, **attributes)


def average(b: Builder, x: str, strides: list[int]) -> str | None:
    n, c, *sizes = b.known()[x]
    found = window_of(b, tuple(sizes), strides)
    if found is None or set(found[0].get("dilations", [1])) != {1}:
        return None
    attributes, after = found
    attributes.pop("dilations", None)
    if attributes.get("auto_pad", "").startswith("SAME"):
        return None
    padded = any(attributes.get("pads", [0]))
    if any(p >= k for p, k in zip(attributes.get("pads", []), attributes["kernel_shape"] * 2, strict=False)):
        return None
    # padded windows always count their zeros here: onnx.reference is wrong where they do not
    return b.add("AveragePool", [x], (n, c, *after), count_include_pad=int(padded or b.chance(2)), **attributes)


def branch(b: Builder, x: str, strides: list[int], out: int) -> str:
    """A path from `x` with one strided part at most."""
    end = x
    is_free = True
    left = 1 + int(b.random.integers(3))
    while left:
        left -= 1
        kind = int(b.random.integers(9))
        steps = strides if is_free else [1] * len(strides)
        width = pick(b.random, [out, 2, 1]) if left and b.chance(3) else out
        made: str | None = end
        if kind <= 2:
            made, is_free = convolution(b, end, steps, width), False
        elif kind == 3:
            made, is_free = convolution(b, end, steps, width, point=True), False
        elif kind == 4:
            made, is_free = average(b, end, steps), False
        elif kind == 5:
            made = batchnorm(b, end)
        elif kind == 6:
            made = arithmetic(b, end)
        elif kind == 7 and b.chance(2):
            made = identity(b, end)
        end = made or end
    return end


def matrix_branch(b: Builder, x: str, out: int) -> str:
    """A path of matrix products from `x`."""
    end = x
    for left in reversed(range(1 + int(b.random.integers(2)))):
        shape = b.known()[end]
        width = pick(b.random, [out, 2, 1]) if left and b.chance(3) else out
        kind = int(b.random.integers(5))
        if kind == 0:
            end = arithmetic_last(b, end)
        elif kind == 1 and len(shape) == 2:
            turned = b.chance(2)
            weight = b.normal(*((width, shape[1]) if turned else (shape[1], width)))
            inputs = [end, weight] + ([b.normal(*pick(b.random, [(width,), (1, width), (1,)]))] if b.chance(2) else [])
            alpha, beta = float(pick(b.random, [1.0, 0.5])), float(pick(b.random, [1.0, 2.0]))
            end = b.add("Gemm", inputs, (shape[0], width), transB=int(turned), alpha=alpha, beta=beta)
        elif kind == 2 and len(shape) == 2:
            end = batchnorm(b, end)
        else:
            end = b.add("MatMul", [end, b.normal(shape[-1], width)], (*shape[:-1], width))
            if b.chance(2):
                inputs = [end, b.normal(width)]
                end = b.add("Add", inputs[:: pick(b.random, [1, -1])], b.known()[end])
    return end


def arithmetic_last(b: Builder, x: str) -> str:
    shape = b.known()[x]
    inputs = [x, b.normal(shape[-1])]
    return b.add(pick(b.random, ["Mul", "Add", "Sub"]), inputs[:: pick(b.random, [1, -1])], shape)


def total(b: Builder, ends: list[str]) -> str:
    """A random tree of additions, with per-channel affines and identities between them."""
    left = list(ends)
    b.random.shuffle(left)
    while len(left) > 1:
        count = 2 if not b.chance(4) else int(b.random.integers(2, len(left) + 1))
        some, left = left[:count], left[count:]
        shape = tuple(np.broadcast_shapes(*(b.known()[each] for each in some)))
        op = "Sum" if count > 2 or b.chance(6) else pick(b.random, ["Add", "Sub"])
        made = b.add(op, some, shape)
        if b.chance(4):
            made = pick(b.random, [batchnorm, arithmetic, identity])(b, made)
        left.insert(int(b.random.integers(len(left) + 1)), made)
    return left[0]


def matches(one: Shape, other: Shape, *, axis: int | None = None) -> bool:
    return len(one) == len(other) and all(a == b or k == axis for k, (a, b) in enumerate(zip(one, other, strict=True)))


def block(b: Builder) -> None:
    """Branches of one value (now and then of another) that are added up or concatenated."""
    names = list(b.known())
    x = names[-1] if not b.chance(5) else pick(b.random, names)
    shape = b.known()[x]
    out = shape[1] if not b.chance(4) else pick(b.random, [2, 4])
    strides = [pick(b.random, [1, 1, 1, 2]) for _ in shape[2:]] if not b.chance(4) else [1] * (len(shape) - 2)
    ends: list[str] = []
    for _ in range(2 + int(b.random.integers(3))):
        start = (
            x if not b.chance(10) else pick(b.random, [name for name in b.known() if len(b.known()[name]) > 2] or [x])
        )
        if len(shape) > 3 or (len(shape) == 3 and b.prefix != "m"):
            ends.append(branch(b, start, strides, out))
        else:
            ends.append(matrix_branch(b, x, shape[-1] if not b.chance(4) else out))
        if b.chance(12):
            ends.append(rectifier(b, ends[-1]))
        if b.chance(15):
            ends.append(ends[-1])
    shapes = [b.known()[end] for end in ends]
    common = max(shapes, key=lambda each: sum(matches(each, other) for other in shapes))
    if b.chance(4):
        fitting = [end for end in ends if matches(b.known()[end], common, axis=1)]
        if len(fitting) > 1:
            count = sum(b.known()[end][1] for end in fitting)
            end = b.add("Concat", fitting, (common[0], count, *common[2:]), axis=pick(b.random, [1, 1 - len(common)]))
            if count > 6:
                end = convolution(b, end, [1] * (len(common) - 2), 4, point=True) if len(common) > 2 else end
            return
    fitting = [end for end in ends if matches(b.known()[end], common)]
    if b.chance(8):  # one that is broadcast
        fitting = [end for end in ends if broadcasts(b.known()[end], common)]
    made = total(b, fitting) if len(fitting) > 1 else fitting[0]
    if b.chance(3):
        made = rectifier(b, made)
    if b.chance(3):
        batchnorm(b, made)


def broadcasts(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(a in (1, b) for a, b in zip(one, other, strict=True))


def ends_of(b: Builder) -> list[str]:
    read = set(b.reads)
    found = [name for name in b.shapes if name not in read or b.chance(15)]
    return [name for name in found if name in b.shapes] or [identity(b, next(iter(b.known())))]


def choose(b: Builder) -> None:
    """An If whose branches hold branchy graphs of their own."""
    x = pick(b.random, list(b.known()))
    bodies = []
    for side in ("then", "else"):
        inner = Builder(b.random, prefix=f"{b.prefix}{side}{len(b.nodes)}_", outer=b.known())
        block(inner)
        last = list(inner.shapes)[-1] if inner.shapes else identity(inner, x)
        summed = inner.add("ReduceSum", [last], (), keepdims=0)
        bodies.append(
            helper.make_graph(
                inner.nodes,
                side,
                [],
                [helper.make_tensor_value_info(summed, TensorProto.DOUBLE, ())],
                [numpy_helper.from_array(array, name) for name, array in inner.constants.items()],
            )
        )
        for each in inner.nodes:
            for name in each.input:
                b.reads[name] = b.reads.get(name, 0) + 1
    flag = f"{b.prefix}flag{len(b.nodes)}"
    b.constants[flag] = np.asarray(bool(b.chance(2)))
    b.add("If", [flag], (), then_branch=bodies[0], else_branch=bodies[1])


def build(seed: int) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    b = Builder(random)
    c = pick(random, [2, 3, 4])
    sizes: Shape = pick(random, [(6, 7), (5, 5), (9,), (4, 3, 3), (6, 6), (), (13, 12), (21,)])
    if not sizes:
        b.prefix = "m"
    shape = (pick(random, [1, 2]), c, *sizes) if sizes or b.chance(2) else (2, 3, c)
    b.shapes["x"] = shape
    for _ in range(1 + int(random.integers(3))):
        block(b)
        if any(len(each) < 2 for each in b.shapes.values()):
            break
        if max(np.prod(each, dtype=int) for each in b.shapes.values()) > 4000:
            break
    if b.chance(5):
        choose(b)
    del b.shapes["x"]
    b.outer["x"] = shape
    outputs = ends_of(b)
    batch: int | str = "n" if b.chance(4) else shape[0]
    declared: list[int | str] = [batch, *shape[1:]]
    if b.chance(5) and len(sizes) > 1:
        declared = [batch, shape[1], "h", "w", *shape[4:]]
    is_static = declared == [*shape]

    def sizes_of(name: str) -> list[int | None]:
        return [size if is_static else None for size in b.shapes[name]]

    graph = helper.make_graph(
        b.nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, declared)],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, sizes_of(name)) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in b.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.metadata_props.add(key="shape", value=" ".join(map(str, shape)))
    return model


def shape_of(model: onnx.ModelProto) -> list[int]:
    """The shape of its input, where a note tells it: it may be declared with names."""
    return [int(size) for note in model.metadata_props if note.key == "shape" for size in note.value.split()]


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += all_nodes(attribute.g)
    return found


def check(model: onnx.ModelProto, *, merge: bool) -> tuple[onnx.ModelProto, tuple[Outcome, ...]]:
    """Fuse a model, and assert all that must hold whatever the model is."""
    before = model.SerializeToString()
    fused, outcomes = bnfold.fuse(model, return_outcomes=True, merge=merge)
    assert model.SerializeToString() == before
    onnx.checker.check_model(fused, full_check=True)
    assert list(fused.graph.output) == list(model.graph.output)
    norms = sorted(node.name for node in all_nodes(model.graph) if node.op_type == "BatchNormalization")
    assert (
        sorted(o.batchnorm for o in outcomes if isinstance(o, Refusal) or (isinstance(o, Fold) and o.is_batchnorm))
        == norms
    )
    kept = sorted(each.batchnorm for each in outcomes if isinstance(each, Refusal))
    assert sorted(n.name for n in all_nodes(fused.graph) if n.op_type == "BatchNormalization") == kept
    expected, actual = (every_value(each, shape_of(model)) for each in (model, fused))
    assert {out.name for out in model.graph.output} <= actual.keys()
    for name in expected.keys() & actual.keys():
        assert expected[name].shape == actual[name].shape, name
        size = max(1.0, float(np.abs(expected[name]).max(initial=0.0)))
        error = float(np.abs(expected[name] - actual[name]).max(initial=0.0)) / size
        assert error < TOLERANCE, f"{name} is off by {error:.1e}"
    assert_settled(fused, merge=merge)
    return fused, outcomes


def shares_kernels(model: onnx.ModelProto) -> bool:
    kernels = [node.input[1] for node in all_nodes(model.graph) if node.op_type in ("Conv", "MatMul", "Gemm")]
    return len(set(kernels)) < len(kernels)


def check_seed(seed: int) -> tuple[Outcome, ...]:
    model = build(seed)
    unmerged, plain = check(model, merge=False)
    assert not any(isinstance(each, Merge) for each in plain)
    fused, outcomes = check(model, merge=True)
    folded = sum(isinstance(each, Fold) and each.is_batchnorm for each in outcomes)
    assert folded >= sum(isinstance(each, Fold) and each.is_batchnorm for each in plain)
    before, without, after = cost(model), cost(unmerged), cost(fused)
    assert after[0] <= without[0], "multiplications"
    if not shares_kernels(model):  # a BatchNorm may cost a shared kernel a copy, merged or not
        assert after[1] <= max(before[1], without[1]), "bytes"
    assert len(all_nodes(fused.graph)) <= len(all_nodes(unmerged.graph)), "nodes"
    return outcomes


@pytest.mark.parametrize("part", range(4))
def test_random_branches_are_never_wrong(part: int) -> None:
    found: list[Outcome] = []
    for seed in range(part, EXAMPLES, 4):
        try:
            found.extend(check_seed(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    merges = [each for each in found if isinstance(each, Merge)]
    assert len(merges) >= EXAMPLES // 16
    assert any(each.through for each in merges)


HARD = {
    183: "a dead branch through another graph",
    1613: "a part of a sum beside an operand whose scale is zero",
    3130: "strided windows that end at one place for even sizes alone",
    5527: "an addition of two parts, both of which change",
    6655: "an image that changes along its columns",
    7265: "a dead merge behind a fold",
}


@pytest.mark.parametrize("seed", HARD, ids=list(HARD.values()))
def test_branches_that_were_hard(seed: int) -> None:
    """These were right, and not proved."""
    check_seed(seed)
