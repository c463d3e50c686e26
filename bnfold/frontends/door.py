"""The one place that knows what a model is: a row for each front end, asked in turn.

A front end is a package that says which objects are its models (`is_model`) and opens them, or the files at paths
(`open_model`). Its row says where it is, and where its models are made ready to run; all is imported when a model needs
it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from bnfold.errors import MissingExtraError, UnsupportedModelError
from bnfold.frontends.protocol import FrontEnd, OpenModel, OpenOptions


@dataclass(frozen=True)
class Entry:
    """A front end's row.

    Attributes:
        package: the front end.
        library: what its models' classes come from; where it was not imported, no object is one of its models.
        suffix: how the names of its files end; None for all that no other entry claims.
        subject: a module with `open_subject`, which makes a model ready for verification.
        timed: a module with `describe_model`, which makes a model ready for timing.
        extra: what installs the library, where it may be missing.
        proof: a module with `begin`, which makes a prover of folds; None where there is none.
    """

    package: str
    library: str
    suffix: str | None
    subject: str
    timed: str
    extra: str | None = None
    proof: str | None = None

    def load(self) -> FrontEnd:
        """The front end.

        Raises:
            MissingExtraError: its library is not installed.
        """
        front_end: FrontEnd = self.part(self.package)
        return front_end

    def part(self, module: str) -> Any:
        """A module that needs the library.

        Raises:
            MissingExtraError: it is not installed.
        """
        try:
            return import_module(module)
        except ImportError as error:
            if self.extra is None:
                raise
            raise MissingExtraError(f"{self.library} is not installed: pip install 'bnfold[{self.extra}]'") from error

    def claims(self, model: object) -> bool:
        """Whether a model, or the file at a path, is for this front end."""
        if isinstance(model, str | Path):
            return self.suffix in (None, Path(model).suffix)
        return self.library in sys.modules and self.load().is_model(model)


ENTRIES: list[Entry] = [
    Entry(
        "bnfold.frontends.torch",
        "torch",
        ".pt2",
        "bnfold.verification.torch_subject",
        "bnfold.bench.torch_models",
        "torch",
        "bnfold.verification.torch_proof",
    ),
    Entry(
        "bnfold.frontends.onnx",
        "onnx",
        None,
        "bnfold.verification.onnx_subject",
        "bnfold.bench.onnx_models",
        proof="bnfold.verification.onnx_proof",
    ),
]


def find_entry(model: object) -> Entry:
    """The row of the front end that reads a model, or the file at a path.

    Raises:
        UnsupportedModelError: there is none.
    """
    for entry in ENTRIES:
        if entry.claims(model):
            return entry
    raise UnsupportedModelError(f"bnfold cannot read a {type(model).__module__}.{type(model).__qualname__}")


def open_model(model: Any, options: OpenOptions) -> OpenModel:
    """Open a model of any kind, or the file at a path.

    Raises:
        BnfoldError: it cannot be read.
    """
    return find_entry(model).load().open_model(model, options)
