"""Parses the command line of the commands, where click alone is not enough."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite
from typing import Any

import click

from bnfold.cli import recording
from bnfold.errors import BnfoldError, NotEquivalentError


class FiniteRange(click.FloatRange):
    """A number within a range: not infinite, and not NaN, which no comparison keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert a value as click does, and check that it is finite.

        Raises:
            click.BadParameter: the value is not.
        """
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Command(click.Command):
    """A command of bnfold.

    An option for one value may be given only once, so that the last of several does not win silently. The record of a
    command is also written if the command ends with an error.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments as click does.

        Raises:
            click.UsageError: an option is given more than once, or beside one that it excludes.
        """
        order = self.make_parser(ctx).parse_args(args=list(args))[2]
        uses: dict[str | None, list[click.Parameter]] = defaultdict(list)
        for option in order:
            if isinstance(option, click.Option) and not option.multiple:
                uses[option.name].append(option)
        for options in uses.values():
            names = [option.opts[-1] for option in dict.fromkeys(options)]
            if len(names) > 1:
                raise click.UsageError(f"{' and '.join(names)} exclude each other", ctx)
            if len(options) > 1 and not _is_flag(options[0]):
                raise click.UsageError(f"{names[0]} can be given only once", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command as click does."""
        try:
            return super().invoke(ctx)
        except NotEquivalentError:  # the command has a result, and writes it itself
            raise
        except BnfoldError as error:
            recording.show_error(error)
            raise


def _is_flag(option: click.Parameter) -> bool:
    return isinstance(option, click.Option) and option.is_flag
