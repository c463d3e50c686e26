"""The error for a result that is not proved."""

from __future__ import annotations


class ProofError(Exception):
    """An obligation that is not met, or that the checker does not know how to check.

    Attributes:
        kind: wiring, weights, carriers or merges.
        node: the node of the original, where there is one.
        detail: what is wrong, with the channel and the numbers.
    """

    def __init__(self, kind: str, node: str, detail: str) -> None:
        super().__init__(kind, node, detail)  # the arguments with which pickling makes it again
        self.kind, self.node, self.detail = kind, node, detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.node!r}: {self.detail}"
