"""The interface of a model under test, of whatever kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from bnfold.runtimes.inputs import Declared, Feeds
from bnfold.verification.normalisation import Normalisation
from bnfold.verification.onnx_weights import Disturbance
from bnfold.verification.sizes import SizeHints
from bnfold.verification.storage import Storage

Run = Callable[[Feeds], list[npt.NDArray[Any]]]
"""One inference: an array for each value to fetch."""


Inside = Callable[[Feeds], Mapping[str, npt.NDArray[Any]]]
"""One inference: inner values by their names."""


@dataclass(frozen=True)
class Cut:
    """A part of a model.

    Attributes:
        given: the inner values that it starts from, beside inputs of the model.
        made: the values that it computes.
    """

    given: tuple[str, ...]
    made: tuple[str, ...]


class Subject(Protocol):
    """A model that can be run, looked into, and disturbed."""

    @property
    def label(self) -> str:
        """Its name in messages: its file, or its class."""
        ...

    @property
    def kind(self) -> str:
        """The kind of its names. Two models of one kind give the same thing the same name."""
        ...

    @property
    def inputs(self) -> Sequence[Declared]:
        """The inputs that a caller must give."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """The names of the outputs, in order."""
        ...

    @property
    def defaults(self) -> Sequence[str]:
        """The names of further inputs, which have a default."""
        ...

    @property
    def declared_outputs(self) -> Sequence[Declared]:
        """The outputs as the model declares them; empty where it declares nothing."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about how it is run."""
        ...

    @property
    def may_draw(self) -> bool:
        """Whether a second run might give something else, since an operator draws random numbers, or is unknown."""
        ...

    def values(self) -> Mapping[str, str]:
        """Inner values that can be fetched, in graph order, each with the node that makes it."""
        ...

    def size_hints(self) -> SizeHints:
        """What it does with sizes of its inputs."""
        ...

    def normalisations(self) -> Mapping[str, Normalisation]:
        """What it first does with inputs, by their names, where that is a normalisation."""
        ...

    def storage(self) -> Storage:
        """How it stores its weights."""
        ...

    @property
    def narrow_weights(self) -> frozenset[bytes]:
        """A digest of each weight that is stored in float16 or bfloat16."""
        ...

    def unpack_weights(self) -> None:
        """From now on, take narrow weights in the type that operators compute with, where that is another one."""
        ...

    def jumps(self) -> frozenset[str]:
        """Values behind an operator that jumps: rounding, comparing, choosing the largest."""
        ...

    def measure(self, feeds: Feeds) -> Mapping[str, int]:
        """The bytes of each inner value for inputs of these shapes."""
        ...

    def descends(self, value: str, ancestor: str) -> bool:
        """Whether `value` is computed from `ancestor`."""
        ...

    def start(self, fetch: Sequence[str], disturbance: Disturbance | None = None) -> Run:
        """Make the model ready to run, unoptimised and on the CPU.

        Args:
            fetch: outputs and inner values to return.
            disturbance: a change of each weight to make first.

        Raises:
            IncomparableError: the model cannot be run.
        """
        ...

    def start_replacing(self, value: str, fetch: Sequence[str]) -> Run:
        """Like `start`, with an inner value that is given among the inputs, under its name.

        Raises:
            IncomparableError: the model cannot be run.
        """
        ...

    def start_as_deployed(self, provider: str) -> tuple[Run, str | None]:
        """Make the model ready to run as deployed: on `provider`, at its default optimisation, for the outputs.

        The sentence beside it, where there is one, says which part the provider leaves to the CPU.

        Raises:
            IncomparableError: the provider is not installed, or does not take the model.
        """
        ...

    def start_with_defaults(self, provider: str) -> tuple[Run, str] | None:
        """Like `start_as_deployed`, with a default that is off for verdicts (TF32), and its name; None without one."""
        ...

    def widened(self) -> tuple[Subject, int] | None:
        """The model with float32 in place of float16 and bfloat16, and the steps of its disturbances.

        None where it has neither type.
        """
        ...

    def resized(self) -> tuple[Subject, Sequence[str]] | None:
        """The model with symbols in place of the fixed sizes of its images, and these; None where it has none.

        It need not run at other sizes.
        """
        ...

    def cut(self, fetch: Sequence[str], known: Collection[str]) -> Cut:
        """The part of the model that computes some values from known ones, from the nearest on each way."""
        ...

    def evaluate_exactly(
        self, feeds: Feeds, fetch: Sequence[str], seconds: float, given: Feeds | None = None
    ) -> list[npt.NDArray[Any]] | None:
        """Evaluate the model in float64; None where that takes longer than `seconds` or cannot be done.

        Args:
            feeds: its inputs.
            fetch: the values to return.
            seconds: how long it may take, in the time of this process.
            given: inner values that are not computed: with those of a cut, only its part of the model is evaluated.
        """
        ...
