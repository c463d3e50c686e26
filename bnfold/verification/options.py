"""How two models are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bnfold.runtimes.inputs import DRAWN, InputOptions
from bnfold.verification.gate import Gate


@dataclass(frozen=True)
class CompareOptions:
    """How two models are compared.

    Attributes:
        inputs: the inputs that they run on.
        providers: execution providers on which the candidate must agree too, as deployed. With none, it runs on the CPU
            as deployed, and a difference there is only a finding.
        gate: fixed conditions on the outputs in place of the budget; inner values and drawn extremes are then left out.
        outputs_only: leave out inner values.
        strict_inside: require that an inner value of one name is one value, even where its difference is taken back.
        allow_interface: allow fixed sizes, other inputs with a default, and other names, types or declared outputs.
        renamed: the candidate's name for an input or output of the reference.
        custom_ops: libraries of custom operators for ONNX Runtime.
    """

    inputs: InputOptions = DRAWN
    providers: tuple[str, ...] = ()
    gate: Gate | None = None
    outputs_only: bool = False
    strict_inside: bool = False
    allow_interface: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    custom_ops: tuple[Path, ...] = ()
