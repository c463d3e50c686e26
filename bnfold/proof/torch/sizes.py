"""Sizes of values: numbers for them, and symbols for those that are more than sums and products.

The size behind a few strided convolutions is a quotient of quotients, and torch works it out anew in each operator that
follows: behind thirty such operators, that takes minutes. So a quotient gets a symbol when it is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv


class Sizes:
    """What the symbols of one run stand for. Equal expressions have one symbol.

    Args:
        environment: where torch keeps symbols. It has no more of them in the end.
    """

    def __init__(self, environment: ShapeEnv) -> None:
        self._environment = environment
        self._terms: dict[Any, Any] = {}
        self._symbols: dict[Any, Any] = {}
        self._plain: dict[Any, bool] = {}
        self._numbers: dict[tuple[Any, int], Any] = {}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Gives sizes that are computed a symbol, in the one place of torch where they get their expression."""
        make = SymNode.__init__

        def made(node: SymNode, expr: Any, environment: Any, pytype: type, *args: Any, **kwargs: Any) -> None:
            make(node, expr, environment, pytype, *args, **kwargs)
            if pytype is not int or environment is not self._environment or not isinstance(expr, sympy.Expr):
                return
            if type(hint := node.hint) is int and not self._is_plain(expr):
                node._expr = self._symbol(expr, hint)
                node._optimized_summation = False

        try:
            with patch.object(SymNode, "__init__", made):
                yield
        finally:
            self._forget()

    def _is_plain(self, expression: Any) -> bool:
        """Whether it is made of sums and products alone."""
        if expression not in self._plain:
            is_power = expression.is_Pow and expression.exp.is_Integer and expression.exp > 0
            is_made = expression.is_Add or expression.is_Mul or is_power
            self._plain[expression] = expression.is_Atom or (is_made and all(map(self._is_plain, expression.args)))
        return self._plain[expression]

    def _symbol(self, expression: Any, value: int) -> Any:
        if expression not in self._symbols:
            symbol = self._environment.create_symbol(
                value,
                ConstantSource(f"size_{len(self._terms)}"),
                DimDynamic.DYNAMIC,
                positive=True if value > 0 else None,
                do_not_specialize_zero_one=True,
            )
            self._symbols[expression] = symbol
            self._terms[symbol] = expression
        return self._symbols[expression]

    def _forget(self) -> None:
        environment = self._environment
        for name in [name for name, symbol in environment.source_to_var.items() if symbol in self._terms]:
            del environment.source_to_var[name]
        for table in (
            environment.backed_var_to_val,
            environment.var_to_sources,
            environment.var_to_range,
            environment.var_to_range_sloc,
        ):
            for symbol in self._terms:
                table.pop(symbol, None)

    def concrete(self, value: Any, step: int) -> Any:
        """A number for a size: that of the example for step 0, then larger ones; None for a size that is not known."""
        if not isinstance(value, torch.SymInt):
            return value
        return self._number(value.node.expr, step, value.node.shape_env.backed_var_to_val)

    def _number(self, expression: Any, step: int, known: Mapping[Any, Any]) -> int | None:
        numbers: dict[Any, Any] = {}
        for symbol in expression.free_symbols:
            if symbol in self._terms:
                if (symbol, step) not in self._numbers:
                    self._numbers[symbol, step] = self._number(self._terms[symbol], step, known)
                number = self._numbers[symbol, step]
            else:
                number = known[symbol] + step if symbol in known else None
            if number is None:
                return None
            numbers[symbol] = number
        return int(expression.xreplace(numbers))
