"""Text that comes from models, made fit for one line of a terminal, a log or XML.

A name may hold anything: line breaks, terminal escape sequences, a megabyte of it.
"""

from __future__ import annotations

WIDTH = 400
"""Characters of a line that people still read."""


def escape(text: str) -> str:
    r"""`text` with every character that does not print as its escape: ``\x1b`` for the one that starts a sequence."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shorten(text: str, width: int = WIDTH) -> str:
    """`text`, or its beginning and its end where it is longer than `width`."""
    if len(text) <= width:
        return text
    return f"{text[: width * 2 // 3]} ... {text[-width // 3 :]}"


def one_line(text: str, width: int = WIDTH) -> str:
    """`text` on one line that prints, shortened to about `width`."""
    return shorten(escape(" ".join(shorten(text, 4 * width).split())), width)
