"""Inputs to run a model on: drawn from what it declares, or read from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from bnfold.errors import IncomparableError, InvalidModelError

Feeds = dict[str, npt.NDArray[Any]]
"""One array for each input of a model."""

BATCH, LENGTH = 2, 32
"""Sizes of a dynamic first dimension, and of any other one, where the caller gives none."""


DRAW_LIMIT = 1 << 28
"""Elements of an input that is drawn; a few bytes of model can declare any number."""


@dataclass(frozen=True)
class Declared:
    """An input as the model declares it: sizes are numbers, symbols, or nothing."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class InputOptions:
    """How inputs are found.

    Attributes:
        path: real inputs: an `.npz`, a folder of `.npy`, or an ONNX `test_data_set_*` folder; None to draw them.
        dims: sizes of dynamic dimensions, by symbol.
        samples: how many inputs are drawn.
        seed: of the generator that draws them.
    """

    path: Path | None = None
    dims: Mapping[str, int] | None = None
    samples: int = 2
    seed: int = 0


def find(declared: Sequence[Declared], options: InputOptions) -> list[Feeds]:
    """The inputs that `options` ask for.

    Raises:
        InvalidModelError: the path cannot be read.
        IncomparableError: it holds no array that fits an input, or a dimension is not the model's.
    """
    if options.path is not None:
        return [_matching(declared, _read(options.path), options.path)]
    _check_dims(declared, options.dims or {})
    generator = np.random.default_rng(options.seed)
    return [
        {each.name: _draw(each, options.dims or {}, generator) for each in declared} for _ in range(options.samples)
    ]


def _check_dims(declared: Sequence[Declared], dims: Mapping[str, int]) -> None:
    symbols = {dim for each in declared for dim in each.shape if isinstance(dim, str)}
    if unknown := sorted(set(dims) - symbols):
        raise IncomparableError(f"--dim {unknown[0]}: the model has no such dimension (it has: {sorted(symbols)})")


def _draw(declared: Declared, dims: Mapping[str, int], generator: np.random.Generator) -> npt.NDArray[Any]:
    shape = tuple(
        dim if isinstance(dim, int) and dim > 0 else dims.get(str(dim), BATCH if axis == 0 else LENGTH)
        for axis, dim in enumerate(declared.shape)
    )
    if prod(shape) > DRAW_LIMIT:
        raise IncomparableError(f"input {declared.name!r} of shape {list(shape)} is too large to draw; use --inputs")
    kind = declared.dtype
    if kind.kind in "iu":
        return generator.integers(0, 2, shape).astype(kind)
    if kind == np.bool_:
        return generator.integers(0, 2, shape).astype(np.bool_)
    if kind.kind in "OSU":
        return np.full(shape, "a", dtype=object)
    return generator.standard_normal(shape).astype(kind)


def _read(path: Path) -> Feeds:
    try:
        if path.is_dir():
            protos = sorted(path.glob("input_*.pb"))
            if protos:
                return _read_protos(protos)
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, BadZipFile) as error:
        raise InvalidModelError(f"{path}: neither an .npz file nor a folder of .npy or .pb files") from error


def _read_protos(paths: Sequence[Path]) -> Feeds:
    import onnx
    from onnx import numpy_helper

    feeds: Feeds = {}
    for index, path in enumerate(paths):
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
        feeds[tensor.name or f"#{index}"] = numpy_helper.to_array(tensor)
    return feeds


def _matching(declared: Sequence[Declared], arrays: Feeds, path: Path) -> Feeds:
    """The arrays that the model reads, by name or (unnamed protos) by position; others are ignored."""
    feeds: Feeds = {}
    for index, each in enumerate(declared):
        array = arrays.get(each.name, arrays.get(f"#{index}"))
        if array is None:
            raise IncomparableError(f"{path}: no array for input {each.name!r} (it has: {sorted(arrays)})")
        fits = array.ndim == len(each.shape) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(each.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != each.dtype:
            given, wanted = f"{array.dtype}{list(array.shape)}", f"{each.dtype}{list(each.shape)}"
            raise IncomparableError(f"{path}: {each.name!r} is {given}, the model wants {wanted}")
        feeds[each.name] = array
    return feeds
