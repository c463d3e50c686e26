"""A PyTorch model under test, run eagerly."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.func import functional_call
from torch.utils import _pytree

from bnfold.errors import IncomparableError, one_line, plural
from bnfold.frontends.inputs import parameters
from bnfold.frontends.limits import Limits
from bnfold.frontends.torch import load
from bnfold.runtimes.inputs import Declared, Feeds, whole_range
from bnfold.runtimes.stages import stage
from bnfold.verification.normalisation import Normalisation
from bnfold.verification.observe import is_narrow
from bnfold.verification.onnx_weights import WIDE_STEPS, Disturbance
from bnfold.verification.sizes import MOST, SizeHints
from bnfold.verification.storage import Storage, find_rounded
from bnfold.verification.subject import Cut, Inside, Run, Subject

AnyArray = npt.NDArray[Any]

SEED = 0
"""The seed of random numbers that a model draws."""

NUMPY = {torch.bool: np.dtype(np.bool_), torch.bfloat16: np.dtype(ml_dtypes.bfloat16)}
"""Types that numpy and torch spell in different ways."""

NUMERIC = frozenset({"to", "_to_copy", "type_as", "div", "sub", "rsub", "mul", "add", "_assert_tensor_metadata"})
"""Operators that compute with an integer image, or convert its type."""

JUMPS = frozenset(
    [
        *("argmax", "argmin", "argsort", "sort", "topk", "kthvalue", "round", "floor", "ceil", "trunc", "sign"),
        *("eq", "ne", "lt", "le", "gt", "ge", "nonzero", "unique", "multinomial", "bernoulli", "fmod", "remainder"),
        "bucketize",
    ]
)
"""Operators whose output may jump where the input moves a little (round, argmax)."""


def is_silent(model: object) -> bool:
    """Whether a model does not declare its inputs. A module does not, a program does."""
    return isinstance(model, nn.Module)


def open_subject(
    model: Any,
    label: str,
    limits: Limits,
    feeds: Feeds | None,
    other: Subject | None,
    custom_ops: Sequence[Path] = (),
) -> TorchSubject:
    """Open a module, a program, or the program in a file, ready to run.

    Args:
        model: the model.
        label: its name in messages, if it is no file.
        limits: how much a file may ask for.
        feeds: real inputs of a module, by name.
        other: the model that it is compared with. It tells the inputs of a module where there are no real ones.
        custom_ops: libraries of ONNX Runtime, which are nothing to PyTorch.

    Raises:
        BnfoldError: the model cannot be read, or nothing tells its inputs.
    """
    if isinstance(model, str | Path):
        with stage(str(model), "loading", "torch"):
            program = load(Path(model), limits)
        return TorchSubject.of_program(program, str(model))
    if not is_silent(model):
        return TorchSubject.of_program(model, label)
    if feeds:
        return TorchSubject.of_module(model, label, feeds, 0)
    if other is None:
        raise IncomparableError(f"{label}: a torch module does not say what it takes; give inputs, by name")
    return TorchSubject.of_module(model, label, other.inputs, len(other.outputs))


def start_inside(
    path: Path, limits: Limits, names: Sequence[str], custom_ops: Sequence[Path] = ()
) -> tuple[Sequence[Declared], Inside]:
    """What a saved program takes, and a run that gives some of its values; custom operators are ONNX Runtime's.

    Raises:
        BnfoldError: it cannot be read or run.
    """
    program = load(path, limits)
    subject = TorchSubject.of_program(program, str(path))

    def run(feeds: Feeds) -> dict[str, AnyArray]:
        recorder = _Recorder(program.graph_module, set(names))
        given = iter([_to_torch(feeds[each.name]) for each in subject.inputs])
        held = {**program.state_dict, **program.constants}
        arguments = []
        for spec in program.graph_signature.input_specs:
            is_given = spec.kind is InputKind.USER_INPUT
            constant = spec.arg.value if isinstance(spec.arg, ConstantArgument) else None
            fed = next(given) if is_given and not isinstance(spec.arg, ConstantArgument) else constant
            arguments.append(fed if is_given else held[str(spec.target)])
        try:
            with torch.no_grad(), _same_draws(torch.device("cpu")), stage(str(path), "running", "torch"):
                recorder.run(*arguments)
        except Exception as error:  # a guard or an operator may raise anything
            raise IncomparableError(f"{path}: torch cannot run it ({one_line(str(error), 300)})") from error
        return recorder.found

    return subject.inputs, run


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps some values, as they are before anything writes into them."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self._names = names
        self.found: dict[str, AnyArray] = {}

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if n.name in self._names and isinstance(made, torch.Tensor):
            self.found[n.name] = _to_numpy(made.detach()).copy()
        return made


class TorchSubject:
    """A `bnfold.verification.subject.Subject`. Of its values, only the outputs have names.

    Args:
        module: the module that runs.
        kind: "torch.module" or "torch.program".
        label: its name in messages.
        declared: the inputs, in order.
        outputs: how many there are.
        arguments: how it is called with them.
        jumps: outputs behind an operator of `JUMPS`.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: str,
        label: str,
        declared: Sequence[Declared],
        outputs: int,
        arguments: _Arguments,
        jumps: frozenset[str] = frozenset(),
    ) -> None:
        self._module = module
        self.kind = kind
        self.label = label
        self.inputs = list(declared)
        self._count = outputs
        self._arguments = arguments
        self._jumps = jumps
        self.notes: list[str] = []
        self.defaults: list[str] = []
        self.declared_outputs: list[Declared] = []

    @classmethod
    def of_program(cls, program: ExportedProgram, label: str) -> TorchSubject:
        """The subject for an exported program, which declares its inputs.

        Raises:
            IncomparableError: an argument is neither a tensor nor a constant.
        """
        placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        declared: list[Declared] = []
        places: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind is not InputKind.USER_INPUT:
                continue
            if isinstance(spec.arg, ConstantArgument):
                places.append(_Fixed(spec.arg.value))
                continue
            value = placeholders[spec.arg.name].meta.get("val")
            if not isinstance(value, torch.Tensor):
                raise IncomparableError(f"{label}: input {spec.arg.name!r} is no tensor and cannot be drawn")
            shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
            places.append(_Fed(spec.arg.name))
            dtype = _dtype(value)
            is_number = dtype.kind in "iu" and dtype.itemsize <= 2 and _is_number(placeholders[spec.arg.name])
            declared.append(Declared(spec.arg.name, dtype, shape, whole_range(dtype) if is_number else None))
        tree = program.call_spec.in_spec
        assert tree is not None
        count = sum(
            spec.kind is OutputKind.USER_OUTPUT and not isinstance(spec.arg, ConstantArgument)
            for spec in program.graph_signature.output_specs
        )
        module = program.module(check_guards=False)
        arguments = _Arguments(tuple(places), tree)
        return cls(module, "torch.program", label, declared, count, arguments, _jumping(program))

    @classmethod
    def of_module(cls, module: nn.Module, label: str, declared: Sequence[Declared] | Feeds, count: int) -> TorchSubject:
        """The subject for a module, which does not declare its inputs.

        Args:
            module: the module that runs.
            label: its name in messages.
            declared: its inputs, in the order of the forward's parameters; or arrays by their names.
            count: how many outputs it has; 0 to find that out by running it on the arrays.

        Raises:
            IncomparableError: its forward takes other inputs.
        """
        feeds: Feeds = {}
        by_name = False
        if isinstance(declared, dict):
            names = parameters(module, by_name=True)
            by_name = set(declared) <= set(names)
            feeds = {name: declared[name] for name in names if name in declared} if by_name else declared
            declared = [Declared(name, array.dtype, (None,) * array.ndim) for name, array in feeds.items()]
        fed = {entry.name: _Fed(entry.name) for entry in declared}
        arguments: tuple[Any, Any] = ((), fed) if by_name else (tuple(fed.values()), {})
        places, tree = _pytree.tree_flatten(arguments)
        subject = cls(module, "torch.module", label, declared, count, _Arguments(tuple(places), tree))
        if not count:
            subject._count = len(subject._run(module, feeds))
        return subject

    @property
    def outputs(self) -> list[str]:
        """The outputs, numbered, since only some of them have names."""
        return [f"output_{index}" for index in range(self._count)]

    @property
    def may_draw(self) -> bool:
        """True: a module's code may do anything."""
        return True

    def values(self) -> Mapping[str, str]:
        """No inner values: modules have no names for them."""
        return {}

    def size_hints(self) -> SizeHints:
        """What a program does with sizes; nothing is known of a module's code."""
        return _size_hints(self._module) if isinstance(self._module, fx.GraphModule) else SizeHints()

    def normalisations(self) -> Mapping[str, Normalisation]:
        """None: what a program first does with inputs is not read."""
        return {}

    def storage(self) -> Storage:
        """How it stores parameters and buffers."""
        types = frozenset(str(weight.dtype).removeprefix("torch.") for weight in self._weights.values())
        return Storage(types, find_rounded(map(_to_numpy, self._weights.values())))

    @property
    def narrow_weights(self) -> frozenset[bytes]:
        """None: in which type a module's code computes with a parameter is not read."""
        return frozenset()

    def unpack_weights(self) -> None:
        """Leave all as it is."""

    def jumps(self) -> frozenset[str]:
        """The outputs of a program behind an operator of `JUMPS`. A module's code is not read."""
        return self._jumps

    def measure(self, feeds: Feeds) -> Mapping[str, int]:
        """No bytes, since there are no inner values."""
        return {}

    def descends(self, value: str, ancestor: str) -> bool:
        """Never called for outputs, and there are no inner values."""
        return False

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        """The parameters and buffers whose rounding is noise."""
        tensors = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        return {
            name: tensor.detach()
            for name, tensor in tensors.items()
            if tensor.is_floating_point() and tensor.numel() > 1
        }

    def start(self, fetch: Sequence[str], disturbance: Disturbance | None = None) -> Run:
        """Start the module as it is, eagerly and on the device of its parameters."""
        overrides: dict[str, torch.Tensor] = {}
        if disturbance is not None:
            for index, (name, weight) in enumerate(self._weights.items()):
                moved = disturbance(_to_numpy(weight), index)
                overrides[name] = _to_torch(moved).to(weight.device)
        wanted = [self.outputs.index(name) for name in fetch]

        def run(feeds: Feeds) -> list[AnyArray]:
            outputs = self._run(self._module, feeds, overrides)
            return [outputs[index] for index in wanted]

        return run

    def start_replacing(self, value: str, fetch: Sequence[str]) -> Run:
        """Never called, since there are no inner values."""
        raise IncomparableError(f"{self.label}: has no inner value {value!r}")

    def start_as_deployed(self, provider: str) -> tuple[Run, str | None]:
        """Start on "cpu" or "cuda", eagerly, which optimises nothing."""
        if provider == "cpu":
            return self.start(self.outputs), None
        if provider != "cuda" or not torch.cuda.is_available():
            raise IncomparableError(f"{self.label}: PyTorch here has no {provider!r} to run it on")
        moved = _copied(self._module).to("cuda")
        return lambda feeds: self._run(moved, feeds), None

    def start_with_defaults(self, provider: str) -> tuple[Run, str] | None:
        """None: PyTorch multiplies matrices in float32 by default."""
        return None

    def widened(self) -> tuple[TorchSubject, int] | None:
        """The model with float32 in place of float16 and bfloat16, and the steps of its disturbances.

        None where the code may name one of these types itself.
        """
        kinds = {str(weight.dtype).removeprefix("torch.") for weight in self._weights.values()}
        if (
            kinds.isdisjoint(WIDE_STEPS)
            or not isinstance(self._module, fx.GraphModule)
            or _names_a_narrow_type(self._module)
        ):
            return None
        steps = max(WIDE_STEPS[name] for name in kinds & WIDE_STEPS.keys())
        declared = [
            dataclasses.replace(entry, dtype=np.dtype(np.float32)) if is_narrow(entry.dtype) else entry
            for entry in self.inputs
        ]
        module = _copied(self._module).float()
        wide = TorchSubject(module, self.kind, self.label, declared, self._count, self._arguments, self._jumps)
        return wide, steps

    def resized(self) -> tuple[TorchSubject, Sequence[str]] | None:
        """None: a program guards its sizes, and a module's are those of its example inputs."""
        return None

    def cut(self, fetch: Sequence[str], known: Collection[str]) -> Cut:
        """The whole module, since it has no inner values."""
        return Cut((), ())

    def evaluate_exactly(
        self, feeds: Feeds, fetch: Sequence[str], seconds: float, given: Feeds | None = None
    ) -> list[AnyArray] | None:
        """Evaluate a copy of the module in float64; None where its code insists on another type."""
        wide = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feeds.items()}
        try:
            outputs = self._run(_copied(self._module).double(), wide)
        except IncomparableError:  # it cannot be copied, or its code insists on another type: then there is no truth
            return None
        return [outputs[self.outputs.index(name)].astype(np.float64) for name in fetch]

    def _run(
        self, module: nn.Module, feeds: Feeds, overrides: Mapping[str, torch.Tensor] | None = None
    ) -> list[AnyArray]:
        device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        args, kwargs = self._arguments.fill({name: _to_torch(array).to(device) for name, array in feeds.items()})
        try:
            with (
                torch.no_grad(),
                warnings.catch_warnings(),
                _same_draws(device),
                stage(self.label, "running", "torch"),
            ):
                warnings.simplefilter("ignore")
                results = functional_call(module, dict(overrides or {}), args, kwargs)
        except Exception as error:  # a guard, an operator or the module's code may raise anything
            raise IncomparableError(f"{self.label}: torch cannot run it ({one_line(str(error), 300)})") from error
        arrays = [_to_numpy(tensor.detach()) for tensor in _tensors(results)]
        if self._count and len(arrays) != self._count:
            raise IncomparableError(f"{self.label}: has {plural(len(arrays), 'output')}, not {self._count}")
        return arrays


@contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers each time, and leave the caller's generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        yield


@dataclasses.dataclass(frozen=True)
class _Fed:
    """The place of an input among the arguments."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Fixed:
    """An argument that never changes."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class _Arguments:
    """The arguments of a module, with places for its inputs."""

    places: tuple[Any, ...]
    tree: Any

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and keyword arguments, with these inputs in their places."""
        flat = [tensors[place.name] if isinstance(place, _Fed) else place.value for place in self.places]
        args, kwargs = _pytree.tree_unflatten(flat, self.tree)
        return tuple(args), dict(kwargs)


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a module, made without torch's warnings about its own code."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return copy.deepcopy(module)
    except Exception as error:  # a module's own __deepcopy__ or __reduce__ may raise anything
        raise IncomparableError(f"{type(module).__name__} cannot be copied ({one_line(str(error), 200)})") from error


def _names_a_narrow_type(module: fx.GraphModule) -> bool:
    arguments = [(node.args, node.kwargs) for node in module.graph.nodes]
    return any(leaf in (torch.float16, torch.bfloat16) for leaf in _pytree.tree_leaves(arguments))


def _is_number(node: fx.Node) -> bool:
    """Whether the readers of an integer input only compute with it. For others it may be an index."""
    names = {str(getattr(user.target, "_opname", "")) for user in node.users}
    return names <= NUMERIC


def _dtype(tensor: torch.Tensor) -> np.dtype[Any]:
    return NUMPY.get(tensor.dtype) or np.dtype(str(tensor.dtype).removeprefix("torch."))


def _to_numpy(tensor: torch.Tensor) -> AnyArray:
    plain = tensor.cpu().contiguous().resolve_neg().resolve_conj()
    if plain.dtype is torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: AnyArray = plain.numpy()
    return array


def _to_torch(array: AnyArray) -> torch.Tensor:
    copied = np.array(array, order="C", copy=True)
    if copied.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def _tensors(results: Any) -> Iterator[torch.Tensor]:
    """The tensors of an output, in order, also those in dataclasses."""
    for leaf in _pytree.tree_leaves(results):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for field in dataclasses.fields(leaf):
                yield from _tensors(getattr(leaf, field.name))


def _jumping(program: ExportedProgram) -> frozenset[str]:
    """The outputs behind a jump that depends on inputs or weights."""
    behind: set[Any] = set()
    for node in program.graph.nodes:
        name = str(getattr(node.target, "_opname", ""))
        if name.strip("_") in JUMPS or any(source in behind for source in node.all_input_nodes):
            behind.add(node)
    returned = next(iter(reversed(program.graph.nodes))).args[0]
    kinds = [
        (spec, node)
        for spec, node in zip(program.graph_signature.output_specs, returned, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and not isinstance(spec.arg, ConstantArgument)
    ]
    return frozenset(f"output_{index}" for index, (_, node) in enumerate(kinds) if node in behind)


STRIDES = {"convolution": 3, "conv1d": 3, "conv2d": 3, "conv3d": 3, "max_pool2d": 2, "avg_pool2d": 2, "avg_pool1d": 2}
"""The position of an operator's strides among its arguments."""


def _size_hints(module: fx.GraphModule) -> SizeHints:
    """The strides of a graph, and the numbers that it computes with sizes and cuts with."""
    before: dict[fx.Node, int] = {}
    strides: dict[tuple[int, int], None] = {}
    numbers: dict[int, None] = {}
    for node in module.graph.nodes:
        before[node] = max((before[source] for source in node.all_input_nodes), default=1)
        name = str(getattr(node.target, "_opname", "")).strip("_")
        position = STRIDES.get(name, len(node.args))
        own = node.args[position] if position < len(node.args) else 1
        stride = max(
            (each for each in (own if isinstance(own, list | tuple) else [own]) if type(each) is int), default=1
        )
        if stride > 1:
            strides[before[node], stride] = None
            before[node] *= stride
        if name.startswith("slice") or getattr(node.target, "__module__", "") == "_operator":
            numbers |= dict.fromkeys(each for each in node.args if type(each) is int and 2 < each <= MOST)
    return SizeHints(tuple(strides), tuple(numbers))
