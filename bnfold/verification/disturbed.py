"""The reference with disturbed weights, for the noise of its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt

from bnfold.runtimes.inputs import Effort, Feeds
from bnfold.verification.onnx_weights import Disturbance
from bnfold.verification.options import CompareOptions
from bnfold.verification.subject import Run, Subject

AnyArray = npt.NDArray[Any]

DRAWS = {Effort.FAST: 2, Effort.STANDARD: 3, Effort.THOROUGH: 8}
"""How many times the noise is measured at most: as long as a value does not pass with what was measured so far."""

COARSE = 32
"""How many times farther weights move, to see which jumps are within reach."""


class Disturbed:
    """References with disturbed weights, ready to give some values. Each is started when it is needed.

    Values behind a jump are moved farther, since it is a matter of luck whether a small move crosses the jump.
    """

    def __init__(
        self, reference: Subject, names: Sequence[str], jumps: frozenset[str], steps: int, options: CompareOptions
    ) -> None:
        self._reference, self._seed = reference, options.inputs.seed * 1000
        coarse, fine = ([name for name in names if (name in jumps) == is_coarse] for is_coarse in (True, False))
        self._parts = [part for part in ((fine, steps), (coarse, COARSE * steps)) if part[0]]
        self._runs: dict[int, list[Run]] = {}
        self.draws = DRAWS[options.inputs.effort]

    def run(self, draw: int, feeds: Feeds, names: Sequence[str]) -> Iterator[tuple[str, AnyArray]]:
        """These values of the given draw."""
        wanted = set(names)
        if wanted and draw not in self._runs:
            self._runs[draw] = [
                self._reference.start(part, Disturbance(self._seed + draw, steps)) for part, steps in self._parts
            ]
        for (part, _), run in zip(self._parts, self._runs.get(draw, ()), strict=False):
            if not wanted.isdisjoint(part):
                made = zip(part, run(feeds), strict=True)
                yield from ((name, array) for name, array in made if name in wanted)
