"""The picture of the README shows what bnfold does now."""

from __future__ import annotations

import re

from scripts.tools import make_picture


def texts(svg: str) -> list[str]:
    """The words of a picture, which do not depend on the version that draws it."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_picture_is_current() -> None:
    drawn = texts(make_picture.TARGET.read_text(encoding="utf-8"))
    assert drawn.count("BatchNorm") == 3
    assert drawn == texts(make_picture.picture()), "run: python scripts/tools/make_picture.py"
