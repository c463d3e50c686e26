"""The interface of a front end, and of a model that it has opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from bnfold.frontends.limits import LIMITS, Limits
from bnfold.frontends.parameters import Tensor, View
from bnfold.graph.cautions import Caution, DeclarationCaution
from bnfold.graph.outcome import Outcome
from bnfold.graph.protocol import Graph

Cautions = tuple[Caution | DeclarationCaution, ...]
"""Things in a model that look wrong. They stop no fold."""

Replan = Callable[[Graph[Any, Any]], tuple[Outcome, ...]]
"""Plans another view of a model, with the same options."""


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    nodes: int
    bytes: int


@dataclass(frozen=True)
class Written:
    """The files of a model.

    Attributes:
        model: the file that is named.
        data: its external data; None where it has none.
    """

    model: Path
    data: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Both, the data first."""
        return (self.model,) if self.data is None else (self.data, self.model)

    @property
    def bytes(self) -> int:
        """The size of both files together."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class OpenOptions:
    """How a model is opened.

    Attributes:
        inplace: let the edits change the model itself, not a copy.
        limits: how much it may ask for.
        example_inputs: the inputs that a torch module is called with.
        code: whether the forward code of a torch module may change: "keep" forbids it.
        share: let a torch model that is given back share the tensors that no fold changes with the original.
        preserve: methods of a torch module that give back what they gave back; left out, those named ``forward_*``.
        rehearse: plans and folds a view, of a trial that is thrown away.
        observe: given a way to read an ONNX model, makes a way to run it for shapes that are only declared.
        inliner: writes out the calls of functions in an ONNX model, which `bnfold.proof.inlining` does.
        spell_out: write out operators of a runtime that stand for several others, such as a convolution with its
            activation. The result is for reading alone.
    """

    inplace: bool = False
    limits: Limits = LIMITS
    example_inputs: Any = None
    code: Literal["change", "keep"] = "change"
    share: bool = False
    preserve: Sequence[str] | None = None
    rehearse: Callable[[Graph[Any, Any]], None] | None = None
    observe: Callable[[Any], Any] | None = None
    inliner: Any = None
    spell_out: bool = False


class OpenModel(Protocol):
    """A model that can be planned on and changed."""

    @property
    def graph(self) -> View[Any, Any, Any]:
        """Its view; edits change the model."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The tensors that it stores, by name."""
        ...

    def measure(self) -> Size:
        """Its size now. The bytes are those of the files that it was read from."""
        ...

    @property
    def files(self) -> Sequence[Path]:
        """What it was read from; none where it was in memory."""
        ...

    def as_opened(self) -> Any:
        """The model before any edit, as verification takes it: in memory, or as the path of its file."""
        ...

    def learn(self, outcomes: Sequence[Outcome], replan: Replan) -> bool:
        """Find out what a plan with these outcomes missed, before anything is changed; whether more is known now."""
        ...

    def explain(self, outcomes: Sequence[Outcome], replan: Replan) -> tuple[Outcome, ...]:
        """The outcomes of its plan, with details that only this kind of model can add. Called before the edits."""
        ...

    def warn(self, *, has_learnt: bool) -> Cautions:
        """Things that look wrong, and what `learn` found out, if that made a difference."""
        ...

    def finish(self) -> Any:
        """The edited model, in the kind that was given."""
        ...

    def save(self, path: Path) -> Written:
        """Write the edited model.

        Raises:
            OutputError: it cannot be written.
        """
        ...


class FrontEnd(Protocol):
    """A package that reads and changes models of one kind."""

    def is_model(self, model: object) -> bool:
        """Whether an object is such a model."""
        ...

    def open_model(self, model: Any, options: OpenOptions) -> OpenModel:
        """Open a model, or the file at a path.

        Raises:
            BnfoldError: it cannot be read.
        """
        ...
