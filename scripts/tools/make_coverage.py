"""Writes docs/coverage.md: what folds through what, and what becomes one operator, asked of the rules themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np

from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Border, Factor, Linear, Window
from bnfold.frontends.onnx.operators import read_carry, read_linear
from bnfold.frontends.torch.operators.table import OPERATORS
from bnfold.graph.ops import (
    Average,
    Broadcast,
    Concat,
    Identity,
    Lookup,
    Maximum,
    Op,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Product,
    Rectifier,
    Reshape,
    Select,
    Split,
    Sum,
    Take,
    Transpose,
)
from bnfold.graph.outcome import Stop
from bnfold.planning.merging.rule import Branch, chain, merge, per_channel, stack
from bnfold.planning.rules import pull, push

TARGET = Path(__file__).parents[2] / "docs" / "coverage.md"

CHANNELS = 4
SPACE = frozenset({2, 3})
IMAGE = ("N", CHANNELS, 6, 6)

# What is asked: an operator on a batch of images with four channels on axis 1, and what to call it.
EXAMPLES: list[tuple[str, Op]] = [
    ("along the channels", Concat(1, (CHANNELS,))),
    ("along another axis", Concat(2, (6, 6))),
    ("along the channels", Split(1, (CHANNELS,))),
    ("along another axis", Split(2, (3, 3))),
    ("of all channels, in another order", Take(1, np.arange(CHANNELS)[::-1], CHANNELS)),
    ("of positions", Take(2, np.arange(3), 6)),
    ("", Transpose((0, 2, 3, 1))),
    ("that keeps the channel axis", Reshape(IMAGE, ("N", CHANNELS, 36))),
    ("that flattens the channels with the positions behind them", Reshape(IMAGE, ("N", 144))),
    ("", PixelShuffle(1, CHANNELS, channel_first=False)),
    ("", PixelUnshuffle(1, CHANNELS, channel_first=False)),
    ("over positions", Average(SPACE)),
    ("over positions, counting padding zeros or adding up", Average(SPACE, sums_to_one=False)),
    ("over channels", Average(frozenset({1}))),
    ("of two computed matrices, along rows of the first or columns of the second", Product((3, 3))),
    ("over positions", Maximum(SPACE)),
    ("with copies of the data (reflect, edge, wrap)", Pad(SPACE, None)),
    ("with zeros", Pad(SPACE, 0.0)),
    ("of the positions", Broadcast(SPACE)),
    ("of the channels", Broadcast(frozenset({1}))),
    ("of computed values of one shape", Sum((1, 1), (IMAGE, IMAGE), (1.0, 0.0))),
    ("with an operand that is broadcast along the channels", Sum((1, 1), (IMAGE, ("N", 1, 6, 6)), (1.0, 0.0))),
    ("of a computed value and a constant", Sum((1, 1), (IMAGE, IMAGE), (0.0, 1.0), constants=frozenset({1}))),
    ("between computed values of one shape", Select((IMAGE, IMAGE), 4)),
    ("between a computed value and a constant", Select((IMAGE, (1, 1, 1, 1)), 4, frozenset({1}))),
    ("of rows of a constant table, which absorbs it", Lookup(0, 1)),
    ("", Identity()),
    ("", Rectifier()),
]

KINDS: dict[str, Affine] = {
    "scale and shift": Affine.of([2.0, -3.0, 0.5, 1.0], [1.0, 2.0, 3.0, 4.0]),
    "positive scale and shift": Affine.of([2.0, 3.0, 0.5, 1.0], [1.0, 2.0, 3.0, 4.0]),
    "scale": Affine.of([2.0, -3.0, 0.5, 1.0], 0.0),
    "positive scale": Affine.of([2.0, 3.0, 0.5, 1.0], 0.0),
    "the same scale and shift in all channels": Affine.of([2.0] * CHANNELS, 1.0),
}


POINT = Window.point(2)
SQUARE = Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (None, None))
STRIDED = Window((1, 1), (2, 2), (1, 1), (0, 0), (0, 0), (None, None))
SHIFTED = Window((3, 3), (1, 1), (1, 1), (2, 2), (0, 0), (None, None))


def conv(window: Window, *, groups: int = 1, fan_in: int = CHANNELS, out: int = CHANNELS, bias: bool = False) -> Factor:
    """A convolution whose weights nothing else reads."""
    border = Border.PADDED if any(window.begins) else Border.NONE
    linear = Linear(groups, out, fan_in, 1, 1, border, window=window, has_bias=bias, is_shared=False)
    return Factor(linear, "conv")


def behind(factor: Factor) -> Factor:
    """With a BatchNorm in front."""
    return Factor(factor.linear.absorb_input(KINDS["scale and shift"]), factor.node)


DEPTHWISE = conv(SQUARE, groups=CHANNELS)
SUMS: list[tuple[str, Factor, Factor]] = [
    ("3x3 + 1x1", conv(SQUARE), conv(POINT)),
    ("3x3 + the value itself, or a BatchNorm of it", conv(SQUARE), Factor(per_channel(POINT, CHANNELS, 1))),
    ("3x3 + average of 3x3, padding counted", conv(SQUARE), Factor(per_channel(SQUARE, CHANNELS, 1), None, 1 / 9)),
    ("depthwise 3x3 + depthwise 1x1", DEPTHWISE, conv(POINT, groups=CHANNELS)),
    ("3x3 + depthwise 3x3", conv(SQUARE), DEPTHWISE),
    ("depthwise 3x3 + 1x1", DEPTHWISE, conv(POINT)),
    ("3x3 + 1x1 with another stride", conv(SQUARE), conv(STRIDED)),
    ("3x3 + 3x3 with other pads", conv(SQUARE), conv(SHIFTED)),
    ("3x3 + padded 3x3 of a BatchNorm", conv(SQUARE), behind(conv(SQUARE))),
    ("1x1 + 1x1 of a BatchNorm", conv(POINT), behind(conv(POINT))),
]
ROWS: list[tuple[str, Factor, Factor]] = [
    ("3x3, then 1x1", conv(SQUARE, bias=True), conv(POINT, bias=True)),
    ("1x1, then padded 3x3", conv(POINT), conv(SQUARE, bias=True)),
    ("1x1 with bias, then padded 3x3", conv(POINT, bias=True), conv(SQUARE)),
    ("3x3, then depthwise 1x1", conv(SQUARE), conv(POINT, groups=CHANNELS)),
    ("depthwise 3x3, then 1x1", DEPTHWISE, conv(POINT)),
    ("1x1 to few channels, then 1x1 to many", conv(POINT, out=1), conv(POINT, fan_in=1)),
    ("3x3, then 3x3", conv(SQUARE), conv(SQUARE)),
]
CONCATENATIONS: list[tuple[str, Factor, Factor]] = [
    ("3x3 beside 3x3, concatenated", conv(SQUARE), conv(SQUARE)),
    ("3x3 beside 1x1, concatenated", conv(SQUARE), conv(POINT)),
    ("depthwise beside depthwise, concatenated", DEPTHWISE, DEPTHWISE),
]


def merges() -> Iterator[str]:
    found: list[tuple[str, object]] = []
    found += [(what, merge(host, [Branch((other,))], np.zeros(CHANNELS))) for what, host, other in SUMS]
    found += [(what, chain(first, last)) for what, first, last in ROWS]
    found += [(what, stack([one, other])) for what, one, other in CONCATENATIONS]
    for what, result in found:
        answer = f"no (`{result.reason}`: {result.detail})" if isinstance(result, Stop) else "one convolution"
        yield f"| {what} | {answer} |"


TORCH = sorted(OPERATORS, key=lambda row: row.name)


def names(op: Op, readers: Mapping[str, Callable[..., object]]) -> str:
    """The operators that are read as this kind."""
    kinds = {name: get_type_hints(read)["return"] for name, read in readers.items()}
    return ", ".join(name for name, kind in kinds.items() if kind != Op and type(op) in (get_args(kind) or (kind,)))


def answer(rule: Callable[..., object], op: Op, arguments: Callable[[Affine], list[Affine | None]]) -> str:
    """The most general kind of affine that is carried, or the reason why none is."""
    refused: Stop | None = None
    for kind, affine in KINDS.items():
        result = rule(op, *arguments(affine))
        if not isinstance(result, Stop):
            return kind
        refused = refused or result
    assert refused is not None
    return f"none (`{refused.reason}`)"


def outputs(op: Op) -> Callable[[Affine], list[Affine | None]]:
    """An affine for each output of the example, on the axis where its channels are."""

    def arguments(affine: Affine) -> list[Affine | None]:
        if isinstance(op, Split):
            return [affine] * len(op.sizes)
        if isinstance(op, Transpose):
            return [affine.along(op.order.index(1))]
        if isinstance(op, Reshape) and len(op.after) == 2:
            return [affine.repeat(36)]
        return [affine]

    return arguments


def inputs(op: Op) -> Callable[[Affine], list[Affine | None]]:
    """An affine for each input of the example."""

    def arguments(affine: Affine) -> list[Affine | None]:
        if isinstance(op, Concat):
            return [affine] * len(op.sizes)
        if isinstance(op, Select) and not op.constants:
            return [affine] * len(op.shapes)
        return [affine, None] if isinstance(op, Product | Select | Sum) else [affine]

    return arguments


def rows() -> Iterator[str]:
    for what, op in EXAMPLES:
        cells = (
            type(op).__name__ + (f" {what}" if what else ""),
            names(op, read_carry.READERS),
            names(op, {row.name: row.carry for row in TORCH if row.carry}),
            answer(pull, op, outputs(op)),
            answer(push, op, inputs(op)),
        )
        yield f"| {' | '.join(cells)} |"


def document() -> str:
    absorbing = ", ".join([*read_linear.READERS, "MatMul", "com.microsoft.FusedMatMul"])
    return "\n".join(
        [
            "# What folds through what",
            "",
            "Written by `python scripts/tools/make_coverage.py`, which asks the rules; a test keeps it true.",
            "",
            "A BatchNorm, or any other per-channel affine `y = scale * x + shift`, is absorbed by",
            f"{absorbing}: by one in front of it (recurrent layers excepted), always; by one",
            "behind it, unless a shift meets zero padding. (A shift that is the same multiple of the scale in all",
            "channels becomes an explicit Pad, if it is a BatchNorm's.) A BatchNorm that stays absorbs the affines",
            "around it. In between, an affine is carried through these operators, which take it as far as the table",
            "says: upstream from output to input, downstream from input to output. All paths must end in an operator",
            "that absorbs, and no other reader may see a changed value.",
            "",
            "A BatchNorm may also go both ways: its scale downstream, and `shift / scale` upstream into a bias. Other",
            "readers may see that shift where each of them takes it back: an operator that absorbs without padding, a",
            "BatchNorm that stays, an addition into its other operand or on to its own output. So pre-activation",
            "networks (`x + conv(relu(bn(x)))`) fold where the scales are positive, and the shift is not so large",
            "beside the deviation of the data that digits would be lost.",
            "",
            "A shift does not go through a sum whose weights need not be one in all (a graph convolution",
            "`A @ (x @ W)`, an addition by index), nor an average that counts padding. The scale goes alone, and the",
            "BatchNorm becomes an addition.",
            "",
            "In ONNX, a BatchNorm that reads constants alone, in training mode too, makes a constant: the weight of a",
            "convolution that is standardised, for example. That constant takes its place, rounded once.",
            "",
            "A weight may be quantised: integers that DequantizeLinear, `dequantize_per_channel` or",
            "`dequantize_per_tensor` reads, or in ONNX a float32 weight that QuantizeLinear makes integers of. It",
            "absorbs what is behind it, in its scales, which become one for each output channel (in ONNX from opset",
            "13 on). The integers stay, or are mirrored for a negative scale where their range allows; a float32",
            "weight absorbs it as well, in such a way that its integers are these. Blocks, other types, fake",
            "quantisation in PyTorch, and integers or weights that are changed on the way, but by the Transpose of a",
            "matrix in ONNX, are refused as `quantized`.",
            "",
            "| operator | in ONNX | in PyTorch | upstream | downstream |",
            "|---|---|---|---|---|",
            *rows(),
            "",
            f"In PyTorch, {', '.join(row.name for row in TORCH if row.linear)} absorb, in every",
            "spelling: modules, functions, methods, operators of Python, aten.",
            "",
            "A sum hands the whole scale to every operand, and the shift to one of them or to all in equal parts.",
            "Downstream, the operands of a sum must bring the same scale; the table shows one operand alone.",
            "",
            "## What becomes one operator",
            "",
            "Linear operators of one value that are added up (in any tree of Add, Sub and Sum, with per-channel",
            "constants, signs and scales anywhere in it), that follow each other, or that are only concatenated,",
            "become one where nothing else reads what is between them and the result costs no more: not one",
            "multiplication, node or parameter. Matrix products of one input too. `--no-merge` turns it off.",
            "",
            "| operators | become |",
            "|---|---|",
            *merges(),
            "",
            "## Why a BatchNorm stays",
            "",
            "[Each reason](reasons.md), with a model that has it and what would let it fold.",
            "",
        ]
    )


def main() -> None:
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text() != document())
    TARGET.write_text(document())


if __name__ == "__main__":
    main()
