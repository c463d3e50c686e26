"""What a worker does with a model: stage it, run the single command on it, publish the result, and write its line."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, InvalidModelError, OutputError, OutputExistsError, one_line
from bnfold.fleet.launcher import LostError, launcher
from bnfold.fleet.places import LOCAL, Remote, Store, is_url, last, seen_from, sibling, store_of
from bnfold.fleet.task import Line, Task, failed, line_of, options_of
from bnfold.fleet.zygote import Ending
from bnfold.frontends.onnx.files.publishing import publish, staging
from bnfold.frontends.protocol import Written
from bnfold.runtimes.child import CrashError

TRIES = 2
"""How often a model is tried whose process was killed together with the one that forked it."""


class TooLateError(CrashError):
    """A model that was ended since it took more time than one may."""


class TooLargeError(CrashError):
    """A model that takes more memory than a worker has."""


class NoRecordError(CrashError):
    """A run of the single command that ended without a record: options that it does not take, or a bug of it."""


@dataclass(frozen=True)
class Place:
    """A worker: its name, a folder for what is staged, and the bytes of memory that a model may take."""

    name: str
    scratch: Path
    memory: int


def work(tasks: Iterable[Task], place: Place, tell: Callable[[str, int, str], None]) -> list[tuple[int, str]]:
    """Work on models, one after the other; gives the number and the line of each.

    Args:
        tasks: the models.
        place: this worker.
        tell: told of each model when it begins ("begin", its number, its name) and when it has ended ("line", its
            number, its line), so that nothing of it is lost if the worker dies on the next.
    """
    lines: list[tuple[int, str]] = []
    for task in tasks:
        tell("begin", task.number, task.item.source)
        lines.append((task.number, json.dumps(perform(task, place), ensure_ascii=False)))
        tell("line", *lines[-1])
    return lines


def perform(task: Task, place: Place) -> Line:
    """Work on a model; gives its line, or the stamps of its files where it is as the ledger says."""
    measured: dict[str, Any] = {"worker": place.name}
    try:
        if task.known and (stamps := _current(task)) is not None:
            return {"unchanged": True, "stamps": stamps}
        with tempfile.TemporaryDirectory(prefix="bnfold-", dir=place.scratch, ignore_cleanup_errors=True) as folder:
            return _Run(task, Path(folder), place, measured).line()
    except BnfoldError as error:
        return failed(task.item, task.order, error, **measured)
    except OSError as error:
        problem = OutputError(f"the disk of the worker: {error.strerror or error}")
        return failed(task.item, task.order, problem, **measured)


def _current(task: Task) -> dict[str, str] | None:
    """The stamps of the files of a model, if all of them have the digests that the ledger says; else None."""
    stamps: dict[str, str] = {}
    for name, digest in task.known.items():
        store, at = store_of(name), seen_from(task.order.folder, name)
        try:
            stamps[name] = store.describe(at).stamp
            if store.digest(at) != digest:
                return None
        except BnfoldError:
            return None  # it is missing: the model is done again, which says what is wrong
    return stamps


class _Run:
    """One run of the single command, in a folder of its own.

    What the command line calls a staged file is known here by its path there, and in the line by its name.
    """

    def __init__(self, task: Task, folder: Path, place: Place, measured: dict[str, Any]) -> None:
        self.task, self.folder, self.place, self.measured = task, folder, place, measured
        self.item, self.order = task.item, task.order
        self.names: dict[str, str] = {}

    def line(self) -> Line:
        models = [self._stage(name) for name in filter(None, (self.item.reference, self.item.source))]
        if self.item.output is None or self.order.command != "fuse":
            return self._measured(*self._run(models, None))
        with ExitStack() as stack:
            place = self.folder
            if not is_url(self.item.output):
                output = self._path(self.item.output)
                try:
                    output.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise OutputError(f"{self.item.output}: {error.strerror}") from error
                place = stack.enter_context(staging(output))
            (place / "out").mkdir()  # the single command locks the folder that it writes to, and so does the staging
            target = place / "out" / last(self.item.output)
            self.names[str(target)] = self.item.output
            ending, record = self._run(models, target)
            if ending.code == 0:
                self._publish(target, record)
            return self._measured(ending, record)

    def _path(self, name: str) -> Path:
        """The path of a file of this machine."""
        return Path(self.order.folder, name)

    def _stage(self, name: str) -> str:
        """What the command line calls a model; a model of a store is fetched, with its external data."""
        if not is_url(name):
            return name
        store = store_of(name)
        place = Path(tempfile.mkdtemp(dir=self.folder))
        model = store.stage(name, place)
        self.names[str(model)] = name
        for location in _external(model):
            target = model.parent / location
            target.parent.mkdir(parents=True, exist_ok=True)
            self.names[str(target)] = sibling(name, location)
            store.stage(sibling(name, location), target.parent)
        return str(model)

    def _run(self, models: list[str], output: Path | None) -> tuple[Ending, dict[str, Any]]:
        """Run the single command: how it ended, and its record or that of its error."""
        arguments = [self.order.command, "--json", *options_of(self.order, self.item)]
        arguments += ["-o", str(output), "--", *models] if output is not None else ["--", *models]
        streams = [self.folder / "record", self.folder / "messages"]
        kind = "pt2" if any(model.endswith(".pt2") for model in models) else "onnx"
        ending = self._ending(kind, arguments, streams)
        self.measured |= {"seconds": ending.seconds, "peak_bytes": ending.peak_bytes}
        said = streams[1].read_text(errors="replace").strip().splitlines()
        text = streams[0].read_text(errors="replace")
        if ending.signal or not text:
            raise self._failure(ending, said)
        record = json.loads(text)
        return ending, _renamed(record, self.names)

    def _ending(self, kind: str, arguments: list[str], streams: list[Path]) -> Ending:
        folder = self.order.folder if Path(self.order.folder).is_dir() else str(self.folder)  # elsewhere, all are URLs
        for _ in range(TRIES):
            try:
                with launcher(kind) as ready:
                    return ready.run(arguments, folder, streams, self.order.seconds, self.place.memory)
            except LostError:
                continue
        raise CrashError(f"{self.item.source}: the process that runs it was killed {TRIES} times: out of memory?")

    def _failure(self, ending: Ending, said: list[str]) -> BnfoldError:
        """The error of a run that left no record."""
        name, last_words = self.item.source, one_line(said[-1], 200) if said else ""
        if ending.cause == "time":
            return TooLateError(f"{name}: ended, since it took more than {self.order.seconds:g} seconds")
        if ending.cause == "memory":
            size = self.place.memory / 1e9
            return TooLargeError(f"{name}: ended, since it took more memory than a worker has ({size:.3g} GB)")
        if ending.signal:
            how = f"signal {ending.signal}, {signal.Signals(ending.signal).name}"
            return CrashError(f"{name}: the process that ran it was ended ({how})", ending.signal)
        return NoRecordError(f"{name}: {last_words or f'exit code {ending.code}'}")

    def _publish(self, target: Path, record: dict[str, Any]) -> None:
        """Put a result where it belongs: all of it or nothing.

        Raises:
            OutputError: it cannot be written, or another file is there.
        """
        output = self.item.output
        assert output is not None
        data = [target.with_name(last(name)) for name in self._outputs(record) if name != output]
        written = Written(target, data[0] if data else None)
        if is_url(output):
            store = store_of(output)
            assert isinstance(store, Remote)
            self._insist_on_replacing(store, output, store.exists(output), target)
            for file in written.files:  # the model last
                store.put(file, sibling(output, file.name))
        else:
            place = self._path(output)
            self._insist_on_replacing(LOCAL, str(place), place.exists(), target)
            publish(written, place)

    def _outputs(self, record: dict[str, Any]) -> list[str]:
        """The names of the files of the result."""
        output = self.item.output
        assert output is not None
        files = record["provenance"]["files"]
        return [name for name in files if name == output or name.startswith(f"{output}.")]

    def _insist_on_replacing(self, store: Store, name: str, is_there: bool, fresh: Path) -> None:
        """Check that what is there, if something is, may be replaced: it is what the ledger tells of, or the same."""
        if not is_there or self.order.overwrite:
            return
        there = store.digest(name)
        if there not in (self.task.last_output, LOCAL.digest(str(fresh))):
            raise OutputExistsError(
                f"{self.item.output}: exists already, and the ledger does not know it; use --overwrite to replace it"
            )

    def _measured(self, ending: Ending, record: dict[str, Any]) -> Line:
        """The line of a run that left a record."""
        files = record.get("provenance", {}).get("files", {})
        stamps: dict[str, str] = {}
        for name, digest in files.items():
            if digest is not None:
                stamps[name] = store_of(name).describe(seen_from(self.order.folder, name)).stamp
        return line_of(self.item, self.order, record, ending.code, files=files, stamps=stamps, **self.measured)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A record in which staged files have the names that they have for the user."""
    if isinstance(value, str):
        for path, name in names.items():
            value = value.replace(path, name)
        return value
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if isinstance(value, dict):
        return {_renamed(key, names): _renamed(each, names) for key, each in value.items()}
    return value


def _external(model: Path) -> list[str]:
    """The files of external data that a staged ONNX model refers to, in its folder; none that lead out of it."""
    if model.suffix == ".pt2":
        return []
    from bnfold.frontends.onnx.files.locations import locations

    try:
        found = locations(model)
    except InvalidModelError:
        return []  # the single command says what is wrong with it
    return [each for each in found if not Path(each).is_absolute() and ".." not in Path(each).parts]
