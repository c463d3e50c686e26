"""The provenance of a record, which makes it evidence: versions, date, command, and hashes of the files."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bnfold.bench.fingerprint import versions
from bnfold.bench.models import digest
from bnfold.errors import BnfoldError
from bnfold.frontends.door import open_model
from bnfold.frontends.limits import UNLIMITED
from bnfold.frontends.protocol import OpenOptions
from bnfold.report.documents import Provenance


def trace(command: Sequence[str], models: Mapping[str, Path], seed: int | None) -> Provenance:
    """The provenance of a record that is made now.

    Args:
        command: the command line, without the program.
        models: for the name of each model file, the path where it can be read now. External data is found from there.
        seed: the seed of drawn inputs; None where none are drawn.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["bnfold", *command],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": versions(),
        "files": dict(_digests(models)),
        "seed": seed,
    }


def _digests(models: Mapping[str, Path]) -> Iterator[tuple[str, str | None]]:
    """SHA-256 of each file; None for one that cannot be read."""
    for name, path in models.items():
        yield name, _digest(path)
        try:
            others = [file for file in open_model(path, OpenOptions(limits=UNLIMITED)).files if file != path]
        except BnfoldError:
            continue
        for other in others:
            yield str(Path(name).with_name(other.name)), _digest(other)


def _digest(path: Path) -> str | None:
    try:
        return digest([path])
    except BnfoldError:
        return None
