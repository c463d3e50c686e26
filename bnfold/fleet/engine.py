"""Runs a command on many models: finds them, hands them to workers, and writes down what became of each."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from bnfold.errors import BnfoldError, IncomparableError, InvalidModelError, OutputError, plural
from bnfold.fleet import cluster as clusters
from bnfold.fleet.catalogue import Catalogue
from bnfold.fleet.cluster import RESOURCE, Cluster, ClusterError
from bnfold.fleet.ledger import NAME, Ledger
from bnfold.fleet.places import LOCAL, is_url, join, store_of
from bnfold.fleet.sources import UsageError, Wanted, collect
from bnfold.fleet.task import COMMANDS, Command, Item, Line, Order, Task, failed, identity, is_answered
from bnfold.fleet.totals import Totals
from bnfold.fleet.worker import Place, TooLargeError, work
from bnfold.frontends.onnx.files.publishing import staging
from bnfold.runtimes.child import CrashError

SECONDS = 1800.0
"""How long a model may take."""

PROCESS, FACTOR = 256 << 20, 4
"""The memory that a model needs: that of a process that has loaded a runtime, and so many times its own size."""

BATCH, BATCH_BYTES = 16, 16 << 20
"""How many small models are one task of Dask, and how many bytes they may have together."""

WINDOW = 2
"""How many tasks there are for each that can run."""

ATTEMPTS = 3
"""How often a model is tried on which its worker dies."""

LOSSES = 30
"""How often it is handed out again after its worker has died on another model, or on none."""

TICK = 0.5
"""Seconds between two looks at the workers."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: models done and in all, and the names of those that run now."""

    done: int
    total: int
    running: tuple[str, ...]


@dataclass(frozen=True)
class FleetResult:
    """What became of a fleet.

    Attributes:
        command: the command.
        totals: sums over all models of the run, also those that an earlier run has done.
        unchanged: how many of them were as the ledger says, and not done again.
        ledger: the ledger; None where none was kept.
        out: the folder of the outputs; None where there is none.
        seconds: the time that all of it took.
        workers: how many models were worked on at a time; 0 where none had to be.
        left_out: how many models were not begun, since `keep_going` was False.
    """

    command: Command
    totals: Totals
    unchanged: int
    ledger: Path | None
    out: str | None
    seconds: float
    workers: int
    left_out: int

    @property
    def exit_code(self) -> int:
        """0, all went well; 1, an answer is no; 3, a model has no answer; 2, no more than outputs that exist."""
        return self.totals.exit_code


def _silent(progress: Progress) -> None:
    pass


def _ignore(line: Line) -> None:
    pass


def run(
    command: Command,
    sources: Sequence[str | Path] = (),
    *,
    listed: Path | None = None,
    baseline: str | Path | None = None,
    out: str | Path | None = None,
    ledger: Path | None = None,
    options: Sequence[str] = (),
    overwrite: bool = False,
    workers: int | None = None,
    memory: str | None = None,
    scheduler: str | None = None,
    seconds: float = SECONDS,
    keep_going: bool = True,
    progress: Callable[[Progress], None] = _silent,
    each: Callable[[Line], None] = _ignore,
) -> FleetResult:
    """Run a command on many models, each in a process of its own, and go on where an earlier run stopped.

    A script that calls it needs ``if __name__ == "__main__":``, as every script that starts processes.

    Args:
        command: ``"fuse"``, ``"inspect"``, ``"verify"`` or ``"bench"``.
        sources: files, folders, globs, and URLs of all of these.
        listed: a file that lists further ones, one a line, or as JSON objects with options of their own.
        baseline: for `verify` and `bench`, where the other model of each pair is: that of the same relative path.
        out: for `fuse`, the folder or URL of the results.
        ledger: the ledger; left out, it is in `out` if that is a folder, and nowhere if there is no `out`.
        options: options of the single command, as on its command line.
        overwrite: replace results that the ledger does not know of.
        workers: how many processes; left out, as many as there are cores and memory for.
        memory: the memory of each worker, such as ``"4GB"``.
        scheduler: the address of a running scheduler of Dask, in place of workers of this machine.
        seconds: how long a model may take.
        keep_going: do not stop at the first model that does not end well.
        progress: told of progress.
        each: given the line of every model, at the end.

    Returns:
        The sums. The ledger has the rest.

    Raises:
        BnfoldError: nothing was begun, since the sources, the destination or the workers are wrong.
    """
    began = time.monotonic()
    wanted = Wanted(
        command,
        [str(source) for source in sources],
        listed,
        None if baseline is None else str(baseline),
        None if out is None else str(out).rstrip("/"),
    )
    place = _insist_on_sense(wanted, ledger)
    clusters.require()
    with ExitStack() as stack:
        catalogue = stack.enter_context(Catalogue())
        collect(wanted, catalogue)
        book = stack.enter_context(Ledger(place or catalogue.folder / NAME))
        has_old = [catalogue.note_line(*entry) for entry in book.scan()]
        if has_old and wanted.out is not None and is_url(wanted.out):
            for found in store_of(wanted.out).walk(wanted.out):
                catalogue.note_stamp(found)
        order = Order(command, tuple(options), overwrite, seconds, os.getcwd())  # noqa: PTH109

        @cache
        def ready() -> Cluster:
            """The workers, from the first model on that has to be done."""
            return stack.enter_context(clusters.workers(workers, memory, scheduler))

        fleet = _Fleet(ready, catalogue, book, order, keep_going, progress)
        stack.callback(fleet.sweep)  # after the workers have ended, which began later
        fleet.go()
        totals = Totals()
        for offset in catalogue.told():
            line = book.read(offset)
            totals.add(line)
            each(line)
        if any(has_old) or fleet.has_replaced:
            book.compact(catalogue.is_current)
        return FleetResult(
            command,
            totals,
            fleet.unchanged,
            place,
            wanted.out,
            time.monotonic() - began,
            fleet.slots,
            len(catalogue) - totals.models,
        )


def _insist_on_sense(wanted: Wanted, ledger: Path | None) -> Path | None:
    """Check what is asked for; gives the place of the ledger."""
    if wanted.command not in COMMANDS:
        raise UsageError(f"{wanted.command!r} is none of {', '.join(COMMANDS)}")
    if not wanted.sources and wanted.listed is None:
        raise UsageError("there are no sources")
    if wanted.command == "verify" and wanted.baseline is None and wanted.listed is None:
        raise UsageError("verify needs the models to compare with")
    if wanted.command != "fuse":
        if wanted.out is not None:
            raise UsageError(f"{wanted.command} writes no models")
        return ledger
    if wanted.out is None:
        raise UsageError("fuse needs a destination")
    if ledger is None and is_url(wanted.out):
        raise UsageError(f"{wanted.out}: nothing can be appended there, so the ledger needs a file of this machine")
    if not is_url(wanted.out) and os.path.lexists(wanted.out) and not Path(wanted.out).is_dir():
        raise UsageError(f"{wanted.out}: is not a folder")
    return ledger or Path(join(wanted.out, NAME))


def serve(topic: str, memory: int, tasks: Sequence[Task]) -> list[tuple[int, str]]:
    """Work on a batch, on a worker of Dask; what becomes of each model is told at once, and again at the end."""
    from distributed import get_worker

    worker = get_worker()

    def tell(kind: str, number: int, text: str) -> None:
        worker.log_event(topic, {"kind": kind, "number": number, "text": text})

    return work(tasks, Place(worker.address, Path(worker.local_directory), memory), tell)


def need_of(item: Item) -> int:
    """The memory that a model is expected to need, in bytes."""
    return PROCESS + FACTOR * item.bytes


class _Fleet:
    """A run: what is in the hands of the workers, and what they said that is not written down yet."""

    def __init__(
        self,
        ready: Callable[[], Cluster],
        catalogue: Catalogue,
        ledger: Ledger,
        order: Order,
        keep_going: bool,
        progress: Callable[[Progress], None],
    ) -> None:
        self._ready, self._catalogue, self._ledger, self._order = ready, catalogue, ledger, order
        self._keep_going, self._progress = keep_going, progress
        self._topic = f"bnfold-fleet-{uuid.uuid4()}"
        self._said: Queue[tuple[str, Any, Any]] = Queue()
        self._total, self._done, self._taken = len(catalogue), 0, 0
        self._pending: dict[int, Task] = {}
        self._attempts: Counter[int] = Counter()
        self._losses: Counter[int] = Counter()
        self._batches: dict[Any, list[Task]] = {}
        self._running: dict[int, str] = {}
        self._has_stopped = False
        self.slots = 0
        self.unchanged = 0
        self.has_replaced = False

    @property
    def _cluster(self) -> Cluster:
        if not self.slots:
            cluster = self._ready()
            cluster.client.subscribe_topic(self._topic, self._hear)
            self.slots = cluster.slots
        return self._ready()

    def go(self) -> None:
        """Do all of it.

        Raises:
            ClusterError: the scheduler went away. What is done is in the ledger.
        """
        batches = self._gather(self._tasks())
        while True:
            while not self._has_stopped and len(self._batches) < WINDOW * max(1, self.slots):
                if (batch := next(batches, None)) is None:
                    break
                self._submit(batch)
            self._show()
            if not self._batches:
                break
            self._listen()
        if self.slots:
            self._cluster.client.unsubscribe_topic(self._topic)

    def sweep(self) -> None:
        """Remove what workers that were ended in the middle of a model have left beside its output."""
        for task in self._pending.values():
            output = task.item.output
            if output is not None and not is_url(output) and Path(output).parent.is_dir():
                with suppress(OutputError), staging(Path(output)):
                    pass  # which removes what nobody has locked

    # ------------------------------------------------------------------------------------------------------ what to do

    def _tasks(self) -> Iterator[Task]:
        """The models that have to be done. The others are counted; what cannot be done gets its line."""
        for number, item, offset in self._catalogue.items():
            self._taken += 1
            line = None if offset is None else self._ledger.read(offset)
            task = Task(number, item, self._order)
            if line is not None:
                last = line["files"].get(item.output) if item.output is not None else None
                task = replace(task, last_output=last)
                if is_answered(line, self._order, item):
                    if all(self._stamp(name) == stamp for name, stamp in line["stamps"].items()):
                        self._done += 1
                        self.unchanged += 1
                        self._has_stopped |= not self._keep_going and line["exit_code"] != 0
                        continue
                    task = replace(task, known={name: digest for name, digest in line["files"].items() if digest})
            problem = self._problem(item)
            if problem is None:
                yield task
            else:
                self._write(task, failed(item, self._order, problem))

    def _problem(self, item: Item) -> BnfoldError | None:
        """What makes a model impossible, before anything runs."""
        if item.problem:
            return IncomparableError(item.problem)
        needs, has = need_of(item), self._cluster.memory
        if needs <= has:
            return None
        about = f"needs about {needs / 1e9:.3g} GB of memory, and the largest worker has {has / 1e9:.3g} GB"
        return TooLargeError(f"{item.source}: {about}")

    def _stamp(self, name: str) -> str | None:
        """The stamp of a file as it is now; None where it is missing, or a worker has to look."""
        if is_url(name):
            return self._catalogue.stamp(name)
        try:
            return LOCAL.describe(name).stamp
        except InvalidModelError:
            return None

    def _gather(self, tasks: Iterator[Task]) -> Iterator[list[Task]]:
        """Batches of small models, and large ones alone. Towards the end they are smaller, so that all workers work."""
        batch: list[Task] = []
        size = 0
        for task in tasks:
            if batch and size + task.item.bytes > BATCH_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(task)
            size += task.item.bytes
            left = self._total - self._taken
            if len(batch) >= min(BATCH, 1 + left // (2 * WINDOW * self._cluster.slots)):
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _submit(self, batch: list[Task]) -> None:
        cluster = self._cluster
        needs = {RESOURCE: max(need_of(task.item) for task in batch)} if cluster.has_resource else None
        self._pending |= {task.number: task for task in batch}
        key = f"bnfold-{uuid.uuid4()}"
        future = cluster.client.submit(serve, self._topic, cluster.memory, batch, key=key, resources=needs, pure=False)
        self._batches[future] = batch
        future.add_done_callback(lambda ended: self._said.put(("end", ended, None)))

    # ----------------------------------------------------------------------------------------------------- what is said

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take what a worker tells, in a thread of the client."""
        message = event[1]
        self._said.put((message["kind"], message["number"], message["text"]))

    def _listen(self) -> None:
        try:
            kind, about, text = self._said.get(timeout=TICK)
        except Empty:
            if self._cluster.client.status not in ("running", "connecting"):
                raise ClusterError("the scheduler went away; what is done is in the ledger") from None
            return
        if kind == "begin":
            if about in self._pending:
                self._running[about] = text
        elif kind == "line":
            self._take(about, text)
        else:
            self._end(about)

    def _take(self, number: int, text: str) -> None:
        """Write down what became of a model, once."""
        if number not in self._pending:
            return
        task = self._pending[number]
        line: Line = json.loads(text)
        if line.get("unchanged"):
            self.unchanged += 1
            offset = self._catalogue.offset(identity(self._order.command, task.item))
            line = self._ledger.read(offset) | {"stamps": line["stamps"]}
        else:
            line["attempts"] = 1 + self._attempts[number]
        self._write(task, line)

    def _write(self, task: Task, line: Line) -> None:
        for kept in (self._pending, self._running, self._attempts, self._losses):
            kept.pop(task.number, None)
        offset = self._ledger.append(line)
        self.has_replaced |= self._catalogue.note_line(identity(self._order.command, task.item), offset)
        self._done += 1
        self._has_stopped |= not self._keep_going and line["exit_code"] != 0

    def _end(self, future: Any) -> None:
        """Take what a batch gave. If its worker died, each model that is not done is tried again, by itself.

        Dask blames a worker's death on everything that was handed to it. What had begun is told apart here.

        Raises:
            ClusterError: the scheduler went away.
        """
        from distributed.scheduler import KilledWorker

        batch = self._batches.pop(future)
        if future.status == "finished":
            for number, text in future.result():
                self._take(number, text)
            return
        if future.status != "error":
            raise ClusterError("the scheduler went away; what is done is in the ledger")
        error = future.exception()
        if not isinstance(error, KilledWorker):
            raise error
        others = [task for task in batch if task.number in self._pending]
        for task in [task for task in others if task.number in self._running]:
            others.remove(task)
            self._retry(task, self._attempts, ATTEMPTS)
        for task in others:
            self._retry(task, self._losses, LOSSES)

    def _retry(self, task: Task, deaths: Counter[int], limit: int) -> None:
        """Hand a model out by itself after a death of its worker, unless there were too many."""
        deaths[task.number] += 1
        self._running.pop(task.number, None)
        if deaths[task.number] < limit:
            self._submit([task])
        else:
            problem = f"{task.item.source}: its worker died {plural(limit, 'time')} on it"
            self._write(task, failed(task.item, self._order, CrashError(problem), attempts=limit))

    def _show(self) -> None:
        self._progress(Progress(self._done, self._total, tuple(self._running.values())))
