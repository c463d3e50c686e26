"""Whether one kernel is another with per-channel factors, and which.

    B[o, i] = factor[o] * A[o, i]          factor by least squares for each output channel

A factor explains a kernel where every weight is met to the rounding of its type.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.algebra.affine import Affine
from bnfold.difference.chains import Link, compose, largest
from bnfold.difference.outline import Item, Kernel

ROUNDINGS = 8
"""How many roundings a weight may be off from the factor times the old one."""


def behind(before: Kernel, after: Kernel, item: Item, axis: int) -> Link | None:
    """What one operator makes of the output of another that reads the same: a link of `item`, or None.

    An output channel whose weights are all zero does not tell its factor, which is NaN then.
    """
    if before.weights.shape != after.weights.shape:
        return None
    unit = max(before.unit, after.unit)
    floor = 2 * max(before.smallest, after.smallest)
    old, new = (kernel.weights.reshape(len(kernel.bias), -1) for kernel in (before, after))
    energy = np.square(old).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        factor = (old * new).sum(axis=1) / energy
        explained = factor[:, None] * old
        error = np.abs(new - explained)
    limit = ROUNDINGS * unit * np.abs(explained) + floor
    is_zero = energy == 0
    if not (np.all(error[~is_zero] <= limit[~is_zero]) and not new[is_zero].any()):
        return None
    with np.errstate(invalid="ignore"):
        shift = after.bias - factor * before.bias
        size = largest(after.bias) + largest(factor * before.bias)
    shift = np.where(is_zero & (before.bias == after.bias), np.nan, shift)
    return Link((item,), Affine(factor, shift, axis), size)


def is_identity(link: Link, unit: float) -> bool:
    """Whether a link changes nothing that weights of this type could show."""
    scale, shift = link.affine.scale, link.affine.shift
    known = np.isfinite(scale)
    return bool(
        np.all(np.abs(scale[known] - 1) <= unit)
        and np.all(np.abs(shift[np.isfinite(shift)]) <= 4 * unit * max(link.size, 1e-30))
    )


def reading(kernel: Kernel, chain: tuple[Link, ...]) -> Kernel | None:
    """The kernel of an operator together with a chain in front of it; None where their channels do not fit."""
    try:
        total = compose(chain)
    except ValueError:
        return None
    if total is None:
        return kernel
    groups, _, fan_in, _ = kernel.weights.shape
    if total.affine.size != groups * fan_in:
        return None
    scale, shift = (vector.reshape(groups, 1, fan_in, 1) for vector in (total.affine.scale, total.affine.shift))
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    passed = (kernel.weights * shift).sum(axis=(2, 3)).reshape(-1)
    return Kernel(kernel.weights * scale, kernel.bias + passed, kernel.unit, kernel.smallest)


def signature(kernel: Kernel, side: int) -> bytes:
    """What stays of a kernel whatever factors its output channels get (side 0), or its input channels (side 1)."""
    groups, out, fan_in, taps = kernel.weights.shape
    sizes = np.abs(kernel.weights)
    if side:
        rows = sizes.transpose(0, 2, 1, 3).reshape(groups * fan_in, out * taps)
    else:
        rows = sizes.reshape(groups * out, fan_in * taps)
    return _digest(np.asarray(kernel.weights.shape), rows.argmax(axis=1))


def _digest(*arrays: npt.NDArray[np.integer[Any]]) -> bytes:
    digest = blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.int64).tobytes())
    return digest.digest()
