"""How much a model may ask for: generous for every real model, and an end for a hostile one."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before anything is computed; more is an `InvalidModelError`.

    Attributes:
        nodes: in all graphs, with the body of a function counted once for each call.
        depth: of graphs in graphs (the bodies of If, Loop and Scan). The protobuf library ends at about 33.
        bytes: of all tensors as their shapes declare them.
    """

    nodes: int = 2_000_000
    depth: int = 32
    bytes: int = 1 << 38


LIMITS = Limits()

UNLIMITED = Limits(sys.maxsize, sys.maxsize, sys.maxsize)
"""No bounds, for models that bnfold made from one within the limits: a shared weight may be there twice."""
