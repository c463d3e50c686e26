"""A process of its own in which functions run that call runtimes, so that a crash or a hang is an error with a name.

`bnfold.runtimes.child` starts a new interpreter for one short job. Here the process is a fork of this one where the
system has that, which costs milliseconds, and what passes between the two is pickled.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, BinaryIO, NoReturn, TypeVar

from bnfold.errors import BnfoldError, IncomparableError
from bnfold.runtimes.child import CrashError
from bnfold.runtimes.forked import die_with_parent
from bnfold.runtimes.stages import WATCHER, Search, Stage

T = TypeVar("T")

Progress = Callable[[str, int, int], None]

SECONDS = 600.0
"""How long a runtime may take to load a model, or to run it once."""

PATIENCE = 60.0
"""How long the node in which a runtime died is looked for."""

METHOD = "fork" if sys.platform == "linux" else "spawn"
"""How the process starts. Elsewhere, libraries of the system do not survive a fork."""

FROM_OUTSIDE = frozenset(
    getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
"""Signals that the runtime did not cause itself."""


@dataclass(frozen=True)
class _Job:
    """One call. `progress` is whether the function reports its progress."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    progress: bool


@dataclass
class _Watch:
    """The stage that was entered last: how many there were before, and since when."""

    last: Stage | None = None
    is_inside: bool = False
    count: int = 0
    since: float = field(default_factory=time.monotonic)

    def enter(self, stage: Stage) -> None:
        self.last, self.is_inside, self.since = stage, True, time.monotonic()
        self.count += 1


class Apart:
    """A process of its own, from `with` on. Enter it while nothing has threads yet; it waits for `call`.

    Args:
        seconds: how long a runtime may take to load a model, or to run it once.
        method: how the process starts, as of `multiprocessing`.
        sought: the number of the stage that is searched for the node in which it dies, instead of entered; 0 for none.
    """

    def __init__(self, seconds: float = SECONDS, method: str = METHOD, sought: int = 0) -> None:
        self._seconds = seconds
        context: Any = get_context(method)
        self._connection, self._theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._theirs, self._connection, sought, seconds), daemon=True
        )

    def __enter__(self) -> Apart:
        with _safe_path():
            self._process.start()
        self._theirs.close()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._connection.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.join()

    def call(self, function: Callable[..., T], *arguments: Any, progress: Progress | None = None, **options: Any) -> T:
        """Call a function there. What it writes to standard error appears here once it has ended.

        Args:
            function: a function of a module.
            *arguments: what it is called with.
            progress: what its `progress` reports to, where it has one.
            **options: more of what it is called with.

        Raises:
            CrashError: a runtime crashed, or the process was killed.
            IncomparableError: a runtime takes too long.
            BnfoldError: what the function raises.
        """
        job, watch = _Job(function, arguments, options, progress is not None), _Watch()
        try:
            self._connection.send(job)
            while True:
                if not self._connection.poll(self._left(watch)):
                    self._give_up(job, watch)
                match self._connection.recv():
                    case "enter", stage:
                        watch.enter(stage)
                    case "leave", _:
                        watch.is_inside = False
                    case "progress", step if progress is not None:
                        progress(*step)
                    case "done", (result, said):
                        sys.stderr.write(said)
                        done: T = result
                        return done
                    case "error", error:
                        raise error
        except (EOFError, ConnectionError):
            self._process.join()
        raise self._crash(job, watch)

    def _left(self, watch: _Watch) -> float | None:
        return max(0.0, watch.since + self._seconds - time.monotonic()) if watch.is_inside else None

    def _give_up(self, job: _Job, watch: _Watch) -> NoReturn:
        self._end()
        assert watch.last is not None
        stage, node = watch.last, self._find_node(job, watch)
        where = f", in {node!r}" if node else ""
        raise IncomparableError(
            f"{stage.label}: {stage.action} it takes {stage.runtime} more than {self._seconds:g} seconds{where}"
        )

    def _crash(self, job: _Job, watch: _Watch) -> CrashError:
        code = self._process.exitcode or 0
        number = max(0, -code)
        how = f"signal {number}, {signal.Signals(number).name}" if number else f"exit code {code}"
        stage = watch.last
        if stage is None or not watch.is_inside:
            return CrashError(f"the process that runs the models ended ({how})", number)
        if number in FROM_OUTSIDE:
            doing = f"was killed {stage.action} it ({how}): perhaps it takes too much memory"
            return CrashError(f"{stage.label}: {stage.runtime} {doing}", number)
        node = self._find_node(job, watch)
        where = f", in {node!r}" if node else ""
        return CrashError(f"{stage.label}: {stage.runtime} crashed {stage.action} it{where} ({how})", number)

    def _find_node(self, job: _Job, watch: _Watch) -> str | None:
        """Do it again in a new interpreter, up to the stage that failed."""
        deadline = time.monotonic() + PATIENCE
        with Apart(self._seconds, "spawn", watch.count) as again:
            try:
                again._connection.send(job)
                while again._connection.poll(max(0.0, deadline - time.monotonic())):
                    kind, content = again._connection.recv()
                    if kind == "found":
                        node: str | None = content
                        return node
            except (EOFError, ConnectionError):
                return None  # it died in another place this time
        return None


@contextmanager
def _safe_path() -> Iterator[None]:
    """Within this context, new interpreters import nothing from the working folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


# ------------------------------------------------------------------------------------------------ in the other process


class _Found(BaseException):
    """Ends a job once the stage that is sought was searched."""


class _Teller:
    """Tells the other side of each stage. A `bnfold.runtimes.stages.Watcher`."""

    def __init__(self, connection: Connection, sought: int, seconds: float) -> None:
        self._connection, self._sought, self._seconds = connection, sought, seconds
        self._count = 0

    @property
    def is_searching(self) -> bool:
        return self._sought > 0

    def enter(self, stage: Stage, search: Search | None) -> None:
        self._count += 1
        if self._count == self._sought:
            self._connection.send(("found", search and search(self._seconds)))
            raise _Found
        self._connection.send(("enter", stage))

    def leave(self) -> None:
        self._connection.send(("leave", None))


def _serve(connection: Connection, theirs: Connection, sought: int, seconds: float) -> None:
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    WATCHER.set(_Teller(connection, sought, seconds))
    with tempfile.TemporaryFile() as said:
        for stream in (1, 2):  # a runtime that dies says so in several lines
            os.dup2(said.fileno(), stream)
        sys.stdout = sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        while True:
            try:
                job: _Job = connection.recv()
                connection.send(_do(job, connection, said))
            except (_Found, EOFError, ConnectionError):
                return


def _do(job: _Job, connection: Connection, said: BinaryIO) -> tuple[str, Any]:
    options = job.options
    if job.progress:
        options = {**options, "progress": lambda *step: connection.send(("progress", step))}
    try:
        result = job.function(*job.arguments, **options)
    except BnfoldError as error:
        return "error", error
    except MemoryError:
        return "error", IncomparableError("it takes too much memory")
    except Exception:  # a bug: it must be seen in the process that asked
        return "error", RuntimeError(f"in the process that runs the models:\n{traceback.format_exc()}")
    sys.stderr.flush()
    said.seek(0)
    text = said.read().decode(errors="replace")
    said.seek(0)
    said.truncate()
    return "done", (result, text)
