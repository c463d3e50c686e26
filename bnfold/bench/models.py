"""The models of a benchmark, described alike whatever their form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import InvalidModelError
from bnfold.frontends.door import find_entry
from bnfold.runtimes.inputs import Declared, Feeds
from bnfold.runtimes.setting import Engine


@dataclass(frozen=True)
class Subject:
    """A model that takes part.

    Attributes:
        name: its name in reports.
        engine: the engine that runs it.
        source: the thing that the engine opens: a path, a module or an exported program.
        file: the model's file; None where it is in memory alone.
        inputs, outputs: its declared inputs and outputs; None where only a run would tell.
        sha256: the hash of the file and its external data.
        file_bytes: the size of both.
        nodes, batchnorms: counted in the graph with its subgraphs and functions.
    """

    name: str
    engine: Engine
    source: Any
    file: Path | None
    inputs: tuple[Declared, ...] | None
    outputs: tuple[str, ...] | None
    sha256: str | None
    file_bytes: int | None
    nodes: int | None
    batchnorms: int | None

    def renamed(self, feed: Feeds, names: Sequence[str]) -> Feeds:
        """The same arrays under this model's names; by position, where the names come from another engine."""
        if self.inputs is None:
            return feed
        if {declared.name for declared in self.inputs} <= set(feed):
            return {declared.name: feed[declared.name] for declared in self.inputs}
        return {declared.name: feed[name] for declared, name in zip(self.inputs, names, strict=True)}


def find_subjects(models: Sequence[Any], folder: Path) -> list[Subject]:
    """Describe models before they run.

    Args:
        models: of any kind, or paths.
        folder: the folder where models that must be files are written.

    Raises:
        InvalidModelError: a model cannot be read.
        UnsupportedModelError: a value is no model.
    """
    return [_find(model, folder / f"{number}", f"model {number}") for number, model in enumerate(models, 1)]


def _find(model: Any, stem: Path, name: str) -> Subject:
    entry = find_entry(model)
    if isinstance(model, str | Path):
        model, name = Path(model), str(model)
    subject: Subject = entry.part(entry.timed).describe_model(model, stem, name)
    return subject


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of the content of files, concatenated."""
    total = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    total.update(block)
        except OSError as error:
            raise InvalidModelError(f"{file}: {error.strerror}") from error
    return total.hexdigest()
