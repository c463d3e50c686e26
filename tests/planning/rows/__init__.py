"""The table that `test_rules` proves: a row for each thing that a rule must carry or refuse."""

from tests.planning.rows import pointwise, reindex, resample
from tests.planning.rows.law import ROWS

__all__ = ["ROWS", "pointwise", "reindex", "resample"]
