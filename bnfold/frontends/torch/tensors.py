"""torch tensors as numpy arrays and back; bfloat16 by way of its bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from bnfold.errors import UnsupportedModelError

AnyArray = npt.NDArray[Any]

DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
"""The types that weights may have."""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is a dense tensor of a type that bnfold computes with, and not a subclass with rules of its own."""
    known = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return known and tensor.layout is torch.strided and tensor.dtype in DTYPES and tensor.device.type != "meta"


def to_numpy(tensor: torch.Tensor) -> AnyArray:
    """The content of a tensor as an array on the CPU. It shares the tensor's memory where it can.

    Raises:
        UnsupportedModelError: it holds nothing (meta device).
    """
    if tensor.device.type == "meta":
        raise UnsupportedModelError("a tensor is on the meta device and holds no values: load the weights first")
    on_cpu = tensor.detach().cpu()
    if on_cpu.dtype is torch.bfloat16:
        bits: AnyArray = on_cpu.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: AnyArray = on_cpu.resolve_neg().numpy()
    return array


def from_numpy(array: AnyArray) -> torch.Tensor:
    """A tensor with the array's values and type."""
    plain = np.ascontiguousarray(array).reshape(array.shape)
    if plain.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(plain.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(plain)


def like(array: AnyArray, old: torch.Tensor) -> torch.Tensor:
    """A fresh tensor with the array's values: a parameter if `old` is one, on its device, with its strides."""
    with torch.inference_mode(False), torch.no_grad():  # a tensor made in inference mode could not be trained
        tensor = from_numpy(array)
        fresh = torch.empty_like(old.detach()) if tensor.shape == old.shape else old.detach().new_empty(tensor.shape)
        fresh = fresh.to(tensor.dtype)
        fresh.copy_(tensor)
        return torch.nn.Parameter(fresh, old.requires_grad) if isinstance(old, torch.nn.Parameter) else fresh
