"""One of two torch models: its nodes and values by name, its tensors, and its digest."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx.node import map_arg

from bnfold.proof.failure import ProofError
from bnfold.proof.torch.calls import BY_BATCH, CALLS, DEQUANTIZERS, SIZES, SPREAD, Call, read_call

AnyArray = npt.NDArray[Any]

Model = fx.GraphModule | ExportedProgram

HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_PURE = (
    "abs add alias amax arange cat clamp clamp_min clip clone contiguous detach div dot exp expand expand_as vdot"
    " flatten full getitem index index_select identity lift_fresh_copy mm mul mv neg norm ones permute pow"
    " reciprocal repeat reshape reshape_as rsqrt rsub scalar_tensor select slice sqrt squeeze stack std sub sum"
    " mean t to _to_copy float double half bfloat16 type type_as transpose swapaxes swapdims unsqueeze unflatten"
    " view view_as _unsafe_view var var_mean linalg_vector_norm _weight_norm _weight_norm_interface zeros"
    " batch_norm broadcast_to adjoint T mT H mH numpy_T matrix_H _reshape_copy _reshape_alias view_copy"
)

PURE = frozenset({*_PURE.split(), BY_BATCH, *DEQUANTIZERS})
"""Deterministic operators: their results are constant where all their inputs are."""

NUMBERS = frozenset({"math", "_operator", "torch", "torch.fx.experimental.symbolic_shapes"})
"""The modules of functions that compute with numbers."""

LIMIT = 1 << 28
"""The most elements of a constant that is computed."""


def occurrences(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of a node, each as often as it occurs."""
    nodes: list[fx.Node] = []
    map_arg((node.args, node.kwargs), nodes.append)
    return nodes


def root_of(model: Model) -> fx.GraphModule:
    """The root module of a model's graph."""
    return model.graph_module if isinstance(model, ExportedProgram) else model


class Side:
    """A torch model.

    Attributes:
        model, root, graph: the model, the root module of its graph, and the graph.
        nodes: its nodes by name.
        order: the place of each node.
        calls: the call of each node.
        specs: the specs of a program's inputs, by the names of their placeholders.
        tensors: all its tensors, by path.
        tangled: nodes that may be overwritten behind the back of a reader; no constants are among them.
        counts: the number of values of each node that makes several, where it is known.
        calls_by_name: the names of the nodes that call something.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.root = model, root_of(model)
        self.graph: fx.Graph = self.root.graph
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self.order: dict[fx.Node, int] = {node: index for index, node in enumerate(self.graph.nodes)}
        self.calls: dict[fx.Node, Call] = {
            node: read_call(node, self.root) for node in self.graph.nodes if node.op in CALLS
        }
        self.specs: dict[str, InputSpec] = {}
        if isinstance(model, ExportedProgram):
            self.specs = {getattr(spec.arg, "name", ""): spec for spec in model.graph_signature.input_specs}
        self.tensors: dict[str, torch.Tensor] = {}
        for path, tensor in _tensors(model):
            if self.tensors.setdefault(path, tensor) is not tensor:
                raise ProofError("wiring", path, "two tensors have this name")
        self._memo: dict[fx.Node, torch.Tensor | None] = {}
        self.tangled: set[fx.Node] = set()
        self.counts: dict[fx.Node, int] = {}
        self.calls_by_name = {node.name for node in self.calls}

    @cached_property
    def mutated(self) -> frozenset[str]:
        """Paths of tensors that a run of the model changes, or that share memory with those."""
        changed: set[str] = set()
        if isinstance(self.model, ExportedProgram):
            signature = self.model.graph_signature
            changed |= {*signature.buffers_to_mutate.values(), *getattr(signature, "parameters_to_mutate", {}).values()}
        for node, call in self.calls.items():
            if call.is_stateful:
                changed |= {path for path in self.tensors if path.startswith(f"{node.target}.")}
        memory = {storage(self.tensors[path]) for path in changed if path in self.tensors}
        return frozenset(path for path, tensor in self.tensors.items() if storage(tensor) in memory) | changed

    def place(self, node: fx.Node) -> str | None:
        """The path of the tensor that a node stands for."""
        if node.op == "get_attr":
            return str(node.target) if str(node.target) in self.tensors else None
        spec = self.specs.get(node.name) if node.op == "placeholder" else None
        return spec.target if spec is not None and spec.kind in HELD else None

    def held(self, node: fx.Node) -> torch.Tensor | None:
        """The tensor that a node stands for, if no run of the model changes it."""
        place = self.place(node)
        if place is None or place in self.mutated or node in self.tangled:
            return None
        return self.tensors.get(place)

    @cached_property
    def constants(self) -> frozenset[fx.Node]:
        """Nodes whose values do not depend on the inputs."""
        constants: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node in self.tangled:
                continue
            if node.op in ("get_attr", "placeholder"):
                if self.held(node) is not None:
                    constants.add(node)
            elif node.op in ("call_function", "call_method"):
                call = self.calls[node]
                if (
                    call.name in PURE
                    and not call.writes
                    and all(source in constants for source in node.all_input_nodes)
                ):
                    constants.add(node)
        return frozenset(constants)

    def constant(self, node: object) -> torch.Tensor | None:
        """The value of a constant node, or of a tensor of a module, in its own type."""
        if isinstance(node, torch.Tensor):
            return node
        if not isinstance(node, fx.Node) or node not in self.constants:
            return None
        if node not in self._memo:
            for source in self._sources(node):
                if source not in self._memo:
                    self._memo[source] = self._evaluate(source)
        return self._memo[node]

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        seen: set[fx.Node] = set()
        stack = [node]
        while stack:
            top = stack.pop()
            if top not in seen:
                seen.add(top)
                stack.extend(top.all_input_nodes)
        return sorted(seen, key=self.order.__getitem__)

    def _evaluate(self, node: fx.Node) -> Any:
        tensor = self.held(node)
        if tensor is not None:
            return tensor
        try:
            with torch.no_grad():
                if self._size(node) > LIMIT:
                    raise ProofError("weights", node.name, "it is too large to be evaluated")
                return run_node(node, lambda source: _detached(self._memo[source]))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
            raise ProofError("weights", node.name, f"it cannot be evaluated ({type(error).__name__})") from error

    def _size(self, node: fx.Node) -> int:
        """The number of elements of a constant, found without data; for a move to a device, that of its inputs."""
        try:
            output = run_node(node, lambda source: _move(self._memo[source]))
        except NotImplementedError:
            output = [self._memo[source] for source in node.all_input_nodes]
        listed = output if isinstance(output, tuple | list) else [output]
        return sum(tensor.numel() for tensor in listed if isinstance(tensor, torch.Tensor))

    @cached_property
    def sizes(self) -> frozenset[fx.Node]:
        """Nodes that are no tensors: sizes and the like of a tensor, and everything computed from those alone."""
        numbers: set[fx.Node] = set()
        for node, call in self.calls.items():
            home, read = str(getattr(node.target, "__module__", "")), node.all_input_nodes
            if call.name in SIZES or (home in NUMBERS and read and numbers.issuperset(read)):
                numbers.add(node)
        return frozenset(numbers)

    def pick(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """Which entry of a tuple of data a node is."""
        if node.op != "call_function" or node.target is not operator.getitem or len(node.args) != 2:
            return None
        source, index = node.args
        if not isinstance(source, fx.Node) or type(index) is not int or not self.is_spread(source):
            return None
        return source, index + self.counts.get(source, 0) if index < 0 else index

    def is_spread(self, node: fx.Node) -> bool:
        """Whether a node makes a tuple."""
        if node not in self.calls:
            return False
        if isinstance(node.target, torch._ops.OpOverload):
            returns = node.target._schema.returns
            return len(returns) > 1 or (len(returns) == 1 and str(returns[0].type).startswith("List["))
        return self.calls[node].name in SPREAD

    def key(self, node: fx.Node) -> str:
        """The name of the value that a node stands for: an entry of a tuple is ``name[index]``."""
        entry = self.pick(node)
        return node.name if entry is None else f"{entry[0].name}[{entry[1]}]"

    def first(self, node: fx.Node) -> str:
        """The name of the first value that a node makes."""
        return f"{node.name}[0]" if self.is_spread(node) else node.name

    def keys(self, node: fx.Node) -> list[str]:
        """The names of all values that a node makes and that something reads by itself."""
        if not self.is_spread(node):
            return [node.name]
        picks = [pair[1] for user in node.users if user.users and (pair := self.pick(user)) is not None]
        return [f"{node.name}[{index}]" for index in sorted(set(picks))]


def run_node(node: fx.Node, value: Any) -> Any:
    """Run the call of a function or a method."""
    arguments, keywords = map_arg(node.args, value), map_arg(node.kwargs, value)
    if node.op == "call_method":
        receiver, *rest = arguments
        return getattr(receiver, str(node.target))(*rest, **keywords)
    assert callable(node.target)
    return node.target(*arguments, **keywords)


def _move(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("meta")
    return type(value)(map(_move, value)) if type(value) in (tuple, list) else value


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return type(value)(map(_detached, value)) if type(value) in (tuple, list) else value


def storage(tensor: torch.Tensor) -> int:
    """The identity of a tensor's memory: equal for tensors that share it."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return id(tensor)


def _tensors(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a model, registered or in plain attributes of its modules."""
    for path, module in root_of(model).named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for group in (module._parameters, module._buffers, vars(module)):
            for name, tensor in group.items():
                if isinstance(tensor, torch.Tensor):
                    yield f"{prefix}{name}", tensor
    if isinstance(model, ExportedProgram):
        for group in (model.constants, model.state_dict):
            for name, tensor in group.items():
                if isinstance(tensor, torch.Tensor):
                    yield name, tensor


def to_numpy(node: str, tensor: torch.Tensor) -> AnyArray:
    """The numbers of a weight."""
    is_known = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided
    if not is_known or tensor.dtype not in TYPES or tensor.device.type == "meta":
        raise ProofError("weights", node, f"a weight is a {type(tensor).__name__} of {tensor.dtype}")
    plain = tensor.detach().cpu().resolve_neg()
    if plain.dtype is torch.bfloat16:
        bits: AnyArray = plain.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: AnyArray = plain.numpy()
    return array


def content(tensor: torch.Tensor) -> bytes | memoryview:
    """The bytes of a tensor; its description where it has none."""
    is_known = tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
    try:
        if is_known and type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer):
            plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            return np.ascontiguousarray(plain.view(torch.uint8).numpy()).data
    except (RuntimeError, TypeError):
        pass
    return repr((type(tensor).__name__, tensor.shape, tensor.dtype)).encode()


BLOCK = 1 << 20
"""Bytes that are compared at a time."""


def is_same_tensor(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bytes, and are of the same kind."""
    if one is other:
        return True
    kinds = [
        (type(tensor), tensor.dtype, tensor.shape, tensor.requires_grad, tensor.device, tensor.layout)
        for tensor in (one, other)
    ]
    if kinds[0] != kinds[1] or one.device.type == "meta" or one.layout is not torch.strided or one.is_quantized:
        return False
    if type(one) not in (torch.Tensor, nn.Parameter, nn.Buffer):
        return False
    return has_same_content(one, other)


def has_same_content(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the bytes of two tensors are the same."""
    mine, its = (np.frombuffer(content(tensor), np.uint8) for tensor in (one, other))
    if mine.ctypes.data == its.ctypes.data:
        return mine.size == its.size
    blocks = (slice(start, start + BLOCK) for start in range(0, mine.size, BLOCK))
    return mine.size == its.size and all(np.array_equal(mine[block], its[block]) for block in blocks)


def digest(model: Model) -> str:
    """SHA-256 of a model: its graph, its signature, its modules, and the bytes of its tensors."""
    side_root = root_of(model)
    sha = hashlib.sha256()

    def note(*texts: object) -> None:
        for text in texts:
            line = str(text).encode()
            sha.update(len(line).to_bytes(8, "little") + line)

    for node in side_root.graph.nodes:
        note(node.op, node.name, _title(node.target), repr(node.args), repr(node.kwargs))
    if isinstance(model, ExportedProgram):
        note(model.graph_signature, model.range_constraints)
    for path, module in side_root.named_modules(remove_duplicate=False):
        is_graph = isinstance(module, fx.GraphModule)
        note(path, fx.GraphModule.__qualname__ if is_graph else type(module).__qualname__)
        note(module.graph if is_graph and path else "", "" if is_graph else module.extra_repr(), module.training)
    tensors: Mapping[str, torch.Tensor] = dict(_tensors(model))
    for path in sorted(tensors):
        tensor = tensors[path]
        note(path, tensor.dtype, tuple(tensor.shape), tensor.requires_grad)
        data = content(tensor)
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def _title(target: Any) -> str:
    if isinstance(target, str | torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', type(target).__qualname__)}"
