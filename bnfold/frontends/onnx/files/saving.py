"""ONNX models, written a piece at a time: weights are solved, or copied from file to file, while they are written.

External data goes to one file beside the model that is named after its content, ``OUT.<hash>.data``. So a model and its
data are a pair that nothing can mix: the rename of the model alone switches from one pair to the next.
"""

from __future__ import annotations

import hashlib
import os
import secrets
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

from bnfold.algebra.kernels import WORKERS
from bnfold.errors import OutputError
from bnfold.frontends.onnx.files.loading import EXTERNAL, PROTOBUF_LIMIT
from bnfold.frontends.onnx.files.messages import write
from bnfold.frontends.onnx.files.original import Densified, Source, original_of
from bnfold.frontends.onnx.files.patch import patch
from bnfold.frontends.onnx.files.pieces import pieces
from bnfold.frontends.onnx.files.slots import INSIDE, Slot, Token, lending, placeholder, slots
from bnfold.frontends.onnx.files.wire import Piece, Run, splice, varint
from bnfold.frontends.protocol import Written

SIZE_LIMIT = (1 << 31) - (1 << 24)
"""Bytes of tensors above which a model is written with external data; protobuf ends at 2 GiB."""

THRESHOLD = 1024
"""Bytes above which a tensor is external where the model had no external data before, and is written in pieces."""

HASH_DIGITS = 12

FLUSHED = 1 << 25
"""Bytes that are put on the disk at a time while more is written."""


def save(model: ir.Model, path: Path) -> Written:
    """Write a model to `path`, with external data beside it if it had some, or is too large without.

    Everything is on the disk when this returns.

    Raises:
        OutputError: it cannot be written, or one of its tensors not be read.
    """
    try:
        same = _same_file(model)
        if same is not None:
            _write(path, (same.size, pieces(same.tensor())))
            return Written(path)
        chosen = _choose_external(model)
        if chosen is None:
            _write_model(model, path)
            return Written(path)
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
    large = [slot for slot in slots(model) if _is_large(slot.tensor)]
    mark = secrets.token_bytes(16)
    tokens = [Token(slot.tensor, mark + varint(index)) for index, slot in enumerate(large)]
    data = {token.content: (token.nbytes, pieces(token.stands_for)) for token in tokens}
    with lending(large, tokens):
        content = serialize(model).SerializeToString()
    run = splice(content, mark, data)
    if run[0] > PROTOBUF_LIMIT:
        raise ValueError(f"its {run[0]} bytes are too many for a protobuf")
    _write(path, run)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is written in pieces: it is large, and the model has its bytes as they are written."""
    if isinstance(tensor, ir.ExternalTensor | Densified) or tensor.dtype == ir.DataType.STRING:
        return False
    has_raw_data = not isinstance(tensor, ir.serde.TensorProtoTensor) or tensor.raw.HasField("raw_data")
    return has_raw_data and tensor.nbytes > THRESHOLD


def serialize(model: ir.Model) -> onnx.ModelProto:
    """The protobuf of a model: of one that `parse` or `load` read, what was edited differs and nothing else."""
    original = original_of(model)
    if original is None:
        return ir.serde.serialize_model(model)
    proto = onnx.ModelProto()
    write(patch(model, original), proto)
    return proto


@dataclass(frozen=True)
class Lent:
    """A model whose large tensors stay where they are.

    Attributes:
        proto: the model.
        folder: of its external data, where it has a folder.
        held: tensors by the location that stands for them in `proto`.
    """

    proto: onnx.ModelProto
    folder: Path | None
    held: dict[str, ir.TensorProtocol]


def lend(model: ir.Model, folder: Path | None = None) -> Lent:
    """A protobuf of a model without the bytes of its large initializers, and these; `folder` is that of the others."""
    large = [
        slot
        for slot in slots(model)
        if slot.is_initializer
        and (isinstance(slot.tensor, ir.ExternalTensor) or slot.tensor.nbytes > THRESHOLD)
        and slot.tensor.dtype != ir.DataType.STRING
        and not isinstance(slot.tensor, Densified)
    ]
    held = {f"bnfold:{index}": slot.tensor for index, slot in enumerate(large)}
    with lending(large, [placeholder(tensor, location) for location, tensor in held.items()]):
        return Lent(serialize(model), folder, held)


def _same_file(model: ir.Model) -> Source | None:
    """The file that a model was read from, where that is what it is; None if there is anything else to write."""
    original = original_of(model)
    if original is None or original.source is None or patch(model, original) is not original.proto:
        return None
    if any(isinstance(slot.tensor, ir.ExternalTensor) for slot in slots(model)):
        return None
    return original.source if original.source.is_unchanged() else None


def _choose_external(model: ir.Model) -> list[Slot] | None:
    """The tensors that go to the external file; None where there is to be no such file.

    A tensor that was in an external file stays in one, and what was in the model stays there. New initializers go where
    others of their size are. If the model has become too large for a protobuf, its large initializers go as well.
    """
    found = [
        slot
        for slot in slots(model)
        if slot.tensor.dtype != ir.DataType.STRING and not isinstance(slot.tensor, Densified)
    ]
    sizes = [slot.tensor.nbytes for slot in found if isinstance(slot.tensor, ir.ExternalTensor)]
    sizes += [model.meta[EXTERNAL]] if EXTERNAL in model.meta else []
    inside = sum(slot.tensor.nbytes for slot in found if not isinstance(slot.tensor, ir.ExternalTensor))
    is_too_large = inside > SIZE_LIMIT
    if not sizes and not is_too_large:
        return None
    threshold = THRESHOLD if is_too_large else max(0, min(sizes) - 1)

    def is_chosen(slot: Slot) -> bool:
        if isinstance(slot.tensor, ir.ExternalTensor):
            return True
        may_move = is_too_large or not isinstance(slot.tensor, INSIDE)
        return may_move and slot.is_initializer and slot.tensor.nbytes > threshold

    return [slot for slot in found if is_chosen(slot)]


def _arrange(chosen: list[Slot]) -> tuple[list[int], Run]:
    """The offset of each tensor in one file, and the file. Tensors that are the same bytes of a file are there once."""
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
    pending: deque[Future[tuple[bytes | memoryview, bytes]]] = deque()
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
        """Note that more bytes are written.

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
        """Wait until every write is on the disk.

        Raises:
            OSError: it cannot be.
        """
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """Stop, whether or not all is on the disk."""
        self._thread.shutdown()


def _make(size: int, make: Callable[[], bytes | memoryview]) -> tuple[bytes | memoryview, bytes]:
    """Some bytes and their hash."""
    content = make()
    assert len(content) == size
    return content, hashlib.sha256(content).digest()


def _identity(tensor: ir.TensorProtocol) -> object:
    """A key that two tensors share if they are the same bytes of the same file."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.path, tensor.offset or 0, tensor.nbytes
    return tensor
