"""What the commands read from their command line beyond what click does by itself."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite
from typing import Any

import click

from bnfold.cli import recording
from bnfold.errors import BnfoldError, NotEquivalentError


class FiniteRange(click.FloatRange):
    """A number within a range; neither NaN, which no comparison keeps out, nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click does, and finite.

        Raises:
            click.BadParameter: it is not.
        """
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Command(click.Command):
    """A command of ours.

    An option that holds one value is given once: the last of several does not win silently. A record that was asked for
    is written where the command ends with an error, too.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does.

        Raises:
            click.UsageError: an option is given more than once, or beside one that it excludes.
        """
        order = self.make_parser(ctx).parse_args(args=list(args))[2]
        given: dict[str | None, list[click.Parameter]] = defaultdict(list)
        for option in order:
            if isinstance(option, click.Option) and not option.multiple:
                given[option.name].append(option)
        for options in given.values():
            names = [option.opts[-1] for option in dict.fromkeys(options)]
            if len(names) > 1:
                raise click.UsageError(f"{' and '.join(names)} exclude each other", ctx)
            if len(options) > 1 and not _is_flag(options[0]):
                raise click.UsageError(f"{names[0]} can be given only once", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does."""
        try:
            return super().invoke(ctx)
        except NotEquivalentError:  # has a result, which the command writes
            raise
        except BnfoldError as error:
            recording.show_error(error)
            raise


def _is_flag(option: click.Parameter) -> bool:
    return isinstance(option, click.Option) and option.is_flag
