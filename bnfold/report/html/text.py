"""Formats names and numbers for a page. Names come from models, so they may be anything at all."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories without a glyph of their own, or that reorder their neighbours."""

MISSING = "\N{EN DASH}"


def shown(name: object, limit: int = 160) -> str:
    r"""A name in at most `limit` characters, without its middle. Hidden characters are spelled, such as ``\u202e``."""
    text = str(name)
    if len(text) > limit:
        head = (limit - 1) // 2
        text = f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (limit - 1 - head) :]}"
    return "".join(
        _spelled(character) if unicodedata.category(character) in HIDDEN else character for character in text
    )


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def breakable(text: str) -> Markup:
    """Escaped text whose lines may break where the parts of a name meet."""
    return Markup(re.sub(r"([/._:]+)(?=[^/._:\s])", r"\1<wbr>", str(escape(text))))


def file_name(path: str) -> str:
    """A path without its folders."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def file_names(paths: Iterable[str]) -> dict[str, str]:
    """A label for each file: its name, or the whole path where two files have the same name."""
    listed = list(dict.fromkeys(paths))
    names = [file_name(path) for path in listed]
    is_clear = len(set(names)) == len(names)
    return dict(zip(listed, names if is_clear else listed, strict=True))


def number(value: Any) -> float | None:
    """The number that a record holds, which may be spelled as text (``"inf"``); None where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def finite(value: Any) -> float | None:
    """The same; None where it is not finite either."""
    known = number(value)
    return known if known is not None and math.isfinite(known) else None


def scientific(value: Any) -> str:
    """An error or a budget: ``4.9e-07``."""
    known = number(value)
    if known is None:
        return MISSING
    if math.isinf(known):
        return "\N{INFINITY}" if known > 0 else "\N{MINUS SIGN}\N{INFINITY}"
    return "not a number" if math.isnan(known) else "0" if known == 0 else f"{known:.1e}"


def plain(value: Any, digits: int = 3) -> str:
    """A measured value, with three digits that mean something: ``0.0123``, ``1.23``, ``1,230``."""
    known = finite(value)
    if known is None:
        return MISSING
    if known == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(known))))
    return f"{known:,.{decimals}f}"


def percent(share: Any) -> str:
    """A share: ``0.4 %``, ``12 %``, or, of more than ten wholes, how many: ``66,000 x``."""
    known = number(share)
    if known is None or math.isnan(known):
        return MISSING
    if math.isinf(known):
        return "\N{INFINITY}"
    if known >= 10:
        return f"{known:,.0f} \N{MULTIPLICATION SIGN}"
    hundredths = 100 * known
    digits = 0 if hundredths >= 10 or hundredths == 0 else 1 if hundredths >= 0.1 else 2
    return f"{hundredths:,.{digits}f} %"


def count(value: Any) -> str:
    """A whole number: ``1,234``."""
    known = finite(value)
    return MISSING if known is None else f"{known:,.0f}"


def size(value: Any) -> str:
    """Bytes: ``126 kB``."""
    known = finite(value)
    if known is None:
        return MISSING
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(known) < 1000 or unit == "GB":
            return f"{known:.0f} bytes" if unit == "bytes" else f"{known:.3g} {unit}"
        known /= 1000
    raise AssertionError


def change(before: Any, after: Any) -> str:
    """How a size changed: ``45 % fewer``, as a signed percentage."""
    first, second = finite(before), finite(after)
    if not first or second is None:
        return ""
    percent = 100 * (second - first) / first
    if abs(percent) >= 1000:
        return f"\N{MULTIPLICATION SIGN} {second / first:.3g}"
    return f"{percent:+.0f} %".replace("-", "\N{MINUS SIGN}")


def seconds(value: Any) -> str:
    """A duration."""
    known = finite(value)
    return MISSING if known is None else f"{known:.2f} s" if known < 60 else f"{known / 60:.1f} min"
