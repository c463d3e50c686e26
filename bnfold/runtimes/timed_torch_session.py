"""Sessions of PyTorch for timings: eager, or through `torch.compile`."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import IncomparableError, MissingExtraError
from bnfold.runtimes.inputs import Feeds
from bnfold.runtimes.setting import Setting

try:
    import torch
    from torch.export import ExportedProgram
    from torch.utils import _pytree as pytree
except ImportError as error:
    raise MissingExtraError("PyTorch is not installed: pip install 'bnfold[torch]'") from error

from bnfold.frontends.torch import load


def find_device(provider: str) -> torch.device:
    """The device for the name of a provider.

    Raises:
        MissingExtraError: PyTorch does not support the device, or there is none.
    """
    if provider == "cpu":
        return torch.device("cpu")
    if provider != "cuda":
        raise MissingExtraError(f"provider {provider!r} is not one of PyTorch's (it has: cpu, cuda)")
    if not torch.cuda.is_available():
        raise MissingExtraError("provider 'cuda': PyTorch finds no CUDA device here")
    return torch.device("cuda", 0)


@contextmanager
def configured(setting: Setting) -> Iterator[None]:
    """Set threads and precision for a while. PyTorch has them once for the whole process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_num_threads(setting.threads)
    torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = setting.tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


class TorchSession:
    """A module on a device, with weights of its own.

    CUDA is timed by events, which do not count the way of the last result to the host. Beside an ONNX model, which has
    no events, it is timed by the wall clock with synchronisation.
    """

    def __init__(self, source: Any, setting: Setting, feeds: Sequence[Feeds]) -> None:
        self._device = find_device(setting.provider)
        program = load(source) if isinstance(source, Path) else source
        spec = program.call_spec.in_spec if isinstance(program, ExportedProgram) else None
        module = program.module() if isinstance(program, ExportedProgram) else program
        with warnings.catch_warnings():  # a copy of an exported program makes torch warn of its own classes
            warnings.simplefilter("ignore", FutureWarning)
            # A copy: the sessions must not share memory, and a caller's module stays as it is.
            module = copy.deepcopy(module).to(self._device)
        if spec is None:
            module.eval()
        self._compiled = setting.compiled
        if setting.compiled:
            # Sessions of one class share their code. After some, the compiler would silently give up and run eagerly.
            # It compiles at the first inference, when all sessions of a sitting are open.
            torch.compiler.reset()
        self._module = torch.compile(module) if setting.compiled else module
        self._calls = [_arguments(feed, spec, self._device) for feed in feeds]
        self._events = self._device.type == "cuda" and setting.level is None
        self._synchronize()

    @property
    def details(self) -> dict[str, Any]:
        """The device, its precision, and the clock."""
        cuda = self._device.type == "cuda"
        clock = "CUDA events" if self._events else "wall clock, synchronised" if cuda else "wall clock"
        details = {
            "engine": "torch.compile" if self._compiled else "torch eager",
            "providers": [self._device.type],
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "clock": clock,
        }
        return details | ({"device_peak_bytes": torch.cuda.max_memory_allocated()} if cuda else {})

    def time(self, index: int) -> float:
        """Seconds of one inference."""
        args, kwargs = self._calls[index]
        try:
            with torch.inference_mode():
                return self._time_events(args, kwargs) if self._events else self._time_wall(args, kwargs)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise IncomparableError(f"PyTorch cannot run it ({' '.join(str(error).split())[:300]})") from error

    def _time_wall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        start = time.perf_counter()
        self._module(*args, **kwargs)
        self._synchronize()
        return time.perf_counter() - start

    def _time_events(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        self._module(*args, **kwargs)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _arguments(feed: Feeds, spec: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a module: as the program was exported; else by position, or by name where there are names."""
    tensors = {name: torch.from_numpy(np.array(array)).to(device) for name, array in feed.items()}
    if spec is not None:
        args, kwargs = pytree.tree_unflatten(list(tensors.values()), spec)
        return tuple(args), dict(kwargs)
    if all(name.startswith("#") for name in tensors):
        return tuple(tensors.values()), {}
    return (), tensors
