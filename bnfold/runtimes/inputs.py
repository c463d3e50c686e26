"""Inputs to run a model on: drawn from its declared inputs, or read from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import product
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError, InvalidModelError, NoEvidenceError

Feeds = dict[str, npt.NDArray[Any]]
"""One array for each input of a model."""

BATCH, LENGTH = 2, 32
"""The sizes of a dynamic first dimension, and of any other one, unless the caller gives them."""

LENGTHS = (LENGTH, 64, 224, 128, 16, 8, 1)
"""The sizes to try in turn for dynamic dimensions other than the first, until the model runs."""

LARGE = 100.0
"""The factor of the sample of large values."""


class Effort(StrEnum):
    """How much a verification may cost: how many inputs, and how many measurements of noise."""

    FAST = "fast"
    STANDARD = "standard"
    THOROUGH = "thorough"


DRAW_LIMIT = 1 << 28
"""The most elements of a drawn input, since a few bytes of model can declare any number."""


@dataclass(frozen=True)
class Declared:
    """An input as the model declares it: sizes are numbers, symbols, or nothing.

    Attributes:
        span: the range of integers to draw (for example the rows of a table that the input looks up); None where it is
            not known, so that only 0 and 1 are safe.
        has_rank: whether the model says how many sizes there are; `shape` is empty where it does not.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    span: range | None = None
    has_rank: bool = True


@dataclass(frozen=True)
class InputOptions:
    """The options for finding inputs.

    Attributes:
        paths: real inputs, all of these: an `.npz`, a folder of `.npy`, or an ONNX `test_data_set_*` folder; none to
            draw them.
        given: real inputs as arrays, one set after the other; None to draw them.
        dims: sizes of dynamic dimensions, by symbol.
        samples: how many random inputs are drawn.
        seed: the seed of the generator that draws them.
        effort: whether inputs with a structure (zeros, impulses, large values ...) are added.
    """

    paths: tuple[Path, ...] = ()
    dims: Mapping[str, int] | None = None
    samples: int = 2
    seed: int = 0
    effort: Effort = Effort.STANDARD
    given: tuple[Feeds, ...] | None = None

    @property
    def is_given(self) -> bool:
        """Whether the caller gives the inputs, so that none is drawn."""
        return self.given is not None or bool(self.paths)


DRAWN = InputOptions()


@dataclass(frozen=True)
class Sample:
    """One set of inputs, with its kind.

    Attributes:
        label: "normal", "zeros", ..., or the file.
        is_probe: whether it is a drawn extreme, on which a model may overflow by itself.
        is_inside: whether inner values are compared on it, and not only the outputs.
        is_further: whether it is there for another size or range alone.
        stored: outputs that belong to it, each under its name, or as ``#index`` where it has none.
    """

    label: str
    feeds: Feeds = field(repr=False)
    is_probe: bool = False
    is_inside: bool = True
    is_further: bool = False
    stored: Feeds = field(default_factory=dict, repr=False)

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The shape of each input."""
        return {name: list(array.shape) for name, array in self.feeds.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what describes it, without the numbers, of which a caller's data may have gigabytes."""
        described = {name: (array.dtype, array.shape) for name, array in self.feeds.items()}
        return _described, (self.label, described, self.is_probe, self.is_inside)


def _described(
    label: str, described: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], is_probe: bool, is_inside: bool
) -> Sample:
    """A sample of which types and shapes are known alone."""
    feeds = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (dtype, shape) in described.items()}
    return Sample(label, feeds, is_probe, is_inside)


def whole_range(dtype: np.dtype[Any]) -> range:
    """All numbers of an integer type."""
    about = np.iinfo(dtype)
    return range(int(about.min), int(about.max) + 1)


Sizes = dict[str, int]
"""The size of each dynamic dimension: by symbol, or by ``input:axis`` where it has none."""


def find(declared: Sequence[Declared], options: InputOptions) -> list[Feeds]:
    """The inputs for these options: real ones, or random ones of one shape where no files are named.

    Raises:
        InvalidModelError: the path cannot be read.
        IncomparableError: it holds no array that fits an input, or no element, or a dimension is not the model's.
    """
    if (real := _real(declared, options)) is not None:
        return [sample.feeds for sample in real]
    _check_dims(declared, options.dims or {})
    generator = np.random.default_rng(options.seed)
    sizes = _sizes(declared, options.dims or {}, BATCH, LENGTH)
    return [draw(declared, sizes, normal, generator) for _ in range(options.samples)]


def find_samples(
    declared: Sequence[Declared], options: InputOptions, runs: Callable[[Feeds], IncomparableError | None]
) -> tuple[list[Sample], list[str]]:
    """Inputs that expose faults: random ones of two shapes, zeros, ones, impulses, single channels, large values.

    Args:
        declared: the inputs of the model.
        options: how they are found.
        runs: tries the model on an input, to find sizes of dynamic dimensions that it accepts.

    Returns:
        The samples, and a sentence for each kind that was left out.

    Raises:
        InvalidModelError: the path cannot be read.
        IncomparableError: nothing that fits is there, or the model does not run on what was drawn.
    """
    if (real := _real(declared, options)) is not None:
        return real, []
    _check_dims(declared, options.dims or {})
    generator = np.random.default_rng(options.seed)
    base, tried = _first_sizes(declared, options.dims or {}, generator, runs)
    other = _sizes(declared, options.dims or {}, 1, _odd(declared, base))
    notes: list[str] = []
    if other != base and runs(draw(declared, other, normal, generator)) is not None:
        notes.append(f"the model does not run with {_written(other)}: its dynamic dimensions were tried at one size")
        other = {**base, **{name: 1 for name in _batches(declared) if name not in (options.dims or {})}}
        if other != base and runs(draw(declared, other, normal, generator)) is not None:
            other = base
    samples = [
        Sample("normal", draw(declared, base if index % 2 == 0 else other, normal, generator) if index else tried)
        for index in range(options.samples)
    ]
    if options.effort is Effort.FAST or not any(entry.dtype.kind == "f" for entry in declared):
        return samples, notes
    is_thorough = options.effort is Effort.THOROUGH
    smaller = _smaller(declared, other, base)
    samples += [
        Sample(
            label,
            draw(declared, sizes, pattern, generator),
            is_probe=True,
            is_inside=label in INSIDE or is_thorough,
        )
        for label, pattern in PATTERNS.items()
        for sizes in ([base, other] if is_thorough and other != base else [base if label in BATCHED else smaller])
    ]
    return samples, notes


def find_given(declared: Sequence[Declared], options: InputOptions) -> list[Sample]:
    """The inputs that the caller gives; none where they are to be drawn.

    Raises:
        InvalidModelError: a path cannot be read.
        IncomparableError: it holds no array that fits an input, or no element.
    """
    return _real(declared, options) or []


def insist_on_fitting(declared: Sequence[Declared], options: InputOptions) -> None:
    """Check that the caller's inputs and sizes fit a model.

    Raises:
        InvalidModelError: the path cannot be read.
        IncomparableError: it holds no array that fits an input, or no element, or a dimension is not the model's.
    """
    if _real(declared, options) is None:
        _check_dims(declared, options.dims or {})


def find_one(
    declared: Sequence[Declared], options: InputOptions, runs: Callable[[Feeds], IncomparableError | None]
) -> Feeds:
    """The first of the caller's inputs, or a random one with the smallest batch that the model accepts.

    Raises:
        InvalidModelError: the path cannot be read.
        IncomparableError: nothing that fits is there, or the model does not run on it.
    """
    if (real := _real(declared, options)) is not None:
        if (error := runs(real[0].feeds)) is not None:
            raise error
        return real[0].feeds
    generator = np.random.default_rng(options.seed)
    return _first_sizes(declared, options.dims or {}, generator, runs, (1, BATCH))[1]


def _first_sizes(
    declared: Sequence[Declared],
    dims: Mapping[str, int],
    generator: np.random.Generator,
    runs: Callable[[Feeds], IncomparableError | None],
    batches: Sequence[int] = (BATCH, 1),
) -> tuple[Sizes, Feeds]:
    """The first sizes of dynamic dimensions that the model accepts, with the inputs that it ran on."""
    tried: list[Sizes] = []
    error: IncomparableError | None = None
    for batch, length in product(batches, LENGTHS):
        sizes = _sizes(declared, dims, batch, length)
        if sizes in tried:
            continue
        tried.append(sizes)
        feeds = draw(declared, sizes, normal, generator)
        refusal = runs(feeds)
        if refusal is None:
            return sizes, feeds
        error = error or refusal
    assert error is not None
    if tried[0]:
        raise IncomparableError(f"{error}; give --inputs, or sizes with --dim (tried: {_written(tried[0])})")
    raise error


def _sizes(declared: Sequence[Declared], dims: Mapping[str, int], batch: int, length: int) -> Sizes:
    sizes: Sizes = {}
    for entry in declared:
        for axis in range(len(entry.shape)):
            if (name := name_of_axis(entry, axis)) is not None:
                sizes.setdefault(name, dims.get(name, batch if axis == 0 else length))
    return sizes


def name_of_axis(declared: Declared, axis: int) -> str | None:
    """The name of a dynamic dimension: its symbol, or ``input:axis`` where it has none; None where it is fixed."""
    dim = declared.shape[axis]
    if isinstance(dim, int) and dim >= 0:
        return None
    return dim if isinstance(dim, str) and dim else f"{declared.name}:{axis}"


def _smaller(declared: Sequence[Declared], *choices: Sizes) -> Sizes:
    """The sizes of which the inputs have the fewest elements: the first of equal ones."""
    return min(choices, key=lambda sizes: sum(prod(shape_of(entry, sizes)) for entry in declared))


def _batches(declared: Sequence[Declared]) -> list[str]:
    return [entry.shape[0] for entry in declared if entry.shape and isinstance(entry.shape[0], str) and entry.shape[0]]


def _odd(declared: Sequence[Declared], base: Sizes) -> int:
    """A length that is odd and larger than those of the dynamic dimensions."""
    return max((size for name, size in base.items() if name not in _batches(declared)), default=LENGTH) + 1 | 1


def _written(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _check_dims(declared: Sequence[Declared], dims: Mapping[str, int]) -> None:
    symbols = {dim for entry in declared for dim in entry.shape if isinstance(dim, str)}
    if unknown := sorted(set(dims) - symbols):
        raise IncomparableError(f"--dim {unknown[0]}: the model has no such dimension (it has: {sorted(symbols)})")


Pattern = Callable[[tuple[int, ...], np.random.Generator], npt.NDArray[np.float64]]
"""Draws an array of a shape."""


def normal(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Normal random numbers."""
    return generator.standard_normal(shape)


def _uniform(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    return generator.random(shape)


def _large(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    return LARGE * generator.standard_normal(shape)


def _zeros(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.zeros(shape)


def _ones(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.ones(shape)


def _impulses(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Impulses in every corner, in the middle of every side and in the centre of the axes from 2 on."""
    array = np.zeros(shape)
    places = [(slice(None), slice(None))[: len(shape)] + position for position in product(*map(_places, shape[2:]))]
    for place in places:
        array[place] = 1
    return array


def _places(size: int) -> tuple[int, ...]:
    return (0, size // 2, size - 1) if size else ()


def _channels(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Random numbers in one channel (axis 1), another one in each sample of the batch, and zeros elsewhere."""
    if len(shape) < 2 or 0 in shape:
        return generator.standard_normal(shape)
    array = np.zeros(shape)
    for index in range(shape[0]):
        channel = (index * max(1, shape[1] // shape[0]) + shape[1] - 1) % shape[1]
        array[index, channel] = generator.standard_normal(shape[2:])
    return array


PATTERNS: dict[str, Pattern] = {
    "uniform": _uniform,
    "zeros": _zeros,
    "ones": _ones,
    "impulses": _impulses,
    "channels": _channels,
    "large": _large,
}


BATCHED = ("channels",)
"""The patterns that are another one in each sample of the batch. The others are drawn at the smaller size."""

INSIDE = ("ones", "impulses", "large")
"""The patterns on which inner values are compared, too. They show faults of sums, borders and saturation."""


def draw(declared: Sequence[Declared], sizes: Sizes, pattern: Pattern, generator: np.random.Generator) -> Feeds:
    """Draw inputs of these sizes.

    Raises:
        IncomparableError: an input has no known rank, or is too large.
    """
    return {entry.name: _draw_one(entry, sizes, pattern, generator) for entry in declared}


def shape_of(declared: Declared, sizes: Sizes) -> tuple[int, ...]:
    """The shape of an input for these sizes of dynamic dimensions."""
    names = [name_of_axis(declared, axis) for axis in range(len(declared.shape))]
    return tuple(
        int(dim or 0) if name is None else sizes[name] for name, dim in zip(names, declared.shape, strict=True)
    )


def _draw_one(declared: Declared, sizes: Sizes, pattern: Pattern, generator: np.random.Generator) -> npt.NDArray[Any]:
    if not declared.has_rank:
        raise IncomparableError(f"nobody knows the shape of the input {declared.name!r}; give --inputs")
    shape = shape_of(declared, sizes)
    if prod(shape) > DRAW_LIMIT:
        raise IncomparableError(f"input {declared.name!r} of shape {list(shape)} is too large to draw; use --inputs")
    kind = declared.dtype
    if kind.kind in "iu":
        span = declared.span or range(2)
        return generator.integers(span.start, span.stop, shape).astype(kind)
    if kind == np.bool_:
        return generator.integers(0, 2, shape).astype(np.bool_)
    if kind.kind in "OSU":
        return np.full(shape, "a", dtype=object)
    return np.asarray(pattern(shape, generator)).astype(kind)


def _real(declared: Sequence[Declared], options: InputOptions) -> list[Sample] | None:
    """The caller's inputs; None where they are to be drawn."""
    if options.given is not None:
        if not options.given:
            raise NoEvidenceError("no inputs are given; pass None to have them drawn")
        sets = [(f"given {index}", feeds) for index, feeds in enumerate(options.given)]
        return [Sample(label, _matching(declared, feeds, label)) for label, feeds in sets]
    if not options.paths:
        return None
    return [
        Sample(source.name, _matching(declared, _read(source), str(source)), stored=_read_stored(source))
        for path in options.paths
        for source in (sorted(path.glob("test_data_set_*")) if path.is_dir() else []) or [path]
    ]


def _read(path: Path) -> Feeds:
    try:
        if path.is_dir():
            protos = sorted(path.glob("input_*.pb"), key=lambda file: (len(file.name), file.name))
            if protos:
                return _read_protos(protos)
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, BadZipFile) as error:
        raise InvalidModelError(f"{path}: neither an .npz file nor a folder of .npy or .pb files") from error


def _read_stored(path: Path) -> Feeds:
    """The outputs in a ``test_data_set_*`` folder."""
    return _read_protos(sorted(path.glob("output_*.pb"), key=lambda file: (len(file.name), file.name)))


def _read_protos(paths: Sequence[Path]) -> Feeds:
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    feeds: Feeds = {}
    for index, path in enumerate(paths):
        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(path.read_bytes())
        except DecodeError as error:
            raise InvalidModelError(f"{path}: not a tensor") from error
        feeds[tensor.name or f"#{index}"] = numpy_helper.to_array(tensor)
    return feeds


def _matching(declared: Sequence[Declared], arrays: Feeds, origin: str) -> Feeds:
    """The arrays for the model's inputs, by name or (unnamed protos) by position. Others are ignored."""
    feeds: Feeds = {}
    for index, entry in enumerate(declared):
        array = arrays.get(entry.name, arrays.get(f"#{index}"))
        if array is None:
            raise IncomparableError(f"{origin}: no array for input {entry.name!r} (it has: {sorted(arrays)})")
        fits = not entry.has_rank or (
            array.ndim == len(entry.shape)
            and all(not isinstance(dim, int) or dim == size for dim, size in zip(entry.shape, array.shape, strict=True))
        )
        if not fits or array.dtype != entry.dtype:
            actual, wanted = f"{array.dtype}{list(array.shape)}", f"{entry.dtype}{list(entry.shape)}"
            raise IncomparableError(f"{origin}: {entry.name!r} is {actual}, the model wants {wanted}")
        feeds[entry.name] = array
    if feeds and not any(array.size for array in feeds.values()):
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
        raise NoEvidenceError(f"{origin}: its inputs have no element, so a run of them shows nothing ({shapes})")
    return feeds


def merge_declared(reference: Sequence[Declared], candidate: Sequence[Declared]) -> list[Declared] | None:
    """The declared inputs that fit both models, under the reference's names; None where nothing fits."""
    if len(reference) != len(candidate):
        return None
    merged: list[Declared] = []
    for mine, other in zip(reference, candidate, strict=True):
        if mine.dtype != other.dtype or len(mine.shape) != len(other.shape):
            return None
        shape: list[int | str | None] = []
        for a, b in zip(mine.shape, other.shape, strict=True):
            if isinstance(a, int) and isinstance(b, int) and a != b:
                return None
            shape.append(b if isinstance(b, int) and not isinstance(a, int) else a)
        span = mine.span
        if span and other.span:
            span = range(max(span.start, other.span.start), min(span.stop, other.span.stop))
        merged.append(replace(mine, shape=tuple(shape), span=span))
    return merged
