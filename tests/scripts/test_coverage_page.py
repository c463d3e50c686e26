"""docs/coverage.md is what the rules say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

from bnfold.algebra.linear import Linear
from bnfold.graph import ops

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "tools" / "make_coverage.py", "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/tools/make_coverage.py"


def test_every_operator_that_carries_is_on_the_page() -> None:
    page = (ROOT / "docs" / "coverage.md").read_text()
    carrying = set(get_args(ops.Op)) - {Linear, ops.ChannelAffine, ops.Computed, ops.Opaque}
    assert all(f"| {op.__name__}" in page for op in carrying)
