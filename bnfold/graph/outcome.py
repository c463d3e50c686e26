"""Outcomes: a BatchNorm folds, or is refused with a reason; and operators merge into one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The reason why a BatchNorm stays. The value is the public name in JSON."""

    TRAINING_MODE = "training-mode"
    PER_ACTIVATION = "per-activation"
    NOT_CONSTANT = "not-constant"
    FUNCTION_INPUT = "function-input"
    OVERRIDABLE = "overridable"
    INVALID_PARAMETERS = "invalid-parameters"
    NOT_LINEAR = "not-linear"
    NONLINEAR = "nonlinear"
    SECOND_USE = "second-use"
    GRAPH_OUTPUT = "graph-output"
    GRAPH_INPUT = "graph-input"
    SCOPE_BOUNDARY = "scope-boundary"
    AXIS_MISMATCH = "axis-mismatch"
    MIXED_CHANNELS = "mixed-channels"
    UNKNOWN_SHAPE = "unknown-shape"
    QUANTIZED = "quantized"
    NEGATIVE_SCALE = "negative-scale"
    SHIFT = "shift"
    BORDER = "border"
    CONFLICT = "conflict"
    NO_BIAS = "no-bias"
    OVERFLOW = "overflow"
    PRECISION_LOSS = "precision-loss"
    CANCELLATION = "cancellation"
    SEARCH_LIMIT = "search-limit"
    FORWARD_CODE = "forward-code"
    HOOK = "hook"
    PARAMETRIZED = "parametrized"
    SKIPPED = "skipped"


ADVICE: dict[Reason, str] = {
    Reason.TRAINING_MODE: "export the model in eval mode",
    Reason.NOT_CONSTANT: "make the parameter an initializer or a constant",
    Reason.FUNCTION_INPUT: "export the model without functions, or with the same opsets for all of them",
    Reason.OVERRIDABLE: "remove the initializer from the graph inputs",
    Reason.GRAPH_OUTPUT: (
        "drop that graph output if nobody reads it; where a torch module gives it back by another method than forward, "
        'preserve=("forward",) lets that method go'
    ),
    Reason.UNKNOWN_SHAPE: (
        "export with static shapes, at least along the channel axis; for a torch module, pass example_inputs"
    ),
    Reason.FORWARD_CODE: (
        'let the forward code change (code="change"), and register hooks afterwards; '
        "or pass a GraphModule or an ExportedProgram"
    ),
    Reason.HOOK: "remove the hook before, and register it again afterwards where it still means the same",
    Reason.PARAMETRIZED: "materialise the weight before: parametrize.remove_parametrizations or remove_weight_norm",
    Reason.OVERFLOW: "store the weight in a wider type",
    Reason.PRECISION_LOSS: "store the weight in a wider type",
    Reason.CANCELLATION: "where the model reads that data, subtract its mean before, or in a wider type",
    Reason.QUANTIZED: "fold before the model is quantised",
    Reason.PER_ACTIVATION: "retrain with statistics per channel",
    Reason.SECOND_USE: "let the BatchNorm alone read that value, or put one BatchNorm behind all its readers",
    Reason.SCOPE_BOUNDARY: "move the BatchNorm into the graph that makes its input",
    Reason.BORDER: "move the padding out of the convolution as a reflect, edge or wrap Pad, or retrain without a shift",
}
"""The change that would let a BatchNorm fold, where one exists."""


@dataclass(frozen=True)
class Fold:
    """A BatchNorm, or a plain per-channel affine, that went into linear operators.

    Attributes:
        batchnorm: the node's name.
        scope: the graph that holds it: "main", or a path of nodes and bodies.
        direction: "upstream", "downstream", or "both": the shift upstream and the scale downstream; "scale
            upstream" for a BatchNorm that stays as an addition; "computed" for one that reads constants alone, whose
            result takes its place.
        into: names of the operators that absorbed it.
        through: names of the operators that carried it.
        rounding: the largest relative rounding error of the written weights; None until they are computed.
        is_batchnorm: False for a per-channel Mul, Add, ... that folded in its own right.
        changes_code: whether a torch module gets generated forward code for it.
        crosses: submodules of a torch module that return something else by themselves, which hooks and code that picks
            features would see. The module as a whole returns the same.
    """

    batchnorm: str
    scope: str
    direction: str
    into: tuple[str, ...]
    through: tuple[str, ...]
    rounding: float | None = None
    is_batchnorm: bool = True
    changes_code: bool = False
    crosses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A BatchNorm that stays, with the reason and the name of the place that stops it."""

    batchnorm: str
    scope: str
    reason: Reason
    detail: str
    at: str

    @property
    def is_batchnorm(self) -> bool:
        """True, since nothing else is refused."""
        return True

    @property
    def advice(self) -> str | None:
        """The change that would let it fold, where there is one."""
        return ADVICE.get(self.reason)


@dataclass(frozen=True)
class Merge:
    """Linear operators that became one.

    Attributes:
        into: name of the operator that stands for all of them.
        scope: the graph that holds it.
        branches: names of the operators that vanished. A branch without one has those of its per-channel affines, or
            "identity".
        through: names of the additions that vanished; none for a chain.
        rounding: the largest relative rounding error of the written weight; None until it is computed.
    """

    into: str
    scope: str
    branches: tuple[str, ...]
    through: tuple[str, ...]
    rounding: float | None = None

    @property
    def is_batchnorm(self) -> bool:
        """False, since it is not the outcome of a BatchNorm."""
        return False


Outcome = Fold | Refusal | Merge


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop of an affine: the reason, and a sentence for people."""

    reason: Reason
    detail: str
