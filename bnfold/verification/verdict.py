"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold.runtimes.inputs import Sample
from bnfold.verification.observe import Observation, Place


@dataclass(frozen=True)
class ValueVerdict:
    """One output or inner value, at the worst of all inputs.

    Attributes:
        name: of the value.
        observation: the worst, with its error and budget.
        sample: label of the input that gave it.
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
        """Largest absolute difference over the largest absolute reference value."""
        return self.observation.judgement.error

    @property
    def budget(self) -> float:
        """The largest such error that rounding explains."""
        return self.observation.judgement.budget


@dataclass(frozen=True)
class Divergence:
    """The earliest value, in graph order, that differs.

    Attributes:
        name: of the value.
        node: that makes it in the reference.
        place: the worst element.
        verdict: of the value.
    """

    name: str
    node: str
    place: Place
    verdict: ValueVerdict

    @property
    def channel(self) -> int | None:
        """Index on axis 1 of the worst element; None for fewer axes."""
        return self.place.position[1] if len(self.place.position) > 1 else None


@dataclass(frozen=True)
class Verdict:
    """Everything together.

    Attributes:
        outputs: the outputs, with optimisation off, and again on each provider as deployed.
        values: the inner values that carry one name in both models, in graph order.
        first_divergence: where the difference starts; None where nothing fails.
        samples: the inputs.
        findings: sentences about what is no failure but worth knowing.
        providers: those that the caller asked for, whose outputs count.
        interface: sentences on what a caller of the candidate meets in another way.
    """

    outputs: tuple[ValueVerdict, ...]
    values: tuple[ValueVerdict, ...] = ()
    first_divergence: Divergence | None = None
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    findings: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    interface: tuple[str, ...] = ()

    @property
    def is_equivalent(self) -> bool:
        """Whether everything passes that counts: as deployed, only on providers that were asked for."""
        return not self.interface and all(each.is_equivalent for each in self.counting)

    @property
    def worst(self) -> ValueVerdict:
        """What fails, else what comes nearest to failing; an output before an inner value."""
        return max(self.counting, key=lambda each: (not each.is_equivalent, each.observation.rank))

    @property
    def counting(self) -> list[ValueVerdict]:
        """The verdicts that decide."""
        outputs = [each for each in self.outputs if not each.is_deployed or each.provider in self.providers]
        return [*outputs, *self.values]
