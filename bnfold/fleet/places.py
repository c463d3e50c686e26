"""Where models lie: under a path of this machine, or under the URL of a store that fsspec knows.

A name is what the user wrote, or that with a relative path behind it: a path, or a URL. A stamp is a short text that is
another when the file is another (size and times, or the tag that the store gives to content), read without the content.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from stat import S_ISDIR
from typing import Any, Protocol

from bnfold.errors import BnfoldError, InvalidModelError, MissingExtraError, OutputError, one_line

PIECE = 1 << 22
"""How much of a file is in memory at once."""

STAGING = ".bnfold"
"""How the folders end in which outputs are made."""

TAGS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "blob_id", "crc32c")
TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Where stores tell of a file's content, or when it was written."""


class StoreError(BnfoldError):
    """A store that cannot be reached or read: no credentials, no such bucket, no network."""


@dataclass(frozen=True)
class Found:
    """A file: its name, its path below where it was looked for, its size with external data, and its stamp."""

    name: str
    relative: str
    bytes: int
    stamp: str


class Store(Protocol):
    """What holds files. All of it raises `BnfoldError` where it cannot be done."""

    def is_folder(self, name: str) -> bool:
        """Whether there is such a folder. Where there is neither folder nor file, that is an error."""
        ...

    def describe(self, name: str) -> Found:
        """A file, as it is now."""
        ...

    def walk(self, root: str) -> Iterator[Found]:
        """All files below a folder, one folder after the other. A folder that is missing has none."""
        ...

    def digest(self, name: str) -> str:
        """SHA-256 of a file."""
        ...

    def stage(self, name: str, folder: Path) -> Path:
        """The file on this machine: where it is, or as a copy in the folder."""
        ...


def is_url(name: str) -> bool:
    """Whether a name is a URL."""
    return "://" in name


def join(root: str, relative: str) -> str:
    """The name of a file below a folder."""
    return f"{root.rstrip('/')}/{relative}" if is_url(root) else str(Path(root, relative))


def seen_from(folder: str, name: str) -> str:
    """A name whose relative path starts from a folder, as it has to be used elsewhere."""
    return name if is_url(name) else str(Path(folder, name))


def sibling(name: str, other: str) -> str:
    """The name of another file in the same folder."""
    return f"{name.rpartition('/')[0]}/{other}" if is_url(name) else str(Path(name).with_name(other))


def last(name: str) -> str:
    """A name without its folders."""
    return PurePosixPath(name).name if is_url(name) else Path(name).name


def is_inside(name: str, folder: str) -> bool:
    """Whether a name is a folder, or lies below it, wherever links lead."""
    if is_url(name) or is_url(folder):
        return f"{name.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")
    return Path(os.path.realpath(name)).is_relative_to(os.path.realpath(folder))


def store_of(name: str) -> Store:
    """The store that holds what has this name.

    Raises:
        MissingExtraError: fsspec, or the package that it needs for such URLs, is not installed.
        StoreError: fsspec knows no such store.
    """
    return Remote(filesystem(name.partition("://")[0])) if is_url(name) else LOCAL


@cache
def filesystem(protocol: str) -> Any:
    """The file system of fsspec for a protocol."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("URLs need fsspec: pip install 'bnfold[fleet]'") from error
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise MissingExtraError(f"{protocol}://: {one_line(str(error))}") from error
    except ValueError as error:
        raise StoreError(f"{protocol}://: {one_line(str(error))}") from error


@dataclass(frozen=True)
class Local:
    """The file system of this machine."""

    def is_folder(self, name: str) -> bool:
        """As `Store` says."""
        try:
            return S_ISDIR(Path(name).stat().st_mode)
        except OSError as error:
            raise InvalidModelError(f"{name}: {_reason(error)}") from error

    def describe(self, name: str) -> Found:
        """As `Store` says."""
        try:
            state = Path(name).stat()
        except OSError as error:
            raise InvalidModelError(f"{name}: {_reason(error)}") from error
        return Found(name, last(name), state.st_size + _data_size(name, _size), _stamp(state))

    def walk(self, root: str) -> Iterator[Found]:
        """As `Store` says. Links to folders are not followed, since they may lead back."""
        yield from self._walk(root, "")

    def _walk(self, root: str, below: str) -> Iterator[Found]:
        folders: list[str] = []
        try:
            with os.scandir(join(root, below)) as entries:
                for entry in entries:
                    relative = f"{below}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if not (entry.name.startswith(".") and entry.name.endswith(STAGING)):
                            folders.append(f"{relative}/")
                    elif entry.is_file():
                        state = entry.stat()
                        name = join(root, relative)
                        yield Found(name, relative, state.st_size + _data_size(name, _size), _stamp(state))
        except FileNotFoundError:
            return
        except OSError as error:
            raise InvalidModelError(f"{join(root, below)}: {_reason(error)}") from error
        for folder in folders:
            yield from self._walk(root, folder)

    def digest(self, name: str) -> str:
        """As `Store` says."""
        found = hashlib.sha256()
        try:
            with open(name, "rb") as file:  # noqa: PTH123
                while piece := file.read(PIECE):
                    found.update(piece)
        except OSError as error:
            raise InvalidModelError(f"{name}: {_reason(error)}") from error
        return found.hexdigest()

    def stage(self, name: str, folder: Path) -> Path:
        """As `Store` says: the file itself."""
        return Path(name)


LOCAL = Local()

DATA = ("{0}.data", "{0}_data", "{1}.data", "{1}.bin", "{1}_data", "{1}.weights")
"""How exporters call the external data of a model of that name, or of that name without its ending."""


def _data_size(name: str, size_of: Callable[[str], int]) -> int:
    """The size of a model's external data, told by its usual names, since the model is not read here."""
    stem, dot, ending = name.rpartition(".")
    return sum(size_of(form.format(name, stem)) for form in DATA) if dot and ending == "onnx" else 0


def _size(name: str) -> int:
    """The size of a file of this machine; 0 where there is none."""
    try:
        return Path(name).stat().st_size
    except OSError:
        return 0


def _stamp(state: os.stat_result) -> str:
    """Size, times and place. No program sets the time of the last change of a file's state at will."""
    return f"{state.st_size}-{state.st_mtime_ns}-{state.st_ctime_ns}-{state.st_ino}"


def _reason(error: OSError) -> str:
    return "no such file or folder" if error.errno == errno.ENOENT else str(error.strerror)


@dataclass(frozen=True)
class Remote:
    """A store behind a file system of fsspec."""

    system: Any

    def _name(self, path: str) -> str:
        return str(self.system.unstrip_protocol(path))

    def _path(self, name: str) -> str:
        return str(self.system._strip_protocol(name))

    def is_folder(self, name: str) -> bool:
        """As `Store` says."""
        with reaching(name):
            return bool(self.system.info(self._path(name))["type"] == "directory")

    def describe(self, name: str) -> Found:
        """As `Store` says."""
        with reaching(name):
            self.system.invalidate_cache()
            return self._found(self.system.info(self._path(name)), last(name))

    def _found(self, info: dict[str, Any], relative: str) -> Found:
        known = [str(info[key]) for key in TAGS if info.get(key)][:1] or [str(info.get(key, "")) for key in TIMES]
        size = int(info.get("size") or 0)
        return Found(self._name(info["name"]), relative, size, "-".join([str(size), *filter(None, known)]))

    def walk(self, root: str) -> Iterator[Found]:
        """As `Store` says."""
        path = self._path(root).rstrip("/")
        with reaching(root):
            if not self.system.exists(path):
                return
        with reaching(root):
            for folder, _, files in self.system.walk(path, detail=True, on_error="raise"):
                sizes = {str(info["name"]): int(info.get("size") or 0) for info in files.values()}
                for info in files.values():
                    found = self._found(info, str(info["name"])[len(path) + 1 :])
                    data = _data_size(str(info["name"]), lambda name, sizes=sizes: sizes.get(name, 0))  # type: ignore[misc]
                    yield replace(found, bytes=found.bytes + data)
                self.system.invalidate_cache(folder)  # or all listings stay in memory

    def digest(self, name: str) -> str:
        """As `Store` says."""
        found = hashlib.sha256()
        with reaching(name), self.system.open(self._path(name), "rb", cache_type="none") as file:
            while piece := file.read(PIECE):
                found.update(piece)
        return found.hexdigest()

    def stage(self, name: str, folder: Path) -> Path:
        """As `Store` says: a copy."""
        target = folder / last(name)
        with reaching(name):
            self.system.get_file(self._path(name), str(target))
        return target

    def put(self, file: Path, name: str) -> None:
        """Write a file there, which an object store does all or nothing.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with reaching(name):
                self.system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                self.system.put_file(str(file), self._path(name))
                self.system.invalidate_cache()
        except StoreError as error:
            raise OutputError(str(error)) from error

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with reaching(name):
            self.system.invalidate_cache()
            return bool(self.system.exists(self._path(name)))


@contextmanager
def reaching(name: str) -> Iterator[None]:
    """Within this context, errors of a store are `StoreError`s that name it."""
    try:
        yield
    except BnfoldError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{name}: no such file or folder") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(f"{name}: no space left on the disk of the worker") from error
        raise StoreError(f"{name}: {one_line(str(error.strerror or error), 200)}") from error
    except Exception as error:  # each package behind fsspec has errors of its own, without a common class
        raise StoreError(f"{name}: {type(error).__name__}: {one_line(str(error), 200)}") from error
