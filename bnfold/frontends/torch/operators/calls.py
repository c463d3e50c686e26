"""Calls: the operator and the arguments of a node, whatever its spelling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, Flag
from typing import Any, NamedTuple

from torch import fx, nn

from bnfold.graph.ops import Op


class Slot(NamedTuple):
    """A parameter or buffer of a module that a `call_module` node calls."""

    path: str
    attribute: str


Handle = fx.Node | Slot
"""A stand-in for a tensor: a node, or a place in a called module."""

Describe = Callable[[Any, str], dict[str, Any]]
"""The arguments that a module brings to its operator, from the module and its path."""


class Memory(Enum):
    """The inputs with which a result may share memory."""

    ANY = "any"
    INPUT = "its argument `input`, if any"
    REPEATED = "its argument `input`, in which it repeats elements: nothing can be written into it"
    FRESH = "none"


class Keeps(Flag):
    """Properties that a result shares with its argument `input`. An argument that names a type overrides the type."""

    NOTHING = 0
    RANK = 1
    SHAPE = 3
    TYPE = 4


class Outputs(Enum):
    """The kind of value that a node makes."""

    ONE = "one value"
    FIRST = "a tuple, whose first entry is data"
    ALL = "a tuple of data"


@dataclass(frozen=True, eq=False)
class Operator:
    """A row of the table of operators. Whatever a row leaves out is safe: it costs folds, and makes none wrong.

    Attributes:
        name: one name for all spellings; aten's without its overload, where there is one.
        parameters: names in Python's order; ``*name`` takes the rest.
        functions: that do this, of torch or Python.
        methods: of tensors that do this.
        also: functions with parameters of another order, and their parameters.
        attributes: of tensors that are this.
        aten: names in aten besides `name`.
        modules: classes whose forward does this, and the arguments that they bring.
        memory: with which inputs the result may share memory.
        keeps: what it has in common with its input.
        data: the name of the argument that `carry` is about.
        measures: names of arguments of which it reads shape and type alone.
        outputs: how many values it makes.
        is_batchnorm: whether it normalises with statistics.
        is_arithmetic: whether it is arithmetic, a per-channel affine where one of two operands is constant.
        is_evaluated: whether it is deterministic, and worth evaluating where all its inputs are constant.
        linear: reads it as `Linear`, from a `Reader`.
        carry: reads it as an operator that carries affines, from a `Reader`.
    """

    name: str
    parameters: str = ""
    functions: tuple[Any, ...] = ()
    methods: str = ""
    also: Mapping[Any, str] = field(default_factory=dict)
    attributes: str = ""
    aten: str = ""
    modules: Mapping[type[nn.Module], Describe] = field(default_factory=dict)
    memory: Memory = Memory.ANY
    keeps: Keeps = Keeps.NOTHING
    data: str = "input"
    measures: str = ""
    outputs: Outputs = Outputs.ONE
    is_batchnorm: bool = False
    is_arithmetic: bool = False
    is_evaluated: bool = False
    linear: Callable[[Any], Any] | None = None
    carry: Callable[[Any], Op] | None = None


UNKNOWN = "unknown"
"""The name of an operator that is not in the table; it may do anything to its arguments."""


@dataclass(frozen=True, eq=False)
class Call:
    """An operator with its arguments.

    Attributes:
        operator: what is called.
        arguments: by name; a tensor is an `fx.Node` or a `Slot`. Those left out are absent.
        module: the module, for a call of one.
        is_inplace: whether it writes into its input.
        dims: the number that its name ends in: 2 for conv2d.
    """

    operator: Operator
    arguments: Mapping[str, Any]
    module: nn.Module | None = None
    is_inplace: bool = False
    dims: int | None = None

    @property
    def op(self) -> str:
        """The operator's name."""
        return self.operator.name

    def get(self, name: str, default: Any = None) -> Any:
        """An argument; `default` where it is left out or None."""
        argument = self.arguments.get(name)
        return default if argument is None else argument
