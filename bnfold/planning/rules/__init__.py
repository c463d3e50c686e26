"""How each operator carries an affine: `pull` against the data, `push` with it.

- ``pull(op, *affines)`` takes an affine for each output (None: that output must stay as it is) and gives one for each
  input, with the law ``affine(op(*xs)) == op(*(a(x) for a, x in zip(pulled, xs)))``.
- ``push(op, *affines)`` takes an affine for each input and gives one for each output, with the law
  ``op(*(a(x) for a, x in zip(affines, xs))) == pushed(op(*xs))``.

Both answer with a `Stop` where no such affine exists. An operator without a rule stops everything.
"""

from bnfold.planning.rules import pointwise, reindex, resample
from bnfold.planning.rules.registry import Carried, pull, push, variants

__all__ = ["Carried", "pointwise", "pull", "push", "reindex", "resample", "variants"]
