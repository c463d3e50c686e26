"""Folding a model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, TypeVar, Unpack, cast, overload

import onnx
import onnx_ir as ir

from bnfold.api.deciding import Request, Selection, decide
from bnfold.errors import NotEquivalentError
from bnfold.frontends.door import find_entry, open_model
from bnfold.frontends.limits import LIMITS, Limits
from bnfold.graph.outcome import Outcome
from bnfold.proof.certificate import Certificate
from bnfold.proof.ledger import Ledger
from bnfold.proof.models import Files, digest
from bnfold.verification.onnx_proof import deeds_of
from bnfold.verification.proving import describe_failure


class TorchModel(Protocol):
    """A torch module or program, recognised by a common attribute, so that torch need not be imported here."""

    @property
    def state_dict(self) -> Any:
        """The parameters and buffers, or a method that returns them."""


M = TypeVar("M", bound=onnx.ModelProto | ir.Model | TorchModel)


def plan(
    model: Any,
    *,
    example_inputs: Any = None,
    merge: bool = True,
    limits: Limits = LIMITS,
    code: Literal["change", "keep"] = "change",
    preserve: Sequence[str] | None = None,
) -> tuple[Outcome, ...]:
    """Plan what `fuse` would do with each BatchNorm, with the reason for each that stays. The model is only read.

    Args:
        model: as for `fuse`.
        example_inputs: as for `fuse`.
        merge: whether linear operators may become one.
        limits: how much the model may ask for.
        code: as for `fuse`.
        preserve: as for `fuse`.

    Raises:
        BnfoldError: the model cannot be read.
    """
    request = Request(merge=merge)
    options = request.options(limits, example_inputs=example_inputs, code=code, preserve=preserve)
    return decide(open_model(model, options), request).explain()


class FuseOptions(TypedDict, total=False):
    """The further arguments of `fuse`, described there."""

    inplace: bool
    only: Sequence[str]
    skip: Sequence[str]
    merge: bool
    limits: Limits
    example_inputs: Any
    prove: bool
    code: Literal["change", "keep"]
    share: bool
    lower: Literal["depthwise", "mul-add"] | None
    preserve: Sequence[str] | None


@overload
def fuse(model: M, *, return_outcomes: Literal[False] = ..., **options: Unpack[FuseOptions]) -> M: ...
@overload
def fuse(
    model: M, *, return_outcomes: Literal[True], **options: Unpack[FuseOptions]
) -> tuple[M, tuple[Outcome, ...]]: ...
@overload
def fuse(model: str | Path, *, return_outcomes: Literal[False] = ..., **options: Unpack[FuseOptions]) -> Any: ...
@overload
def fuse(
    model: str | Path, *, return_outcomes: Literal[True], **options: Unpack[FuseOptions]
) -> tuple[Any, tuple[Outcome, ...]]: ...
@overload
def fuse(model: object, *, return_outcomes: bool, **options: Unpack[FuseOptions]) -> Any: ...


def fuse(
    model: Any,
    *,
    inplace: bool = False,
    return_outcomes: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    merge: bool = True,
    limits: Limits = LIMITS,
    example_inputs: Any = None,
    prove: bool = True,
    code: Literal["change", "keep"] = "change",
    share: bool = False,
    lower: Literal["depthwise", "mul-add"] | None = None,
    preserve: Sequence[str] | None = None,
) -> Any:
    """The same model with every BatchNorm folded that can fold exactly.

    Args:
        model: a `torch.nn.Module`, a `torch.fx.GraphModule`, a `torch.export.ExportedProgram`, an `onnx.ModelProto`, an
            `onnx_ir.Model`, the `ONNXProgram` that `torch.onnx.export` gives back, or the path of an `.onnx` or `.pt2`
            file.
        inplace: change the argument instead of a copy.
        return_outcomes: return the outcomes as well, one for each BatchNorm and one for each merge.
        only: glob patterns; only nodes with such a name fold, where any is given.
        skip: glob patterns; nodes with such a name stay.
        merge: let parallel linear branches, and linear operators in a row, become one where that is exact and cheaper.
        limits: how much the model may ask for; a model that asks for more is an `InvalidModelError`.
        example_inputs: what a torch module is called with: a tuple of arguments, keyword arguments by name (a dict or
            another mapping), a tuple of these both, or the only argument; tensors or arrays. Needed where the forward
            cannot be traced symbolically; otherwise it tells the shapes. The result then stands for calls with the same
            arguments given, and tensors of the same ranks. Where a fold is only right as long as code that asks for a
            size, or for the value of an argument, decides alike, another call raises an error. A size of 1 says less
            than one of 2, since an export may take it for fixed.
        prove: prove each fold by its weights before anything is returned, without running the model. Of a module this
            is done for what is captured of it before and afterwards; one that is not proved is as it was. With
            `inplace`, another model that is not proved has been changed all the same.
        code: "keep" forbids a torch module new forward code: what only that would fold stays, with the reason.
        share: let the tensors of a torch model that no fold changes be those of the argument.
        lower: what BatchNorms that stay are written as, for runtimes that have none: a depthwise convolution of one
            tap, or Mul and Add. Each of the new parameters is rounded once, and outcomes say so; ONNX models only.
        preserve: methods of a torch module that give back the same as before on the same inputs. If left out, these are
            forward, and of the public methods ``forward_*`` those that forward calls, or that with `example_inputs` are
            found to compute what forward computes; no fold goes across what they give back, but with `("forward",)`.
            `Fold.crosses` names the submodules and methods that do give back something else.

    Returns:
        What was given. An `nn.Module` comes back as the same class, a ModelProto as a ModelProto, a path as what the
        file holds: an `ExportedProgram`, or an `onnx_ir.Model`, whose new weights are lazy tensors, computed when they
        are read or saved. Where the forward code of a torch module has to change, the smallest submodule that holds the
        place gets generated code, by a subclass of its own class.

    Raises:
        NotEquivalentError: the result is not proved, which is a bug of bnfold.
        BnfoldError: the model cannot be read.
    """
    request = Request.of(Selection(tuple(only), tuple(skip)), merge=merge, lower=lower)
    options = request.options(
        limits, inplace=inplace, example_inputs=example_inputs, code=code, share=share, preserve=preserve
    )
    opened = open_model(model, options)
    decision = decide(opened, request)
    outcomes = decision.explain() if return_outcomes else ()
    prover = decision.begin(find_entry(model)) if prove else None
    decision.apply()
    proof = None if prover is None else prover.prove()
    if proof is not None and not proof.is_proved:
        raise NotEquivalentError(f"the result is not returned, since {describe_failure(proof)}", proof)
    fused = opened.finish()
    return (fused, outcomes) if return_outcomes else fused


def certify(
    model: onnx.ModelProto,
    *,
    merge: bool = True,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    lower: Literal["depthwise", "mul-add"] | None = None,
) -> tuple[onnx.ModelProto, Certificate]:
    """The folded model of a protobuf whose tensors are inside, with its certificate."""
    request = Request.of(Selection(tuple(only), tuple(skip)), merge=merge, lower=lower)
    opened = open_model(model, request.options(LIMITS))
    decision, graph = decide(opened, request), cast(Any, opened.graph)
    ledger, deeds = Ledger.of(graph.model, graph.inlined), deeds_of(graph, decision.changes)
    decision.apply()
    result: onnx.ModelProto = opened.finish()
    return result, ledger.certificate(deeds, digest(Files(model)), digest(Files(result)))
