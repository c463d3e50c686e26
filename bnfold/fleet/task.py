"""One model of a fleet: what is to be done with it, and the line of the ledger that says what was done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final, Literal, get_args

from bnfold.errors import BnfoldError

Command = Literal["fuse", "inspect", "verify", "bench"]

COMMANDS: tuple[Command, ...] = get_args(Command)

SCHEMA: Final = "bnfold/1"

Line = dict[str, Any]
"""A line of the ledger, as `bnfold.report.documents.FleetLine` describes it."""

ANSWERED = {"fuse": (0,), "inspect": (0, 1), "verify": (0, 1), "bench": (0, 1)}
"""The exit codes after which a model need not be done again. A result that was not written is none."""


@dataclass(frozen=True)
class Item:
    """A model, or a pair of models, to work on.

    Attributes:
        source: its name; the candidate of a pair.
        relative: its path below where it was found, which is also that of its output.
        bytes: the size of its files, as far as it is known.
        reference: the other model of a pair.
        options: options of the command line for this model alone.
        problem: what makes it impossible, known before anything runs.
        output: the name of its output, if it has one.
    """

    source: str
    relative: str
    bytes: int = 0
    reference: str | None = None
    options: tuple[str, ...] = ()
    problem: str = ""
    output: str | None = None


@dataclass(frozen=True)
class Order:
    """What is the same for all models of a run.

    Attributes:
        command: the command.
        options: the options of the command line for all models.
        overwrite: replace outputs that no ledger knows of.
        seconds: how long a model may take.
        folder: the folder that relative paths start from.
    """

    command: Command
    options: tuple[str, ...]
    overwrite: bool
    seconds: float
    folder: str


@dataclass(frozen=True)
class Task:
    """A model for a worker.

    Attributes:
        number: its number in the run.
        item: the model.
        order: what is done with it.
        known: the digests of all files of its last line, where that might still be true; else none.
        last_output: the digest of the output that the ledger tells of, which may be replaced.
    """

    number: int
    item: Item
    order: Order
    known: Mapping[str, str] = field(default_factory=dict)
    last_output: str | None = None


def identity(command: str, item: Item) -> bytes:
    """What a model is known by in the ledger."""
    return identity_of([command, item.source, item.reference, item.output])


def identity_of(names: Sequence[str | None]) -> bytes:
    """The same, from its parts."""
    return hashlib.blake2b(json.dumps(names).encode(), digest_size=16).digest()


def identity_of_line(line: Line) -> bytes:
    """The same, from a line."""
    return identity_of([line["command"], line["source"], line["reference"], line["output"]])


def options_of(order: Order, item: Item) -> list[str]:
    """All options of a model."""
    return [*order.options, *item.options]


def is_answered(line: Line, order: Order, item: Item) -> bool:
    """Whether a line is the answer to what is asked now, as long as its files are the same."""
    return bool(
        line["version"] == version("bnfold")
        and line["options"] == options_of(order, item)
        and line["exit_code"] in ANSWERED[order.command]
    )


def line_of(item: Item, order: Order, record: dict[str, Any], exit_code: int, **measured: Any) -> Line:
    """The line of a model.

    Args:
        item: the model.
        order: what was done with it.
        record: the record of the single command, or of its error.
        exit_code: the exit code of the single command.
        **measured: files, stamps, seconds, peak_bytes, worker and attempts, as far as they are known.
    """
    return {
        "schema": SCHEMA,
        "command": order.command,
        "source": item.source,
        "reference": item.reference,
        "output": item.output,
        "relative": item.relative,
        "options": options_of(order, item),
        "version": version("bnfold"),
        "exit_code": exit_code,
        "files": measured.get("files", {}),
        "stamps": measured.get("stamps", {}),
        "bytes": item.bytes,
        "seconds": round(measured.get("seconds", 0.0), 3),
        "peak_bytes": measured.get("peak_bytes"),
        "worker": measured.get("worker"),
        "attempts": measured.get("attempts", 1),
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "record": record,
    }


def failed(item: Item, order: Order, error: BnfoldError, **measured: Any) -> Line:
    """The line of a model for which the single command could not answer."""
    record = {
        "schema": SCHEMA,
        "command": order.command,
        "error": {"kind": type(error).__name__, "message": str(error)},
        "exit_code": error.exit_code,
    }
    return line_of(item, order, record, error.exit_code, **measured)
