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


class OutputError(BnfoldError):
    """A file that cannot be written: an output, or a report."""


class OutputExistsError(OutputError):
    """The output would replace a file that is already there."""


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
