"""User errors: what the command line prints as one line and ends with a documented exit code."""

from typing import Any


class BnfoldError(Exception):
    """Something outside bnfold is wrong, and the message says what and where."""

    exit_code = 3


class InvalidModelError(BnfoldError):
    """A model that is missing, unreadable, malformed or unsafe to read."""


class UnreadableTensorError(InvalidModelError):
    """A tensor or a constant of a model that cannot be read or computed; the message does not name the model."""


class IncomparableError(BnfoldError):
    """Two models that cannot be compared: other inputs, other outputs, or inputs that do not fit."""


class NoKernelError(IncomparableError):
    """A runtime that knows a model's operators, and not for its types or its opset."""


class NoEvidenceError(IncomparableError):
    """Inputs on which any two models agree: they have no element, or no output has a number on them."""


class CustomOpsError(BnfoldError):
    """A library of custom operators that the runtime does not take."""


class OutputError(BnfoldError):
    """A file that cannot be written: an output, or a report."""


class OutputExistsError(OutputError):
    """The output would replace a file that is already there: wrong use of the command line, and no answer."""

    exit_code = 2


class NotEquivalentError(BnfoldError):
    """The rewritten model differs from the original: a defect, so nothing was written.

    Attributes:
        result: what was found. The default lets an error be made anew from its message, as unpickling does.
    """

    exit_code = 1

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class MissingExtraError(BnfoldError):
    """An optional dependency that the request needs is not installed."""


class UnsupportedModelError(BnfoldError, TypeError):
    """An object that is no model of a kind that bnfold knows."""


# Text that comes from models, made fit for one line of a terminal, a log or XML. A name may hold anything: line breaks,
# terminal escape sequences, a megabyte of it.
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


def plural(number_of: int, noun: str) -> str:
    """A number with its noun: ``1 value``, ``2 values``."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"
