"""bnfold within pipelines of passes over `onnx_ir` models: those of onnxscript's optimiser, and your own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from bnfold.api import fuse
from bnfold.graph.outcome import Fold, Merge, Outcome


class FoldBatchNorm(ir.passes.InPlacePass):
    """Folds every BatchNorm that can fold exactly, and proves it.

    Args:
        merge: let linear branches, and linear operators in a row, become one where that is exact and cheaper.
        only: glob patterns; only nodes with such a name fold, where any is given.
        skip: glob patterns; nodes with such a name stay.
        lower: what BatchNorms that stay are written as, for runtimes that have none.

    Attributes:
        outcomes: of the last model, one for each BatchNorm and one for each merge.
    """

    def __init__(
        self,
        *,
        merge: bool = True,
        only: Sequence[str] = (),
        skip: Sequence[str] = (),
        lower: Literal["depthwise", "mul-add"] | None = None,
    ) -> None:
        super().__init__()
        self._merge, self._only, self._skip = merge, tuple(only), tuple(skip)
        self._lower = lower
        self.outcomes: tuple[Outcome, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold the model in place.

        Raises:
            NotEquivalentError: the result is not proved, which is a bug of bnfold; the model has been changed.
            BnfoldError: the model is none that can be folded.
        """
        model, self.outcomes = fuse(
            model,
            inplace=True,
            return_outcomes=True,
            merge=self._merge,
            only=self._only,
            skip=self._skip,
            lower=self._lower,
        )
        return ir.passes.PassResult(model, any(isinstance(outcome, Fold | Merge) for outcome in self.outcomes))
