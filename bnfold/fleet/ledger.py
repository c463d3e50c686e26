"""The ledger: a file with one JSON document a line, one line a model, appended as models finish.

A line is on the disk before the next is begun. Whoever dies in the middle of one leaves half a line, which the next run
takes away. A model that is done again gets a new line, which counts; the old one goes when a run has ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from bnfold.errors import BnfoldError, InvalidModelError, OutputError
from bnfold.fleet.task import Line, identity_of_line

try:
    import fcntl
except ImportError:  # where there are no such locks, nobody is kept out
    fcntl = None  # type: ignore[assignment]

NAME = "bnfold-fleet.jsonl"
"""The name of the ledger in a folder of outputs."""


class LedgerError(BnfoldError):
    """A ledger that cannot be used: another run has it, or it is none."""


class Ledger:
    """A ledger that this process alone writes, from `with` on.

    Raises:
        OutputError: it cannot be written.
        LedgerError: another run uses it, or it is no ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO

    def __enter__(self) -> Ledger:
        self._file = self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        """Open the file, and take it for this process alone."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                file = self.path.open("a+b")
                if fcntl is None:
                    break
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    file.close()
                    raise LedgerError(f"{self.path}: another run uses this ledger") from error
                if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    break  # else it was replaced meanwhile
                file.close()
            return file
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error

    def scan(self) -> Iterator[tuple[bytes, int]]:
        """What each line is about, and where it begins. Half a line at the end is taken away.

        Raises:
            LedgerError: a line in the middle is none of a ledger.
        """
        self._file.seek(0)
        offset = 0
        for number, text in enumerate(self._file, 1):
            if not text.endswith(b"\n"):
                self._file.truncate(offset)
                return
            try:
                yield identity_of_line(json.loads(text)), offset
            except (ValueError, KeyError, TypeError) as error:
                raise LedgerError(f"{self.path}:{number}: not a line of a ledger") from error
            offset += len(text)

    def append(self, line: Line) -> int:
        """Add a line, which is on the disk afterwards; gives where it begins.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self._file.seek(0, os.SEEK_END)
            offset = self._file.tell()
            self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error
        return offset

    def read(self, offset: int) -> Line:
        """The line that begins there."""
        self._file.seek(offset)
        line: Line = json.loads(self._file.readline())
        return line

    def compact(self, is_current: Callable[[bytes, int], bool]) -> None:
        """Keep the lines that are current, in their order: all of them or, whoever dies on the way, as it was.

        Args:
            is_current: says it of a line, given what it is about and where it begins.

        Raises:
            OutputError: it cannot be written.
        """
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with fresh.open("wb") as file:
                self._file.seek(0)
                offset = 0
                for text in self._file:
                    if is_current(identity_of_line(json.loads(text)), offset):
                        file.write(text)
                    offset += len(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error
        finally:
            fresh.unlink(missing_ok=True)


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a ledger that count, in the order in which they were written: the last of each model.

    Raises:
        InvalidModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            latest: dict[bytes, int] = {}
            offset = 0
            for text in file:
                if text.endswith(b"\n"):
                    latest[identity_of_line(json.loads(text))] = offset
                offset += len(text)
            for offset in sorted(latest.values()):
                file.seek(offset)
                yield json.loads(file.readline())
    except OSError as error:
        raise InvalidModelError(f"{path}: {error.strerror}") from error
