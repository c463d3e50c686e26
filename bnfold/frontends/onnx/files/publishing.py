"""An output that appears complete or not at all.

Everything is written to a temporary folder beside the output, ``.OUT.<random>.bnfold``, and put on the disk; then the
data file is renamed to its final name, which nothing else has, and then the model, which is the moment of the switch.
Whoever dies on the way leaves OUT as it was. What it left behind is removed by the next run to the same OUT: a folder
of that name which no living run has locked is stale.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.frontends.onnx.files.loading import PROTOBUF_LIMIT
from bnfold.frontends.onnx.files.saving import HASH_DIGITS
from bnfold.frontends.protocol import Written

try:
    import fcntl
except ImportError:  # where there are no such locks, nothing is taken for stale
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".bnfold"


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `path`, locked while it is in use; stale ones of `path` are removed.

    Raises:
        OutputError: there can be none.
    """
    lock = None
    try:
        with _locked(path.parent):
            _remove_stale(path)
            folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent))
            lock = _lock(folder)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be written to ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def publish(written: Written, path: Path) -> None:
    """Move a model and its data from the staging folder to where `path` is.

    A data file that the old model alone referred to goes away.

    Raises:
        OutputError: they cannot be moved; `path` is as it was.
    """
    data = None if written.data is None else path.with_name(written.data.name)
    try:
        with _locked(path.parent):
            old = _own_data(path)
            had = data is not None and data.exists()
            try:
                if written.data is not None and data is not None:
                    written.data.replace(data)
                    _flush(path.parent)
                written.model.replace(path)
            except BaseException:
                if data is not None and not had and not _refers(path, data.name):
                    data.unlink(missing_ok=True)
                raise
            _flush(path.parent)
            for each in old - {data}:
                _remove_unread(each)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def beside(texts: Mapping[Path, str]) -> Iterator[None]:
    """Texts in files that appear complete, and stay only if what is done inside succeeds.

    A device or a pipe is written to before that, and is not replaced.

    Raises:
        OutputError: they cannot be written; nothing has been done inside.
    """
    for path in [path for path in texts if path.exists() and not (path.is_file() or path.is_dir())]:
        _write_text(texts[path], path)
        texts = {other: text for other, text in texts.items() if other != path}
    fresh = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    old = {path: path.with_name(f".{path.name}.{os.getpid()}.old") for path in texts}
    try:
        for path, place in fresh.items():
            _write_text(texts[path], place)
        try:
            for path, place in fresh.items():
                _swap(place, path, old[path])
            yield
        except BaseException:
            for path, place in fresh.items():
                if not place.exists():  # it is where it was to be
                    path.unlink(missing_ok=True)
                if old[path].exists():
                    old[path].replace(path)
            raise
    finally:
        for place in (*fresh.values(), *old.values()):
            place.unlink(missing_ok=True)


def _write_text(text: str, path: Path) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if path.is_file():
                os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be written to ({error.strerror})") from error


def _swap(fresh: Path, path: Path, old: Path) -> None:
    """Put a file in the place of another, which is kept."""
    try:
        if path.exists():
            path.replace(old)
        fresh.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def _remove_stale(path: Path) -> None:
    """Remove what runs that died left of an output."""
    prefix = f".{path.name}."
    stale = [
        each
        for each in path.parent.iterdir()
        if each.name.startswith(prefix) and each.name.endswith(SUFFIX) and each.is_dir() and not each.is_symlink()
    ]
    for folder in stale:
        lock = _lock(folder)
        if lock is None:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        for data in _own_data(path):
            _remove_unread(data)


def _own_data(path: Path) -> set[Path]:
    """The files beside `path` that have the name of its external data."""
    pattern = re.compile(re.escape(path.name) + rf"\.[0-9a-f]{{{HASH_DIGITS}}}\.data")
    return {each for each in path.parent.iterdir() if pattern.fullmatch(each.name)}


def _remove_unread(data: Path) -> None:
    """Remove a data file unless a model in the folder refers to it."""
    if not any(_refers(each, data.name) for each in data.parent.iterdir() if each.suffix != ".data"):
        data.unlink(missing_ok=True)


def _refers(model: Path, name: str) -> bool:
    """Whether a file may be a model and mentions a data file; one that cannot be read might."""
    wanted = name.encode()
    try:
        if not model.is_file() or model.stat().st_size > PROTOBUF_LIMIT:
            return False
        with model.open("rb") as file:
            tail = b""
            while chunk := file.read(1 << 22):
                if wanted in tail + chunk:
                    return True
                tail = chunk[-len(wanted) :]
    except OSError:
        return True
    return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let no other run begin, clean up or publish in the folder meanwhile, where the file system has locks."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a network file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Lock a staging folder until the descriptor is closed or the process ends; None if another run has it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _flush(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
