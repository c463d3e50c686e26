"""docs/reasons.md is what bnfold says of the models on it, and has every reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bnfold import Reason

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, ROOT / "scripts" / "tools" / "make_reasons.py", "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/tools/make_reasons.py"


def test_every_reason_has_a_section_and_says_what_helps() -> None:
    sections = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(Reason)
    assert all(section.partition("**What helps.** ")[2].strip() for section in sections)
