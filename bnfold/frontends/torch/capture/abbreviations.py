"""Symbols of their own for sizes that an export computes by more than sums and products.

The size behind a few strided convolutions is a quotient of quotients, and torch works it out anew in each operator that
follows: that takes most of the time of an export whose sizes are dynamic. So a quotient gets a symbol when it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import sympy
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.symbol import SymT, symbol_is_type
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

AT_LEAST_1 = ValueRanges(1, sympy.oo)


class Abbreviations:
    """What is found of one export while it runs.

    Nothing follows for such a symbol from an equation that holds it, as nothing would for the quotient.

    Attributes:
        terms: what each symbol stands for, in the symbols of the sizes of the inputs, and in earlier ones.
    """

    def __init__(self) -> None:
        self.terms: dict[Any, Any] = {}
        self._symbols: dict[Any, Any] = {}
        self._plain: dict[Any, bool] = {}
        self._is_determining = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Abbreviates inside: in one place of torch all sizes that are computed get their expression."""
        make, substitute, guard = SymNode.__init__, ShapeEnv._set_replacement, ShapeEnv.produce_guards

        def made(node: SymNode, expr: Any, shape_env: Any, pytype: type, *args: Any, **kwargs: Any) -> None:
            make(node, expr, shape_env, pytype, *args, **kwargs)
            if pytype is int and type(node.hint) is int and isinstance(expr, sympy.Expr) and not self._is_plain(expr):
                node._expr = self._abbreviated(shape_env.replace(expr), node.hint, shape_env)
                node._optimized_summation = False

        def substituted(environment: ShapeEnv, symbol: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            if not self.terms.keys().isdisjoint((symbol, *target.free_symbols)):
                return
            substitute(environment, symbol, target, *args, **kwargs)
            if not self._is_determining:  # which asks for replacements, and may note shorter ones by this function
                self._is_determining = True
                try:
                    for each, value in self._determined(environment):
                        substitute(environment, each, value, "a term of numbers")
                finally:
                    self._is_determining = False

        def guarded(environment: ShapeEnv, *args: Any, **kwargs: Any) -> Any:
            environment.guards[:] = [
                each for each in environment.guards if self.terms.keys().isdisjoint(each.expr.free_symbols)
            ]  # which would be written as code on the inputs
            return guard(environment, *args, **kwargs)

        with (
            patch.object(SymNode, "__init__", made),
            patch.object(ShapeEnv, "_set_replacement", substituted),
            patch.object(ShapeEnv, "produce_guards", guarded),
        ):
            yield

    def _is_plain(self, expression: Any) -> bool:
        """Whether it is made of sums and products alone."""
        if expression not in self._plain:
            self._plain[expression] = expression.is_Atom or (
                (expression.is_Add or expression.is_Mul or _is_power(expression))
                and all(map(self._is_plain, expression.args))
            )
        return self._plain[expression]

    def _abbreviated(self, expression: Any, value: int, environment: ShapeEnv) -> Any:
        if self._is_plain(expression):
            return expression
        if expression not in self._symbols:
            if any(not symbol_is_type(each, SymT.SIZE) for each in expression.free_symbols):
                return expression  # a number that data decides
            self._symbols[expression] = self._symbol(expression, value, environment)
        return self._symbols[expression]

    def _symbol(self, expression: Any, value: int, environment: ShapeEnv) -> Any:
        """What an expression is by a new symbol, which is at least 1, as torch takes all sizes of inputs to be."""
        least = bound_sympy(expression, dict.fromkeys(expression.free_symbols, AT_LEAST_1)).lower
        shift = least - 1 if least.is_Integer else 0
        symbol = environment.create_symbol(
            value - int(shift),
            ConstantSource(f"abbreviated_{len(self.terms)}"),
            DimDynamic.DYNAMIC,
            positive=True if least.is_Integer else None,
            do_not_specialize_zero_one=True,
        )
        environment.var_to_sources[symbol] = []  # no input is it
        self.terms[symbol] = expression - shift
        environment._update_var_to_range(symbol, bound_sympy(self.terms[symbol], environment.var_to_range))
        return symbol + shift

    def _determined(self, environment: ShapeEnv) -> Iterator[tuple[Any, Any]]:
        """Symbols that stand for a number now, since a size of the inputs was found to be one."""
        for symbol, term in self.terms.items():
            value = environment.replace(term)
            if value.is_number and symbol not in environment.replacements:
                yield symbol, value


def _is_power(expression: Any) -> bool:
    return bool(expression.is_Pow and expression.args[1].is_Integer and expression.args[1] > 0)
