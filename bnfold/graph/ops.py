"""The neutral vocabulary of operators: what each does to channels, in either front end.

Each class has only what the rules need. Axes count from the front. Any other operator is `Opaque`, and nothing is
carried through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Affine, Array
from bnfold.algebra.linear import Linear, Window
from bnfold.graph.outcome import Stop

Dim = int | str | None
"""A size, a symbol for an unknown size, or None."""

Shape = tuple[Dim, ...]

CHANNEL_LIMIT = 1 << 22
"""The most channels of an affine that only declared sizes call for. No model has more, and more would use up memory."""


@dataclass(frozen=True, eq=False, slots=True)
class ChannelAffine:
    """A per-channel affine with constant parameters: BatchNorm in eval mode, or Mul, Add, Sub, Div by a constant.

    Attributes:
        affine: the map.
        is_batchnorm: whether it is a BatchNorm, which can also absorb other affines.
        stored: the elements of each of its constants, as `Graph.constants` lists them; None where they are not known.
    """

    affine: Affine
    is_batchnorm: bool
    stored: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Opaque:
    """Any other operator. With `is_batchnorm`, it is a BatchNorm that must stay whatever surrounds it."""

    stop: Stop
    is_batchnorm: bool = False


@dataclass(frozen=True)
class Computed:
    """A BatchNorm that reads constants alone. What it makes is one as well, and takes its place: a weight, for example.

    Attributes:
        into: names of the operators that read it, or what is computed from it.
        alone: its description without regard to what it reads.
    """

    into: tuple[str, ...]
    alone: ChannelAffine | Opaque


@dataclass(frozen=True)
class Identity:
    """Hands its input on unchanged: Identity, inference Dropout, a Cast that only widens.

    Attributes:
        is_widening: whether the output has a wider type, so that values which fit behind it may not fit in front.
    """

    is_widening: bool = False


@dataclass(frozen=True)
class Concat:
    """Joins its inputs along `axis`; `sizes` are their sizes on it (None: not known)."""

    axis: int
    sizes: tuple[int | None, ...]


@dataclass(frozen=True)
class Split:
    """Cuts its input along `axis` into outputs of `sizes`."""

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Take:
    """Keeps the positions `index` of the `size` along `axis`, and positions not known along the axes `others`."""

    axis: int
    index: npt.NDArray[np.intp]
    size: int
    others: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Transpose:
    """Output axis ``k`` is input axis ``order[k]``."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class Reshape:
    """The same elements, in row-major order, under another shape.

    Attributes:
        before, after: the shapes.
        choice: how many better axes to pass over, where several fit a uniform affine.
    """

    before: Shape
    after: Shape
    choice: int = 0


@dataclass(frozen=True)
class PixelShuffle:
    """Moves channels into space (DepthToSpace). ``[N, factor^2 * C, H, W] -> [N, C, factor H, factor W]``.

    Attributes:
        factor: side of a block.
        channels: C; None where it is not known. Affines on the channels then tell it.
        channel_first: CRD order (PyTorch's pixel_shuffle): each C is split; else DCR: C runs fastest.
    """

    factor: int
    channels: int | None
    channel_first: bool


@dataclass(frozen=True)
class PixelUnshuffle:
    """The inverse of `PixelShuffle` (SpaceToDepth)."""

    factor: int
    channels: int | None
    channel_first: bool


@dataclass(frozen=True)
class Average:
    """Weighted means over `axes` (pooling, resizing, ReduceMean), each channel for itself.

    Attributes:
        axes: the axes that are mixed.
        sums_to_one: whether each output's weights sum to one; False where padding zeros are counted.
        dropped: axes that vanish from the output (ReduceMean without keepdims).
        window: the window, if every output is the sum of its taps over their number, with zeros outside of the data.
    """

    axes: frozenset[int]
    sums_to_one: bool = True
    dropped: frozenset[int] = frozenset()
    window: Window | None = None


@dataclass(frozen=True)
class Product:
    """The product of two computed matrices, for all leading axes: rows of the first with columns of the second.

    Attributes:
        ranks: the numbers of axes of both.
    """

    ranks: tuple[int, int]


@dataclass(frozen=True)
class Maximum:
    """The largest value over `axes` (max pooling, ReduceMax), each channel for itself."""

    axes: frozenset[int]
    dropped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Pad:
    """Extends `axes`, with copies of the data (`value` None: reflect, edge, wrap) or with a constant."""

    axes: frozenset[int]
    value: float | None


@dataclass(frozen=True)
class Broadcast:
    """Repeats data along `axes`; the output has `added` further axes in front (Expand, Tile)."""

    axes: frozenset[int]
    added: int = 0


@dataclass(frozen=True)
class Sum:
    """``sum_k signs[k] * x_k`` with numpy broadcasting.

    Attributes:
        signs: +1 or -1 for each input.
        shapes: the shape of each input; None where not known.
        shares: how much of a pulled shift each input takes; they sum to one.
        constants: the inputs that take in an affine themselves. Their shapes have as many axes as the output.
        pending: the affines that they have taken in.
    """

    signs: tuple[int, ...]
    shapes: tuple[Shape | None, ...]
    shares: tuple[float, ...]
    constants: frozenset[int] = frozenset()
    pending: Mapping[int, Affine] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Select:
    """Takes each element from one of its inputs, with numpy broadcasting, by a condition (Where).

    Attributes:
        shapes: the shape of each input; None where not known.
        rank: the number of axes of the output.
        constants, pending: as in `Sum`.
    """

    shapes: tuple[Shape | None, ...]
    rank: int
    constants: frozenset[int] = frozenset()
    pending: Mapping[int, Affine] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Lookup:
    """Takes entries of a constant table along `axis`, by indices that are data and have `rank` axes (an embedding).

    Attributes:
        axis: the axis of the table.
        rank: the number of axes of the indices. They take the place of that axis.
        constants: the table, its only input, takes in an affine itself.
        pending: the affine that it has taken in.
    """

    axis: int
    rank: int
    constants: frozenset[int] = frozenset({0})
    pending: Mapping[int, Affine] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, eq=False)
class Operands:
    """The affines that constants among an operator's data inputs take in, by the index of the input."""

    affines: Mapping[int, Affine]


class Form(StrEnum):
    """The operators as which a BatchNorm that stays is written, for runtimes without BatchNorm."""

    DEPTHWISE = "depthwise"
    MUL_ADD = "mul-add"
    ADD = "add"  # whose scale is one


@dataclass(frozen=True, eq=False)
class Lowered:
    """A BatchNorm as other operators.

    Attributes:
        affine: its map.
        mean: the vector that is subtracted first; zeros where none is.
        form: the operators that it is written as.
    """

    affine: Affine
    mean: Array
    form: Form

    @property
    def shift(self) -> Array:
        """The vector that is added last, in float64."""
        return self.affine.shift + self.affine.scale * self.mean


Absorbed = Linear | Affine | Operands
"""The new form of an operator: a linear one, a BatchNorm, or one that reads constants as data."""


@dataclass(frozen=True)
class Rectifier:
    """A function with ``f(s x) = s f(x)`` for ``s >= 0``: Relu, LeakyRelu, PRelu."""


Op = (
    Linear
    | ChannelAffine
    | Opaque
    | Computed
    | Identity
    | Concat
    | Split
    | Take
    | Transpose
    | Reshape
    | PixelShuffle
    | PixelUnshuffle
    | Average
    | Product
    | Maximum
    | Pad
    | Broadcast
    | Sum
    | Select
    | Lookup
    | Rectifier
)
