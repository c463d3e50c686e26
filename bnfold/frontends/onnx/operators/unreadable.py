"""What stands in the way of reading a node."""

from __future__ import annotations

from bnfold.graph.outcome import Reason, Stop


class Unreadable(Exception):  # noqa: N818 (not an error: an answer)
    """An operator that is not of the form its reader describes, or a constant of it that is not known.

    The operator becomes `Opaque`.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.stop = Stop(reason, detail)
