"""The verdict of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold.runtimes.inputs import Sample
from bnfold.verification.gate import Gate
from bnfold.verification.observe import Observation, Place


@dataclass(frozen=True)
class ValueVerdict:
    """One output or inner value, at the worst of all inputs.

    Attributes:
        name: the name of the value.
        observation: the worst observation, with its error and budget.
        sample: the label of the input that gave it.
        reason: why it fails, or says nothing; empty where it passes.
        provider: where the candidate ran.
        is_deployed: whether it ran at the runtime's default level, and not with optimisation off.
    """

    name: str
    observation: Observation
    sample: str
    reason: str = ""
    provider: str = "cpu"
    is_deployed: bool = False

    @property
    def is_equivalent(self) -> bool:
        """Whether it passes."""
        return not self.reason

    @property
    def error(self) -> float:
        """The largest absolute difference over the largest absolute reference value."""
        return self.observation.judgement.error

    @property
    def budget(self) -> float:
        """The largest such error that rounding explains."""
        return self.observation.judgement.budget


@dataclass(frozen=True)
class Divergence:
    """The earliest value, in graph order, that differs.

    Attributes:
        name: the name of the value.
        node: the node that makes it in the reference.
        place: the worst element.
        verdict: the verdict on the value.
    """

    name: str
    node: str
    place: Place
    verdict: ValueVerdict

    @property
    def channel(self) -> int | None:
        """The index of the worst element on axis 1; None for fewer axes."""
        return self.place.position[1] if len(self.place.position) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """The verdict on two models.

    Attributes:
        outputs: the outputs, with optimisation off, and again on each provider as deployed.
        values: the inner values that carry one name in both models, in graph order.
        first_divergence: where the difference starts; None where nothing fails.
        samples: the inputs.
        findings: sentences on facts that are no failure but worth knowing.
        providers: the providers that the caller asked for, whose outputs count.
        interface: sentences on differences that a caller of the candidate meets.
        gate: the conditions that decided in place of the budget; None where there were none.
    """

    outputs: tuple[ValueVerdict, ...]
    values: tuple[ValueVerdict, ...] = ()
    first_divergence: Divergence | None = None
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    findings: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    interface: tuple[str, ...] = ()
    gate: Gate | None = None

    @property
    def is_equivalent(self) -> bool:
        """Whether everything passes that counts. As deployed, only providers that were asked for count."""
        return not self.interface and all(output.is_equivalent for output in self.counting)

    @property
    def worst(self) -> ValueVerdict:
        """The worst verdict: one that fails, else the one nearest to failing; an output before an inner value."""
        return max(self.counting, key=lambda output: (not output.is_equivalent, output.observation.rank))

    @property
    def counting(self) -> list[ValueVerdict]:
        """The verdicts that decide."""
        outputs = [output for output in self.outputs if not output.is_deployed or output.provider in self.providers]
        return [*outputs, *self.values]
