"""Shapes that follow from a model's inputs and its tensors. Notes on inner values are not believed."""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree
from torch.utils._mode_utils import no_dispatch

from bnfold.proof.torch.calls import FRESH, SPREAD, kind_of
from bnfold.proof.torch.sides import Side

Shape = tuple[int | None, ...]
"""Sizes of a value, as far as they are known."""

LARGER = (1, 32)
"""What is added to sizes of the example, in turn, until the model takes them. Twice the size comes last."""


class Shapes:
    """Shapes and types of the original's values, as far as they are known: for its example, and for larger inputs.

    Args:
        side: the model.
        inputs: the arguments of a graph module, as one tuple. If left out, the notes of its graph take their place.
    """

    def __init__(self, side: Side, inputs: tuple[Any, ...] | None = None) -> None:
        self._side = side
        self._fed = fed = self._given(inputs)
        self._interpreter = _Interpreter(side, fed)
        self._example = _run_example(self._interpreter) if fed else {}
        self._ranks: dict[fx.Node, int] = {}
        if not any(isinstance(value, torch.Tensor) for value in fed.values()):
            self._ranks = _Ranks(side).found

    def _given(self, inputs: tuple[Any, ...] | None) -> dict[fx.Node, Any]:
        """The graph's inputs."""
        fed: dict[fx.Node, Any] = {}
        places = [node for node in self._side.graph.nodes if node.op == "placeholder"]
        if inputs is not None and not isinstance(self._side.model, ExportedProgram):
            return dict(zip(places, inputs, strict=False))
        for node in places:
            tensor = self._side.tensors.get(self._side.place(node) or "")
            value = tensor if tensor is not None else node.meta.get("val")
            if value is None and (noted := node.meta.get("tensor_meta")) is not None and hasattr(noted, "shape"):
                value = torch.empty(noted.shape, dtype=noted.dtype, device="meta")
            if value is not None:
                fed[node] = value
        return fed

    @cached_property
    def _runs(self) -> Sequence[Mapping[fx.Node, Any]]:
        """What the nodes make for the example, and for larger inputs, which only carriers and merges ask about."""
        return _run_larger(self._interpreter, self._fed, self._example)

    @property
    def steps(self) -> range:
        """The example and larger inputs. There may be one that the model does not take: then less is known of it."""
        return range(len(self._runs))

    def value(self, node: fx.Node, step: int = 0) -> Any:
        """What a node makes, with fake tensors and numbers; None where that is not known.

        Args:
            node: the node.
            step: 0 for the example, then larger inputs.
        """
        return (self._runs[step] if step else self._example).get(node)

    def shape(self, node: fx.Node, step: int = 0) -> Shape | None:
        """The shape of a value, in which sizes may be unknown."""
        value = self.value(node, step)
        if isinstance(value, torch.Tensor):
            return tuple(None if isinstance(size, torch.SymInt) else size for size in value.shape)
        rank = self._ranks.get(node)
        return None if rank is None else (None,) * rank

    def shapes(self, *nodes: fx.Node) -> list[tuple[Shape, ...]]:
        """The shapes of some values, at each size of the inputs for which all are known."""
        each = [tuple(self.shape(node, step) for node in nodes) for step in self.steps]
        return [tuple(shape for shape in shapes if shape is not None) for shapes in each if None not in shapes]

    def rank(self, node: object) -> int | None:
        """The rank of a value, where it is known."""
        shape = self.shape(node) if isinstance(node, fx.Node) else None
        return None if shape is None else len(shape)

    def count(self, node: fx.Node) -> int | None:
        """The number of a node's values."""
        value = self.value(node)
        return len(value) if isinstance(value, tuple | list) else None


def _run_example(interpreter: _Interpreter) -> dict[fx.Node, Any]:
    """What the nodes make for the example."""
    found = interpreter.run_at({})
    if not interpreter.is_lacking:
        return found
    interpreter.is_faking = True
    again = interpreter.run_at({})
    interpreter.is_faking = len(again) > len(found)
    return max(again, found, key=len)


def _run_larger(
    interpreter: _Interpreter, fed: Mapping[fx.Node, Any], first: dict[fx.Node, Any]
) -> list[dict[fx.Node, Any]]:
    """What the nodes make for the example, which is `first`, and for larger inputs.

    Where the model does not take the example with all its sizes a little larger, what it makes until then is kept, and
    sizes are tried one by one, and those that cannot change alone together: a size may have to be a multiple, and
    others may have to equal it. An attempt that fails is no proof that a size is fixed.
    """
    runs = [first]
    example = {symbol: number for value in fed.values() for symbol, number in _symbols(value)}

    def takes(more: Mapping[Any, int], *, in_part: bool = False) -> bool:
        run = interpreter.run_at(more, like=first)
        is_taken = run.keys() == first.keys()
        if is_taken or in_part:
            runs.append(run)
        return is_taken

    def find(symbols: Collection[Any]) -> bool:
        tries = [dict.fromkeys(symbols, more) for more in LARGER]
        return any(takes(more) for more in (*tries, {symbol: example[symbol] for symbol in symbols}))

    if example and not all(takes(dict.fromkeys(example, more), in_part=more == 1) for more in (1, 2)):
        fixed = [symbol for symbol in example if not find([symbol])]
        if len(fixed) > 1:
            find(fixed)
    return runs


def _symbols(value: Any) -> Iterator[tuple[Any, int]]:
    """What the sizes of an input are made of, and its number in the example."""
    for leaf in _pytree.tree_leaves(value):
        for size in (*leaf.shape, *leaf.stride()) if isinstance(leaf, FakeTensor) else (leaf,):
            if isinstance(size, torch.SymInt):
                known = size.node.shape_env.backed_var_to_val
                yield from ((symbol, known[symbol]) for symbol in size.node.expr.free_symbols if symbol in known)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of operators that do not run."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Interpreter(fx.Interpreter):
    """Runs a graph on tensors without data. It leaves out values that cannot be computed, and all that depend on them.

    Sizes are numbers. With symbols, torch works them out anew in each operator, which takes ten times as long where
    they are quotients of quotients. And tensors are on the meta device: fake tensors, which know what else data would
    tell, take five times as long. They are asked where that device does not do: results may lie otherwise in memory
    there, and then a view of one may fail.

    Attributes:
        is_lacking: whether something did not run in the last run, whose inputs were known.
        is_faking: whether all is asked of fake tensors.
    """

    def __init__(self, side: Side, fed: dict[fx.Node, Any]) -> None:
        super().__init__(side.root, garbage_collect_values=False)
        self._side, self._fed = side, fed
        self._mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with what it was made of, whose identity counts
        self._more: Mapping[Any, int] = {}
        self.is_lacking = self.is_faking = False
        self._stateful = {node.target for node, call in side.calls.items() if call.is_stateful}

    def run_at(self, more: Mapping[Any, int], like: dict[fx.Node, Any] | None = None) -> dict[fx.Node, Any]:
        """The values of nodes.

        Args:
            more: what is added to symbols in the sizes of inputs.
            like: values of another run; where a node made one in that and makes none now, this run ends.
        """
        self.env, self._more, self.is_lacking = {}, more, False
        self._made.clear()  # a run may write into it
        with torch.no_grad(), _quiet():
            for node in self._side.graph.nodes:
                self._visit(node)
                if like is not None and node in like and node not in self.env:
                    break
        return self.env

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            return
        if node.op == "placeholder":
            if node in self._fed:
                with suppress(LookupError):
                    self.env[node] = _pytree.tree_map(self._blank, self._fed[node])
            return
        if not all(source in self.env for source in node.all_input_nodes):
            return
        try:
            self.env[node] = self._run(node)
        except Exception:  # an operator that does not run without data: then less is known
            self.is_lacking = True

    def _run(self, node: fx.Node) -> Any:
        if node.op == "get_attr" or (not self.is_faking and self._is_of_shapes(node)):
            with suppress(Exception):
                return self.run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        environment = self._mode.shape_env
        assert environment is not None
        args, kwargs = _pytree.tree_map(self._fake, (args, kwargs))
        with self._mode, environment.ignore_fresh_unbacked_symbols():
            if node.op == "call_module":
                made = self._copy(node.target, self._fake)(*args, **kwargs)
            else:
                made = getattr(self, node.op)(node.target, args, kwargs)
        return _pytree.tree_map(self._unfaked, made)

    def _is_of_shapes(self, node: fx.Node) -> bool:
        """Whether a call makes of tensors on the meta device what has the shape that it has elsewhere."""
        if not any(isinstance(self.env[source], torch.Tensor) for source in node.all_input_nodes):
            return node.op == "call_module"
        leaves = _pytree.tree_leaves((node.args, dict(node.kwargs)))
        name = self._side.calls[node].name
        is_known = isinstance(node.target, torch._ops.OpOverload) or node.op == "call_module" or name in FRESH
        return (
            is_known
            and name != "scaled_dot_product_attention"  # lies otherwise in memory there
            and not any(isinstance(leaf, torch.device | torch.Generator) for leaf in leaves)
        )

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a copy of a module, since it may change its state."""
        return self._copy(target)(*args, **kwargs)

    def _copy(self, target: Any, change: Callable[[Any], Any] = lambda blank: blank) -> Any:
        """A module with blank tensors, or what these are changed to, in place of real ones; itself if it must be."""
        module = self.fetch_attr(target)
        tensors = [
            tensor
            for part in module.modules()
            for group in (part._parameters, part._buffers, vars(part))
            for tensor in group.values()
            if isinstance(tensor, torch.Tensor)
        ]
        try:
            return copy.deepcopy(module, {id(tensor): change(self._blank(tensor)) for tensor in tensors})
        except Exception:
            if target in self._stateful:
                raise
            return module

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Read an attribute of the model, with blank tensors in place of real ones."""
        return _pytree.tree_map(self._blank, self.fetch_attr(target))

    def _blank(self, value: Any) -> Any:
        """What has the shape of a tensor of the model or of an input."""
        if isinstance(value, torch.SymInt):
            return self._number(value)
        if isinstance(value, FakeTensor):
            return _empty(value, *(tuple(map(self._number, numbers)) for numbers in (value.shape, value.stride())))
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._made:
            is_plain = type(value) in (torch.Tensor, nn.Parameter) and value.layout == torch.strided
            made = (
                _empty(value, value.shape, value.stride())
                if is_plain and not value.is_quantized
                else self._mode.from_tensor(value.detach(), static_shapes=True)
            )
            self._made[id(value)] = value, made
        return self._made[id(value)][1]

    def _fake(self, value: Any) -> Any:
        is_blank = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
        return FakeTensor(self._mode, value, torch.device("cpu")) if is_blank else value

    def _unfaked(self, value: Any) -> Any:
        sizes = (*value.shape, *value.stride()) if isinstance(value, FakeTensor) else ()
        is_known = isinstance(value, FakeTensor) and not any(isinstance(size, torch.SymInt) for size in sizes)
        return _empty(value, value.shape, value.stride()) if is_known else value

    def _number(self, size: Any) -> Any:
        """A number for a size of an input.

        Raises:
            LookupError: nothing is known of it.
        """
        if not isinstance(size, torch.SymInt):
            return size
        expression, known = size.node.expr, size.node.shape_env.backed_var_to_val
        return int(
            expression.xreplace(
                {symbol: known[symbol] + self._more.get(symbol, 0) for symbol in expression.free_symbols}
            )
        )


def _empty(like: torch.Tensor, sizes: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    with no_dispatch():
        return torch.empty_strided(sizes, strides, dtype=like.dtype, device="meta")


_KEEPS_RANK = (
    "relu leaky_relu prelu dropout identity clone contiguous detach sigmoid tanh silu gelu hardswish"
    " hardsigmoid hardtanh relu6 elu interpolate pad neg batch_norm instance_norm linear to float double half"
    " bfloat16 type pixel_shuffle pixel_unshuffle channel_shuffle softmax max_pool1d max_pool2d max_pool3d"
    " avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
    " adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d conv1d conv2d conv3d conv_transpose1d"
    " conv_transpose2d conv_transpose3d transpose flip roll"
)

KEEPS_RANK = frozenset(_KEEPS_RANK.split())
"""Functions, methods and modules whose result has the rank of their first argument."""


class _Ranks:
    """Ranks that hold for every input.

    A BatchNorm2d tells the rank of its input, for example, and others follow in both directions.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self.found: dict[fx.Node, int] = {}
        for node in side.graph.nodes:
            if (tensor := side.held(node)) is not None:
                self.found[node] = tensor.dim()
        count = -1
        while count != len(self.found):
            count = len(self.found)
            for node, call in [*side.calls.items(), *reversed(list(side.calls.items()))]:
                self._visit(node, call.name, call.get("input"), call.module)

    def _assertion(self, node: fx.Node) -> None:
        """``torch._assert(x.ndim == 4, ...)``, which subclasses of BatchNorm begin with."""
        claim = node.args[0] if node.target is torch._assert and node.args else None
        if not isinstance(claim, fx.Node) or claim.target is not operator.eq or len(claim.args) != 2:
            return
        asked, rank = claim.args
        if isinstance(asked, fx.Node) and type(rank) is int and self._side.calls[asked].name in ("ndim", "dim"):
            subject = asked.args[0]
            if isinstance(subject, fx.Node) and len(asked.args) == (2 if asked.target is getattr else 1):
                self.found[subject] = rank

    def _visit(self, node: fx.Node, name: str, source: Any, module: nn.Module | None) -> None:
        self._assertion(node)
        kind = None if module is None else kind_of(module)
        if kind in (nn.BatchNorm2d, nn.BatchNorm3d):
            self.found[node] = 4 if kind is nn.BatchNorm2d else 5
        picked = self._side.pick(node)
        if picked is not None:
            if self._side.calls[picked[0]].name in SPREAD - {"unbind"}:
                self._equate(node, picked[0])
        elif name in KEEPS_RANK or name in SPREAD - {"unbind"}:
            self._equate(node, source if source is not None else next(iter(node.args), None))
        elif name in ("add", "sub", "mul", "div"):
            self._broadcast(node)
        elif name == "cat":
            for operand in node.all_input_nodes:
                self._equate(node, operand)
        elif name == "permute":
            dims = node.args[1:] if len(node.args) > 2 else node.args[-1]
            if isinstance(dims, tuple | list):
                self.found[node] = len(dims)
                self._equate(node, node.args[0])
        elif name == "flatten":
            self._flatten(node, module, source)

    def _flatten(self, node: fx.Node, module: nn.Module | None, source: Any) -> None:
        if isinstance(module, nn.Flatten):
            cut = module.start_dim, module.end_dim
        else:
            listed = list(node.args[1:])
            start = node.kwargs.get("start_dim", listed[0] if listed else 0)
            end = node.kwargs.get("end_dim", listed[1] if len(listed) > 1 else -1)
            cut = start, end  # type: ignore[assignment]
        if type(cut[0]) is int and cut[0] >= 0 and cut[1] == -1 and self.found.get(source, 0) > cut[0]:
            self.found[node] = cut[0] + 1

    def _broadcast(self, node: fx.Node) -> None:
        if any(isinstance(argument, torch.Tensor) for argument in node.args):
            return
        ranks = [self.found.get(source) for source in node.all_input_nodes]
        if ranks and None not in ranks:
            self.found[node] = max(rank for rank in ranks if rank is not None)

    def _equate(self, node: fx.Node, other: Any) -> None:
        if not isinstance(other, fx.Node):
            return
        for one, two in ((node, other), (other, node)):
            if one in self.found and two not in self.found:
                self.found[two] = self.found[one]
