"""A model under test, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from bnfold.runtimes.inputs import Declared, Feeds
from bnfold.verification.onnx_weights import Disturbance

Run = Callable[[Feeds], list[npt.NDArray[Any]]]
"""One inference: an array for each value that was asked for."""


Inside = Callable[[Feeds], Mapping[str, npt.NDArray[Any]]]
"""One inference: inner values by their names."""


class Subject(Protocol):
    """A model that can be run, looked into, and disturbed."""

    @property
    def label(self) -> str:
        """What messages call it: its file, or its class."""
        ...

    @property
    def kind(self) -> str:
        """What its names mean: two models of one kind give one thing one name."""
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
        """What the model declares of its outputs; nothing where it declares nothing."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Sentences on how it is run."""
        ...

    def values(self) -> Mapping[str, str]:
        """Inner values that can be asked for, in graph order, each with the node that makes it."""
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
        """Make ready to run, unoptimised and on the CPU.

        Args:
            fetch: outputs and inner values to return.
            disturbance: what is done to each weight first.

        Raises:
            IncomparableError: it cannot be run.
        """
        ...

    def start_replacing(self, value: str, fetch: Sequence[str]) -> Run:
        """The same as `start`, with an inner value that is given among the inputs, under its name.

        Raises:
            IncomparableError: it cannot be run.
        """
        ...

    def start_as_deployed(self, provider: str) -> tuple[Run, str | None]:
        """Make ready to run as a deployment would: on `provider`, at its default optimisation, for the outputs.

        The sentence beside it, where there is one, says what the provider does not do itself.

        Raises:
            IncomparableError: the provider is not installed, or does not take the model.
        """
        ...

    def start_with_defaults(self, provider: str) -> tuple[Run, str] | None:
        """As deployed, with what a verdict goes without, and what that is; None where there is no such thing."""
        ...

    def widened(self) -> tuple[Subject, int] | None:
        """The same with float32 in place of float16 and bfloat16, and the steps of its disturbances.

        None where it has neither.
        """
        ...

    def evaluate_exactly(self, feeds: Feeds, fetch: Sequence[str], seconds: float) -> list[npt.NDArray[Any]] | None:
        """The same in float64; None where that takes longer than `seconds` or cannot be done."""
        ...
