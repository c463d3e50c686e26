"""Pairs of models with a known truth: A, what a tool makes of it, and where each BatchNorm of A is then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from tests.toys.onnx_graphs import Array, model, node, norm, random, statistics

EPSILON = float(np.float32(1e-5))

Truth = dict[str, tuple[str, frozenset[str]]]
"""For the output of each BatchNorm of A: how it is done without, and the outputs of the nodes of B in its place."""


@dataclass(frozen=True)
class Pair:
    """A and B, and the truth about the BatchNorms of A."""

    one: onnx.ModelProto
    other: onnx.ModelProto
    truth: Truth


def truth(**entries: str) -> Truth:
    """``n="folded c"``: the BatchNorm that makes `n` went into the node that makes `c`."""
    return {name: (text.split()[0], frozenset(text.split()[1:])) for name, text in entries.items()}


def affine(constants: dict[str, Array], prefix: str = "") -> tuple[Array, Array]:
    """Scale and shift of a BatchNorm."""
    gamma, beta, mean, var = (constants[prefix + name].astype(np.float64) for name in ("gamma", "beta", "mean", "var"))
    scale = gamma / np.sqrt(var + EPSILON)
    return scale, beta - mean * scale


def rows(vector: Array, like: Array, axis: int = 0) -> Array:
    """A vector as factors of a kernel along one axis."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return vector.reshape(shape)


def made(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    shape: Sequence[int] = (1, 4, 8, 8),
    *,
    outputs: str = "y",
    dtype: type = np.float32,
) -> onnx.ModelProto:
    """A model in one type, with the constants that it reads."""
    read = {name for each in nodes for name in each.input}
    stored = {
        name: each.astype(dtype) if each.dtype.kind == "f" else each for name, each in constants.items() if name in read
    }
    return model(nodes, stored, shape, outputs=outputs, dtype=dtype)


def conv(x: str, w: str, y: str, bias: str = "", **attributes: object) -> onnx.NodeProto:
    return node("Conv", f"{x} {w} {bias}".strip(), y, **attributes)


K = random(4, 4, 3, 3, seed=1)
P = random(4, 4, 1, 1, seed=2)
B = random(4, seed=3)
PAD = {"pads": [1, 1, 1, 1]}


def upstream(statistic: dict[str, Array] | None = None, *, dtype: type = np.float32, has_bias: bool = True) -> Pair:
    """Conv, BatchNorm, Relu."""
    constants = {"w": K, "b": B} | (statistic or statistics(4))
    rounded = {name: each.astype(dtype).astype(np.float64) for name, each in constants.items()}
    scale, shift = affine(rounded)
    bias = rounded["b"] if has_bias else np.zeros(4)
    folded = {"w": rounded["w"] * rows(scale, K), "b": bias * scale + shift}
    nodes = [conv("x", "w", "c", "b" if has_bias else "", **PAD), norm("c", "n"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c", "b", **PAD), node("Relu", "c", "y")]
    return Pair(made(nodes, constants, dtype=dtype), made(after, folded, dtype=dtype), truth(n="folded c"))


def without_bias() -> Pair:
    return upstream(has_bias=False)


def half() -> Pair:
    return upstream(dtype=np.float16)


def negative_gamma() -> Pair:
    return upstream(statistics(4, sign=-1.0))


def zero_gamma() -> Pair:
    constants = statistics(4)
    return upstream(constants | {"gamma": constants["gamma"] * np.array([1.0, 0.0, 1.0, 0.0])})


def all_gamma_zero() -> Pair:
    constants = statistics(4)
    return upstream(constants | {"gamma": np.zeros(4)})


def three_layers() -> Pair:
    """Three blocks with kernels of one shape; the last is not folded."""
    constants: dict[str, Array] = {}
    nodes, after, value = [], [], "x"
    folded: dict[str, Array] = {}
    for index in range(3):
        own = {f"w{index}": random(4, 4, 3, 3, seed=10 + index)} | {
            f"s{index}_{name}": each + index / 8 for name, each in statistics(4).items()
        }
        constants |= own
        scale, shift = affine(own, f"s{index}_")
        is_last = index == 2
        folded |= own if is_last else {f"w{index}": own[f"w{index}"] * rows(scale, K), f"b{index}": shift}
        nodes += [conv(value, f"w{index}", f"c{index}", **PAD), norm(f"c{index}", f"n{index}", f"s{index}_")]
        after.append(conv(value, f"w{index}", f"c{index}", "" if is_last else f"b{index}", **PAD))
        after += [norm(f"c{index}", f"n{index}", f"s{index}_")] if is_last else []
        name = "y" if is_last else f"r{index}"
        nodes.append(node("Relu", f"n{index}", name))
        after.append(node("Relu", f"n{index}" if is_last else f"c{index}", name))
        value = f"r{index}"
    expected = truth(n0="folded c0", n1="folded c1", n2="kept n2")
    return Pair(made(nodes, constants), made(after, folded), expected)


def downstream() -> Pair:
    constants = {"w": K, "b": B} | statistics(4)
    scale, shift = affine(constants)
    folded = {"w": K * rows(scale, K, 1), "b": B + (K.sum(axis=(2, 3)) * shift).sum(axis=1)}
    nodes = [node("Relu", "x", "r"), norm("r", "n"), conv("n", "w", "c", "b"), node("Relu", "c", "y")]
    after = [node("Relu", "x", "r"), conv("r", "w", "c", "b"), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="folded c"))


def downstream_through_pooling() -> Pair:
    constants = {"w": P, "b": B} | statistics(4)
    scale, shift = affine(constants)
    folded = {"w": P * rows(scale, P, 1), "b": B + (P.sum(axis=(2, 3)) * shift).sum(axis=1)}
    pool = {"kernel_shape": [2, 2]}
    nodes = [
        node("Relu", "x", "r"),
        norm("r", "n"),
        node("AveragePool", "n", "p", **pool),
        conv("p", "w", "c", "b"),
        node("Relu", "c", "y"),
    ]
    after = [
        node("Relu", "x", "r"),
        node("AveragePool", "r", "p", **pool),
        conv("p", "w", "c", "b"),
        node("Relu", "c", "y"),
    ]
    return Pair(made(nodes, constants), made(after, folded), truth(n="folded c"))


def upstream_through_pooling() -> Pair:
    constants = {"w": K, "b": B} | statistics(4, sign=1.0)
    scale, shift = affine(constants)
    folded = {"w": K * rows(scale, K), "b": B * scale + shift}
    pool = {"kernel_shape": [2, 2]}
    nodes = [conv("x", "w", "c", "b"), node("MaxPool", "c", "p", **pool), norm("p", "n"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c", "b"), node("MaxPool", "c", "p", **pool), node("Relu", "p", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="folded c"))


def through_concat() -> Pair:
    """Two convolutions, their outputs joined, and one BatchNorm for both."""
    constants = {"w": K, "v": random(4, 4, 3, 3, seed=5)} | statistics(8)
    scale, shift = affine(constants)
    folded = {
        "w": K * rows(scale[:4], K),
        "v": constants["v"] * rows(scale[4:], K),
        "b": shift[:4],
        "d": shift[4:],
    }
    nodes = [
        conv("x", "w", "c"),
        conv("x", "v", "e"),
        node("Concat", "c e", "j", axis=1),
        norm("j", "n"),
        node("Relu", "n", "y"),
    ]
    after = [
        conv("x", "w", "c", "b"),
        conv("x", "v", "e", "d"),
        node("Concat", "c e", "j", axis=1),
        node("Relu", "j", "y"),
    ]
    return Pair(made(nodes, constants), made(after, folded), truth(n="folded c e"))


def on_both_sides() -> Pair:
    """A BatchNorm in front of a convolution and one behind it, both in its weights."""
    constants = {"w": K, "b": B} | statistics(4, "f_") | statistics(4, "behind_")
    first, offset = affine(constants, "f_")
    scale, shift = affine(constants, "behind_")
    bias = (B + (K.sum(axis=(2, 3)) * offset).sum(axis=1)) * scale + shift
    folded = {"w": K * rows(first, K, 1) * rows(scale, K), "b": bias}
    nodes = [
        node("Relu", "x", "r"),
        norm("r", "m", "f_"),
        conv("m", "w", "c", "b"),
        norm("c", "n", "behind_"),
        node("Relu", "n", "y"),
    ]
    after = [node("Relu", "x", "r"), conv("r", "w", "c", "b"), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(m="folded c", n="folded c"))


def two_in_a_row() -> Pair:
    constants = {"w": K} | statistics(4, "f_") | statistics(4, "behind_")
    first, offset = affine(constants, "f_")
    scale, shift = affine(constants, "behind_")
    folded = {"w": K * rows(first * scale, K), "b": offset * scale + shift}
    nodes = [conv("x", "w", "c"), norm("c", "m", "f_"), norm("m", "n", "behind_"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c", "b"), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(m="folded c", n="folded c"))


def one_of_two_in_a_row() -> Pair:
    """The first BatchNorm is in the weights, the second one is still there."""
    constants = {"w": K} | statistics(4, "f_") | statistics(4, "behind_")
    scale, shift = affine(constants, "f_")
    folded = constants | {"w": K * rows(scale, K), "b": shift}
    nodes = [conv("x", "w", "c"), norm("c", "m", "f_"), norm("m", "n", "behind_"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c", "b"), norm("c", "n", "behind_"), node("Relu", "n", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(m="folded c", n="kept n"))


def with_a_scale_behind() -> Pair:
    """A BatchNorm and a multiplication, both in the weights."""
    constants = {"w": K, "k": random(4, 1, 1, seed=9)} | statistics(4)
    scale, shift = affine(constants)
    factor = constants["k"].reshape(-1)
    folded = {"w": K * rows(scale * factor, K), "b": shift * factor}
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Mul", "n k", "m"), node("Relu", "m", "y")]
    after = [conv("x", "w", "c", "b"), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="folded c"))


def merged() -> Pair:
    """A block as in RepVGG, as one convolution."""
    constants = {"large": K, "small": P}
    for prefix in ("large_", "small_", "skip_"):
        constants |= statistics(4, prefix)
    nodes = [
        node("Conv", "x large", "a", **PAD),
        norm("a", "b", "large_"),
        node("Conv", "x small", "c"),
        norm("c", "d", "small_"),
        norm("x", "e", "skip_"),
        node("Add", "b d", "f"),
        node("Add", "f e", "g"),
        node("Relu", "g", "y"),
    ]
    maps = {prefix: affine(constants, prefix) for prefix in ("large_", "small_", "skip_")}
    kernel = K * rows(maps["large_"][0], K)
    kernel[:, :, 1:2, 1:2] += P * rows(maps["small_"][0], P)
    kernel[np.arange(4), np.arange(4), 1, 1] += maps["skip_"][0]
    folded = {"w": kernel, "bias": np.sum([shift for _, shift in maps.values()], axis=0)}
    after = [conv("x", "w", "z", "bias", **PAD), node("Relu", "z", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(b="merged z", d="merged z", e="merged z"))


def decomposed() -> Pair:
    constants = statistics(4)
    scale, shift = affine(constants)
    folded = {"s": scale.reshape(-1, 1, 1), "t": shift.reshape(-1, 1, 1)}
    nodes = [node("Relu", "x", "r"), norm("r", "n"), node("Sigmoid", "n", "y")]
    after = [
        node("Relu", "x", "r"),
        node("Mul", "r s", "m"),
        node("Add", "m t", "n"),
        node("Sigmoid", "n", "y"),
    ]
    return Pair(made(nodes, constants), made(after, folded), truth(n="decomposed m n"))


def decomposed_with_the_mean() -> Pair:
    constants = statistics(4)
    scale, _ = affine(constants)
    folded = {"u": constants["mean"], "s": scale, "t": constants["beta"]}
    folded = {name: each.reshape(-1, 1, 1) for name, each in folded.items()}
    nodes = [node("Relu", "x", "r"), norm("r", "n"), node("Sigmoid", "n", "y")]
    after = [
        node("Relu", "x", "r"),
        node("Sub", "r u", "l"),
        node("Mul", "l s", "m"),
        node("Add", "m t", "n"),
        node("Sigmoid", "n", "y"),
    ]
    return Pair(made(nodes, constants), made(after, folded), truth(n="decomposed l m n"))


def scale_folded_and_shift_added() -> Pair:
    """The scale is in the weights, and the shift is an addition."""
    constants = {"w": K} | statistics(4)
    scale, shift = affine(constants)
    folded = {"w": K * rows(scale, K), "t": shift.reshape(-1, 1, 1)}
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Sigmoid", "n", "y")]
    after = [conv("x", "w", "c"), node("Add", "c t", "n"), node("Sigmoid", "n", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="folded c n"))


def depthwise() -> Pair:
    constants = statistics(4)
    scale, shift = affine(constants)
    folded = {"k": scale.reshape(-1, 1, 1, 1), "t": shift}
    nodes = [node("Relu", "x", "r"), norm("r", "n"), node("Sigmoid", "n", "y")]
    after = [node("Relu", "x", "r"), conv("r", "k", "n", "t", group=4), node("Sigmoid", "n", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="depthwise n"))


def into_a_depthwise_convolution() -> Pair:
    """A depthwise convolution of one tap, which is a per-channel affine itself, takes the BatchNorm in."""
    constants = {"k": random(4, 1, 1, 1, seed=6), "b": B} | statistics(4)
    scale, shift = affine(constants)
    folded = {"k": constants["k"] * rows(scale, constants["k"]), "b": B * scale + shift}
    nodes = [node("Relu", "x", "r"), conv("r", "k", "c", "b", group=4), norm("c", "n"), node("Sigmoid", "n", "y")]
    after = [node("Relu", "x", "r"), conv("r", "k", "c", "b", group=4), node("Sigmoid", "c", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="folded c"))


def trained_on() -> Pair:
    """The same graph with other weights and statistics."""
    constants = {"w": K} | statistics(4)
    changed = {name: each + 0.1 * np.abs(each) for name, each in constants.items()}
    changed["w"] = K + 0.1 * random(4, 4, 3, 3, seed=8)
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Relu", "n", "y")]
    return Pair(made(nodes, constants), made(nodes, changed), truth(n="kept n"))


def of_a_constant() -> Pair:
    constants = {"k": random(1, 4, 8, 8, seed=7)} | statistics(4)
    scale, shift = affine(constants)
    folded = {"k": constants["k"] * rows(scale, constants["k"], 1) + rows(shift, constants["k"], 1)}
    nodes = [norm("k", "n"), node("Relu", "x", "r"), node("Mul", "r n", "m"), node("Sigmoid", "m", "y")]
    after = [node("Relu", "x", "r"), node("Mul", "r k", "m"), node("Sigmoid", "m", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="constant m"))


def unread() -> Pair:
    constants = {"w": K} | statistics(4)
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Relu", "n", "r"), node("Sigmoid", "c", "y")]
    after = [conv("x", "w", "c"), node("Sigmoid", "c", "y")]
    return Pair(made(nodes, constants), made(after, constants), truth(n="unread"))


def of_a_shared_kernel() -> Pair:
    """Two convolutions of one kernel, each with a BatchNorm of its own."""
    constants = {"w": K} | statistics(4, "f_") | statistics(4, "behind_")
    maps = [affine(constants, prefix) for prefix in ("f_", "behind_")]
    folded = {"w": K * rows(maps[0][0], K), "b": maps[0][1], "v": K * rows(maps[1][0], K), "d": maps[1][1]}
    nodes = [
        conv("x", "w", "c"),
        norm("c", "m", "f_"),
        conv("x", "w", "e"),
        norm("e", "n", "behind_"),
        node("Relu", "m", "y"),
        node("Relu", "n", "z"),
    ]
    after = [conv("x", "w", "c", "b"), conv("x", "v", "e", "d"), node("Relu", "c", "y"), node("Relu", "e", "z")]
    models = made(nodes, constants, outputs="y z"), made(after, folded, outputs="y z")
    return Pair(*models, truth(m="folded c", n="folded e"))


def identity() -> Pair:
    """A BatchNorm that changes nothing, and is gone."""
    constants = {"w": K} | statistics(4)
    constants |= {"gamma": np.sqrt(constants["var"] + EPSILON), "beta": constants["mean"]}
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c"), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, constants), truth(n="identity"))


def nearly_identity() -> Pair:
    """A BatchNorm that is gone, and made a difference of some last digits of float16: too much to be none."""
    constants = {"w": K} | statistics(4)
    constants |= {"gamma": np.sqrt(constants["var"] + EPSILON) * 1.008, "beta": constants["mean"] * 1.008}
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c"), node("Relu", "c", "y")]
    models = made(nodes, constants, dtype=np.float16), made(after, constants, dtype=np.float16)
    return Pair(*models, truth(n="unknown"))


def still_read_elsewhere() -> Pair:
    """A BatchNorm in the weights of one of its readers, and still there for the other."""
    constants = {"w": K} | statistics(4)
    scale, shift = affine(constants)
    folded = constants | {"w": K * rows(scale, K, 1), "b": (K.sum(axis=(2, 3)) * shift).sum(axis=1)}
    nodes = [
        node("Relu", "x", "r"),
        norm("r", "n"),
        conv("n", "w", "c"),
        node("Sigmoid", "c", "y"),
        node("Relu", "n", "z"),
    ]
    after = [
        node("Relu", "x", "r"),
        norm("r", "n"),
        conv("r", "w", "c", "b"),
        node("Sigmoid", "c", "y"),
        node("Relu", "n", "z"),
    ]
    models = made(nodes, constants, outputs="y z"), made(after, folded, outputs="y z")
    return Pair(*models, truth(n="kept n c"))


def behind_a_join_of_one() -> Pair:
    """A Concat of one value, as DenseNet begins its blocks, which tools take out."""
    constants = {"w": K} | statistics(4)
    nodes = [
        conv("x", "w", "c"),
        node("Relu", "c", "r"),
        node("Concat", "r", "j", axis=1),
        norm("j", "n"),
        node("Sigmoid", "n", "y"),
    ]
    after = [conv("x", "w", "c"), node("Relu", "c", "r"), norm("r", "n"), node("Sigmoid", "n", "y")]
    return Pair(made(nodes, constants), made(after, constants), truth(n="kept n"))


def product() -> Pair:
    """A product and its BatchNorm, as a product and an addition."""
    constants = {"w": random(4, 4, seed=4)} | statistics(4)
    scale, shift = affine(constants)
    folded = {"w": constants["w"] * scale, "b": shift}
    nodes = [node("MatMul", "x w", "c"), norm("c", "n"), node("Relu", "n", "y")]
    after = [node("MatMul", "x w", "c"), node("Add", "c b", "n"), node("Relu", "n", "y")]
    return Pair(made(nodes, constants, (3, 4)), made(after, folded, (3, 4)), truth(n="folded n"))


def product_as_gemm() -> Pair:
    """A product, its bias and its BatchNorm, as one Gemm with the transposed weight."""
    constants = {"w": random(4, 4, seed=4), "b": B} | statistics(4)
    scale, shift = affine(constants)
    folded = {"w": (constants["w"] * scale).T, "b": B * scale + shift}
    nodes = [node("MatMul", "x w", "c"), node("Add", "c b", "a"), norm("a", "n"), node("Relu", "n", "y")]
    after = [node("Gemm", "x w b", "g", transB=1), node("Relu", "g", "y")]
    return Pair(made(nodes, constants, (3, 4)), made(after, folded, (3, 4)), truth(n="folded g"))


def transposed() -> Pair:
    constants = {"w": random(4, 2, 3, 3, seed=4)} | statistics(4)
    scale, shift = affine(constants)
    kernel = constants["w"].reshape(2, 2, 2, 3, 3) * scale.reshape(2, 1, 2, 1, 1)
    folded = {"w": kernel.reshape(4, 2, 3, 3), "b": shift}
    nodes = [node("ConvTranspose", "x w", "c", group=2), norm("c", "n"), node("Relu", "n", "y")]
    after = [node("ConvTranspose", "x w b", "c", group=2), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="folded c"))


def read_twice() -> Pair:
    """A BatchNorm in front of two convolutions, in the weights of both."""
    constants = {"w": K, "v": random(4, 4, 3, 3, seed=5)} | statistics(4)
    scale, shift = affine(constants)
    folded = {
        "w": K * rows(scale, K, 1),
        "b": (K.sum(axis=(2, 3)) * shift).sum(axis=1),
        "v": constants["v"] * rows(scale, K, 1),
        "d": (constants["v"].sum(axis=(2, 3)) * shift).sum(axis=1),
    }
    nodes = [
        node("Relu", "x", "r"),
        norm("r", "n"),
        conv("n", "w", "c"),
        conv("n", "v", "e"),
        node("Sigmoid", "c", "y"),
        node("Relu", "e", "z"),
    ]
    after = [
        node("Relu", "x", "r"),
        conv("r", "w", "c", "b"),
        conv("r", "v", "e", "d"),
        node("Sigmoid", "c", "y"),
        node("Relu", "e", "z"),
    ]
    models = made(nodes, constants, outputs="y z"), made(after, folded, outputs="y z")
    return Pair(*models, truth(n="folded c e"))


def left_out() -> Pair:
    """A tool that lost the BatchNorm: it is nowhere."""
    constants = {"w": K} | statistics(4)
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c"), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, constants), truth(n="unknown"))


def folded_wrongly() -> Pair:
    """A tool that took the variance for the deviation."""
    constants = {"w": K} | statistics(4)
    scale = constants["gamma"] / (constants["var"] + EPSILON)
    folded = {"w": K * rows(scale, K), "b": constants["beta"] - constants["mean"] * scale}
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c", "b"), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, folded), truth(n="unknown"))


def without_the_shift() -> Pair:
    """A tool that folded the scale, and forgot the shift."""
    constants = {"w": K} | statistics(4)
    scale, _ = affine(constants)
    nodes = [conv("x", "w", "c"), norm("c", "n"), node("Relu", "n", "y")]
    after = [conv("x", "w", "c"), node("Relu", "c", "y")]
    return Pair(made(nodes, constants), made(after, {"w": K * rows(scale, K)}), truth(n="unknown"))


def folded_into_another() -> Pair:
    """A tool that exchanged the BatchNorms of two branches."""
    pair = of_a_shared_kernel()
    exchanged = onnx.ModelProto()
    exchanged.CopyFrom(pair.other)
    readers = [each for each in exchanged.graph.node if each.op_type == "Relu"]
    readers[0].input[0], readers[1].input[0] = readers[1].input[0], readers[0].input[0]
    return Pair(pair.one, exchanged, truth(m="folded c", n="folded e"))


PAIRS: dict[str, Callable[[], Pair]] = {
    each.__name__: each
    for each in (
        upstream,
        without_bias,
        half,
        negative_gamma,
        zero_gamma,
        all_gamma_zero,
        three_layers,
        downstream,
        downstream_through_pooling,
        upstream_through_pooling,
        through_concat,
        on_both_sides,
        two_in_a_row,
        one_of_two_in_a_row,
        with_a_scale_behind,
        merged,
        decomposed,
        decomposed_with_the_mean,
        scale_folded_and_shift_added,
        depthwise,
        into_a_depthwise_convolution,
        trained_on,
        of_a_constant,
        unread,
        of_a_shared_kernel,
        identity,
        nearly_identity,
        still_read_elsewhere,
        behind_a_join_of_one,
        product,
        product_as_gemm,
        transposed,
        read_twice,
        left_out,
        folded_wrongly,
        without_the_shift,
    )
}


def keep_names(proto: onnx.ModelProto) -> dict[str, str]:
    """All names as they are."""
    return {}


def rename(proto: onnx.ModelProto) -> dict[str, str]:
    """Other names for all nodes, weights and inner values."""
    return _renamed(proto, lambda index, name: f"v{index}", lambda index, name: f"node_{index}")


def drop_names(proto: onnx.ModelProto) -> dict[str, str]:
    """Nodes without names, weights and values with numbers for names."""
    return _renamed(proto, lambda index, name: str(100 + index), lambda index, name: "")


def exchange_names(proto: onnx.ModelProto) -> dict[str, str]:
    """The names of nodes in the opposite order, so that they mislead; values get other names."""
    names = [each.name for each in proto.graph.node][::-1]
    return _renamed(proto, lambda index, name: f"v{index}", lambda index, name: names[index])


NAMINGS = {each.__name__: each for each in (keep_names, rename, drop_names, exchange_names)}


def _renamed(
    proto: onnx.ModelProto, value: Callable[[int, str], str], title: Callable[[int, str], str]
) -> dict[str, str]:
    graph = proto.graph
    fixed = {each.name for each in (*graph.input, *graph.output)}
    names: dict[str, str] = {}
    for each in graph.initializer:
        names.setdefault(each.name, value(len(names), each.name))
        each.name = names[each.name]
    for index, each in enumerate(graph.node):
        each.name = title(index, each.name)
        for field in (each.input, each.output):
            for place, name in enumerate(field):
                if name and name not in fixed:
                    field[place] = names.setdefault(name, value(len(names), name))
    del graph.value_info[:]
    return names
