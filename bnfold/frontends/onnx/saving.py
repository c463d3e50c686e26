"""ONNX models, written a piece at a time: weights are solved, or copied from file to file, while they are written.

External data goes to one file beside the model that is named after its content, ``OUT.<hash>.data``. So a model and its
data are a pair that nothing can mix: the rename of the model alone switches from one pair to the next.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from bnfold.blocks import WORKERS
from bnfold.errors import OutputError
from bnfold.frontends.onnx.loading import ASIDE, EXTERNAL, PROTOBUF_LIMIT
from bnfold.frontends.onnx.pieces import Piece, pieces
from bnfold.frontends.onnx.slots import Slot, lending, placeholder, slots
from bnfold.frontends.onnx.wire import Run, serialize_model

SIZE_LIMIT = (1 << 31) - (1 << 24)
"""Bytes of tensors above which a model is written with external data; protobuf ends at 2 GiB."""

THRESHOLD = 1024
"""Bytes above which a tensor is external where the model had no external data before, and is written in pieces."""

HASH_DIGITS = 12

FLUSHED = 1 << 25
"""Bytes that are put on the disk at a time while more is written."""


@dataclass(frozen=True)
class Written:
    """The files of a model.

    Attributes:
        model: the `.onnx` file.
        data: its external data; None where it has none.
    """

    model: Path
    data: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Both, the data first."""
        return (self.model,) if self.data is None else (self.data, self.model)

    @property
    def bytes(self) -> int:
        """Of both together."""
        return sum(each.stat().st_size for each in self.files)


def save(model: ir.Model, path: Path) -> Written:
    """Write a model to `path`, with external data beside it if it had some, or is too large without.

    Everything is on the disk when this returns.

    Raises:
        OutputError: it cannot be written, or one of its tensors not be read.
    """
    try:
        threshold = _external_threshold(model)
        if threshold is None:
            _write_model(model, path)
            return Written(path, None)
        chosen = [
            slot
            for slot in slots(model)
            if slot.tensor.dtype != ir.DataType.STRING
            and slot.tensor.nbytes > threshold
            and (slot.is_initializer or isinstance(slot.tensor, ir.ExternalTensor))
        ]
        offsets, run = _arrange(chosen)
        digest = _write(path.with_name(f"{path.name}.data"), run)
        data = path.with_name(f"{path.name}.{digest}.data")
        path.with_name(f"{path.name}.data").rename(data)
        others = [placeholder(slot.tensor, data.name, offset) for slot, offset in zip(chosen, offsets, strict=True)]
        with lending(chosen, others):
            _write_model(model, path)
        return Written(path, data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    except (EncodeError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written ({error})") from error


def _write_model(model: ir.Model, path: Path) -> None:
    aside = model.meta.get(ASIDE, onnx.ModelProto())
    sparse = {each.values.name for each in aside.graph.sparse_initializer}
    large = {
        name: Slot(value)
        for name, value in model.graph.initializers.items()
        if name not in sparse and _is_large(value.const_value)
    }
    with lending(list(large.values()), [placeholder(slot.tensor) for slot in large.values()]):
        proto = serialize(model)
    data = {name: (slot.tensor.nbytes, pieces(slot.tensor)) for name, slot in large.items()}
    run = serialize_model(proto, data)
    if run[0] > PROTOBUF_LIMIT:
        raise ValueError(f"its {run[0]} bytes are too many for a protobuf")
    _write(path, run)


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    """Whether an initializer is worth a piece of its own; one in a file of its own is not in the model."""
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING:
        return False
    has_raw_data = not isinstance(tensor, ir.serde.TensorProtoTensor) or tensor.raw.HasField("raw_data")
    return has_raw_data and tensor.nbytes > THRESHOLD


def serialize(model: ir.Model) -> onnx.ModelProto:
    """The protobuf of a model that `parse` read, with what `onnx_ir` does not hold."""
    aside = model.meta.get(ASIDE)
    if aside is None:
        return ir.serde.serialize_model(model)
    graph = model.graph
    sparse = {
        each.values.name: each for each in aside.graph.sparse_initializer if each.values.name in graph.initializers
    }
    values = [graph.initializers.pop(name) for name in sparse]
    try:
        proto = ir.serde.serialize_model(model)
    finally:
        for value in values:
            graph.register_initializer(value)
    proto.graph.sparse_initializer.extend(sparse.values())
    proto.training_info.extend(aside.training_info)
    return proto


def _external_threshold(model: ir.Model) -> int | None:
    """The size above which tensors go to the external file; None where all stay inside."""
    tensors = [slot.tensor for slot in slots(model) if slot.tensor.dtype != ir.DataType.STRING]
    external = [tensor.nbytes for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    external += [model.meta[EXTERNAL]] if EXTERNAL in model.meta else []
    if external:
        return max(0, min(external) - 1)
    return THRESHOLD if sum(tensor.nbytes for tensor in tensors) > SIZE_LIMIT else None


def _arrange(chosen: list[Slot]) -> tuple[list[int], Run]:
    """Where each tensor lies in a file of all, and the file; what is the same bytes of one file is there once."""
    offsets: list[int] = []
    known: dict[object, int] = {}
    parts: list[Iterator[Piece]] = []
    end = 0
    for slot in chosen:
        key = _identity(slot.tensor)
        if key not in known:
            known[key] = end
            parts.append(pieces(slot.tensor))
            end += slot.tensor.nbytes
        offsets.append(known[key])
    return offsets, (end, chain.from_iterable(parts))


def _write(path: Path, run: Run) -> str:
    """Write a file and put it on the disk; gives digits of a hash of its content.

    Pieces are made side by side and written one after the other: a file lets one writer in at a time.
    """
    digest = hashlib.sha256()
    pending: deque[Future[tuple[bytes, bytes]]] = deque()
    _, parts = run
    with (
        path.open("wb", buffering=0) as file,
        ThreadPoolExecutor(WORKERS) as pool,
        closing(_Flusher(file.fileno())) as flusher,
    ):

        def write_next() -> None:
            content, own = pending.popleft().result()
            digest.update(own)
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
            flusher.note(len(content))

        for size, make in parts:
            pending.append(pool.submit(_make, size, make))
            if len(pending) > 2 * WORKERS:
                write_next()
        while pending:
            write_next()
        flusher.wait()  # a failure is told once, to whoever flushed
        os.fsync(file.fileno())
    return digest.hexdigest()[:HASH_DIGITS]


class _Flusher:
    """Puts a file on the disk behind its writer, and gives back the memory in which the system kept it.

    Otherwise a file of gigabytes takes gigabytes of fresh memory from the system, which is slow, and pushes out what
    other processes have there; and all of it is flushed in the end, while nothing else is to do.

    Args:
        descriptor: of the file, which is written from its beginning to its end.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._thread = ThreadPoolExecutor(1)
        self._flushed = self._written = 0
        self._pending: Future[None] | None = None

    def note(self, count: int) -> None:
        """Some more bytes are written.

        Raises:
            OSError: earlier ones cannot be flushed.
        """
        self._written += count
        if self._written - self._flushed < FLUSHED or not hasattr(os, "posix_fadvise"):
            return
        self.wait()
        self._pending = self._thread.submit(self._flush, self._flushed, self._written)
        self._flushed = self._written

    def _flush(self, start: int, stop: int) -> None:
        os.fdatasync(self._descriptor)
        os.posix_fadvise(self._descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)

    def wait(self) -> None:
        """Until what was begun is on the disk.

        Raises:
            OSError: it cannot be.
        """
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """End, whatever became of it."""
        self._thread.shutdown()


def _make(size: int, make: Callable[[], bytes]) -> tuple[bytes, bytes]:
    """Some bytes and their hash."""
    content = make()
    assert len(content) == size
    return content, hashlib.sha256(content).digest()


def _identity(tensor: ir.TensorProtocol) -> object:
    """What two tensors share that are the same bytes of the same file."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.path, tensor.offset or 0, tensor.nbytes
    return tensor
