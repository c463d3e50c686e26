"""Checks that everything without an obligation of its own is the same, bit for bit."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from types import MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.module import _WrappedHook

from bnfold.proof.failure import ProofError
from bnfold.proof.torch.calls import CALLS, kind_of
from bnfold.proof.torch.pair import Pair
from bnfold.proof.torch.sides import HELD, Side, is_same_tensor, storage

FX_OWN = frozenset(
    {
        "_graph", "_code", "_codegen", "_tracer_cls", "_tracer_extras", "_lineno_map",
        "_graphmodule_cls_name", "_prologue_start", "_recompile_submodules", "__compiled_fn__", "meta",
    }
)  # fmt: skip
"""Attributes of a graph module that are not compared, since its graph is compared node by node."""

CONTENTS = frozenset({"_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"})


def check_models(pair: Pair) -> None:
    """Check that both models have the same interface, the same modules, and the same attributes in them."""
    original, result = pair.original.model, pair.result.model
    if isinstance(original, ExportedProgram) != isinstance(result, ExportedProgram):
        raise ProofError("wiring", "", "one is a program, and the other is not")
    for side in (pair.original, pair.result):
        if side.graph.python_code("self").src != side.root.code:
            raise ProofError("wiring", "", "the code of a graph module is not that of its graph")
    codes = [side.graph._codegen for side in (pair.original, pair.result)]
    if type(codes[0]) is not type(codes[1]) or repr(vars(codes[0])) != repr(vars(codes[1])):
        raise ProofError("wiring", "", "the graphs take their inputs or give their outputs in another structure")
    _check_inputs(pair)
    if isinstance(original, ExportedProgram) and isinstance(result, ExportedProgram):
        _check_programs(pair, original, result)
    _check_modules(pair)


def _check_inputs(pair: Pair) -> None:
    """Check that the inputs have the same names in the same order, and the same defaults."""
    listed = []
    for side in (pair.original, pair.result):
        nodes = [node for node in side.graph.nodes if node.op == "placeholder"]
        is_held = [node.name in side.specs and side.specs[node.name].kind in HELD for node in nodes]
        listed.append(
            [
                (node.name, str(node.target), node.args)
                for node, is_own in zip(nodes, is_held, strict=True)
                if not is_own
            ]
        )
    if listed[0] != listed[1]:
        raise ProofError("wiring", "", "the inputs differ")


def _check_programs(pair: Pair, original: ExportedProgram, result: ExportedProgram) -> None:
    signatures = original.graph_signature, result.graph_signature
    outputs = [[(spec.kind, spec.target) for spec in signature.output_specs] for signature in signatures]
    if outputs[0] != outputs[1]:
        raise ProofError("wiring", "", "the outputs of the signatures differ")
    for one, other in zip(signatures[0].output_specs, signatures[1].output_specs, strict=True):
        _check_argument(pair, one.arg, other.arg)
    others = [[spec for spec in signature.input_specs if spec.kind not in HELD] for signature in signatures]
    if [repr(spec) for spec in others[0]] != [repr(spec) for spec in others[1]]:
        raise ProofError("wiring", "", "the inputs of the signatures differ")
    kept = {spec.target: spec for spec in signatures[0].input_specs}
    for spec in signatures[1].input_specs:
        before = kept.get(spec.target)
        if spec.kind in HELD and before is not None and repr(before) != repr(spec):
            raise ProofError("wiring", str(spec.target), "the signature says something else of it")
    places = [
        [node.name for node in side.graph.nodes if node.op == "placeholder"] for side in (pair.original, pair.result)
    ]
    listed = [[getattr(spec.arg, "name", "") for spec in signature.input_specs] for signature in signatures]
    if places != listed:
        raise ProofError("wiring", "", "the signature does not list the inputs of the graph")
    for name in ("range_constraints", "dialect", "_guards_code", "call_spec"):
        if getattr(original, name, None) != getattr(result, name, None):
            raise ProofError("wiring", "", f"the {name} of the programs differ")
    calls = [
        [(entry.fqn, entry.signature is None) for entry in program.module_call_graph] for program in (original, result)
    ]
    specs = [
        [(entry.signature.in_spec, entry.signature.out_spec) for entry in program.module_call_graph if entry.signature]
        for program in (original, result)
    ]
    if calls[0] != calls[1] or specs[0] != specs[1]:
        raise ProofError("wiring", "", "the calls that the programs keep apart differ")


def _check_argument(pair: Pair, one: Any, other: Any) -> None:
    """Check that an entry of a signature is about the same value."""
    name, now = getattr(one, "name", None), getattr(other, "name", None)
    if name in pair.original.nodes and now in pair.result.nodes:
        if type(one) is type(other) and pair.stands(pair.original.nodes[name], pair.result.nodes[now]):
            return
    elif repr(one) == repr(other):
        return
    raise ProofError("wiring", str(name), "the signature says that another value is an output")


def _check_modules(pair: Pair) -> None:
    """Check that the modules of both roots are the same, but for tensors, which have obligations of their own."""
    modules = [dict(side.root.named_modules(remove_duplicate=False)) for side in (pair.original, pair.result)]
    called = {str(node.target) for node in pair.result.graph.nodes if node.op == "call_module"}
    callers = [node for node in pair.original.calls if node.op == "call_module"]
    writing = {str(node.target) for node in callers if pair.original.calls[node].writes}
    released = {
        path for path in writing if modules[1].get(path) is not None and not modules[1][path].__dict__.get("inplace")
    }
    for path, module in modules[1].items():
        before = modules[0].get(path)
        if before is None:
            if not any(path == call or path.startswith(f"{call}.") for call in called):
                raise ProofError("wiring", path, "the original has no such module")
            continue
        is_linear = any(path == str(node.target) and pair.is_linear(node) for node in pair.original.calls)
        is_released = path in released and kind_of(module) is not None
        problem = differs(before, module, SIZES if is_linear else ("inplace",) if is_released else ())
        if problem is not None:
            raise ProofError("wiring", path, f"the module differs: {problem}")
    read = {str(node.target) for node in pair.original.graph.nodes if node.op in ("call_module", "get_attr")}
    for path in modules[0].keys() - modules[1].keys():
        if not any(place == path or place.startswith(f"{path}.") or path.startswith(f"{place}.") for place in read):
            raise ProofError("wiring", path, "a module is gone, and nothing says so")


SIZES = ("in_channels", "out_channels", "in_features", "out_features", "affine")
"""Attributes of a module that describe its weights, which are checked themselves."""


def differs(one: nn.Module, other: nn.Module, but: Collection[str] = ()) -> str | None:
    """The differences of two modules, apart from their submodules and tensors."""
    graphs = [isinstance(side, fx.GraphModule) for side in (one, other)]
    if graphs[0] != graphs[1] or (not graphs[0] and type(one) is not type(other)):
        return f"it is a {type(other).__name__}, not a {type(one).__name__}"
    if isinstance(one, torch.jit.ScriptModule) and isinstance(other, torch.jit.ScriptModule):
        return None if _script(one) == _script(other) else "its script"
    values = [
        {
            key: value
            for key, value in vars(part).items()
            if key not in CONTENTS and key not in but and not isinstance(value, torch.Tensor)
            and not (graphs[0] and key in FX_OWN)
        }
        for part in (one, other)
    ]  # fmt: skip
    for key in values[0].keys() | values[1].keys():
        if key not in values[0] or key not in values[1] or not _is_same(values[0][key], values[1][key], {}):
            return f"its attribute {key}"
        if key == "forward" and values[0][key] is not values[1][key]:
            return f"its attribute {key}"
    return None


def _script(module: torch.jit.ScriptModule) -> str:
    """The code and the attributes of a scripted module, without addresses in memory."""
    return re.sub(r" object at 0x[0-9a-f]+", "", module._c.dump_to_str(True, True, True))


def _is_same(one: Any, other: Any, seen: dict[tuple[int, int], bool]) -> bool:
    """Whether two plain values are equal, all the way down."""
    if one is other:
        return True
    key = id(one), id(other)
    if key in seen:
        return seen[key]
    seen[key] = True
    if type(one) is not type(other) and not (isinstance(one, nn.Module) and isinstance(other, nn.Module)):
        return False
    if isinstance(one, torch.Tensor):
        return is_same_tensor(one, other)
    if isinstance(one, dict):
        keys = list(one) == list(other)
        return keys and all(_is_same(one[entry], other[entry], seen) for entry in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(_is_same(mine, its, seen) for mine, its in zip(one, other, strict=True))
    if isinstance(one, nn.Module):
        return is_same_module(one, other)
    if isinstance(one, _WrappedHook) and isinstance(other, _WrappedHook):
        return one.with_module == other.with_module and _is_same(one.hook, other.hook, seen)
    if isinstance(one, MethodType) and isinstance(one.__self__, nn.Module):
        return one.__func__ is other.__func__ and isinstance(other.__self__, nn.Module)
    if hasattr(one, "__dict__") and _compares_identity(one) and (not callable(one) or _is_record(one)):
        return _is_same(vars(one), vars(other), seen)
    try:
        return bool(one == other) or (one != one and other != other)
    except (RuntimeError, TypeError, ValueError):
        return False


def _compares_identity(value: object) -> bool:
    return getattr(type(value), "__eq__", None) is getattr(object, "__eq__", None)


def _is_record(value: object) -> bool:
    """Whether an object is nothing but its attributes, as far as pickle knows. A hook may be such an object."""
    kind = type(value)
    if isinstance(value, type) or (kind.__reduce__, kind.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__):
        return False
    try:
        return value.__reduce_ex__(4)[2] is vars(value) or not vars(value)
    except TypeError:
        return False


def is_same_module(one: nn.Module, other: nn.Module, but: Collection[str] = ()) -> bool:
    """Whether two modules are the same with everything in them, but for some tensors and attributes."""
    pairs = [dict(side.named_modules(remove_duplicate=False)) for side in (one, other)]
    if list(pairs[0]) != list(pairs[1]):
        return False
    for path, before in pairs[0].items():
        now = pairs[1][path]
        if differs(before, now, but) is not None:
            return False
        if isinstance(before, fx.GraphModule):
            targets = [[node.target for node in graph.graph.nodes] for graph in (before, now)]
            if before.code != now.code or targets[0] != targets[1]:
                return False
        for group in ("_parameters", "_buffers", "__dict__"):
            groups = [getattr(part, group) for part in (before, now)]
            names = [
                [name for name, tensor in group.items() if isinstance(tensor, torch.Tensor | None) and name not in but]
                for group in groups
            ]
            if group != "__dict__" and names[0] != names[1]:
                return False
            for name in names[0]:
                mine, its = groups[0][name], groups[1].get(name)
                if (mine is None) != (its is None):
                    return False
                if mine is not None and not (isinstance(its, torch.Tensor) and is_same_tensor(mine, its)):
                    return False
    return True


def check_node(pair: Pair, node: fx.Node) -> fx.Node:
    """Check that a node and its inputs are the same."""
    twin = pair.twin(node)
    pair.account(node, twin)
    if pair.original.calls[node].writes and not pair.result.calls[twin].writes:
        _check_released(pair, node, twin)
        return twin
    check_target(pair, node, twin)
    if node.op == "call_module":
        modules = [side.root.get_submodule(str(node.target)) for side in (pair.original, pair.result)]
        if not is_same_module(modules[0], modules[1]):
            raise ProofError("wiring", node.name, "the module that it calls differs")
    if not pair.same(node.args, twin.args) or not pair.same(node.kwargs, twin.kwargs):
        raise ProofError("wiring", node.name, f"it reads {twin.args} {twin.kwargs}, not {node.args} {node.kwargs}")
    return twin


ACTIVATIONS = frozenset(
    {"relu", "leaky_relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "elu", "selu", "celu"}
)
"""Operators that write the same numbers into their input, if they are told to, as they make afresh."""


def _check_released(pair: Pair, node: fx.Node, twin: fx.Node) -> None:
    """Check that a node makes afresh what it has written into its input, where nobody saw that."""
    name, calls = node.name, (pair.original.calls[node], pair.result.calls[twin])
    if calls[0].name not in ACTIVATIONS or calls[0].name != calls[1].name or node.op != twin.op:
        raise ProofError("wiring", name, f"it calls {twin.target}, not {node.target}")
    if node in pair.original.tangled or any(source in pair.original.tangled for source in node.all_input_nodes):
        raise ProofError("wiring", name, "it writes no more into what something else reads")
    targets = node.target, twin.target
    schemas = [target._schema for target in targets if isinstance(target, torch._ops.OpOverload)]
    spelled = [(schema.name.removesuffix("_"), schema.overload_name) for schema in schemas]
    if len(schemas) == 1 or (schemas and spelled[0] != spelled[1]):
        raise ProofError("wiring", name, f"it calls {twin.target}, not {node.target}")
    if node.op == "call_module":
        modules = [side.root.get_submodule(str(target)) for side, target in zip(_sides(pair), targets, strict=True)]
        if not is_same_module(modules[0], modules[1], ("inplace",)):
            raise ProofError("wiring", name, "the module that it calls differs")
    if not pair.same(_without_flag(node), _without_flag(twin)):
        raise ProofError("wiring", name, f"it reads {twin.args} {twin.kwargs}, not {node.args} {node.kwargs}")


def _sides(pair: Pair) -> tuple[Side, Side]:
    return pair.original, pair.result


def _without_flag(node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call, without what tells it to write into its input."""
    args, kwargs = list(node.args), {key: value for key, value in node.kwargs.items() if key != "inplace"}
    try:
        names = list(inspect.signature(node.target).parameters) if callable(node.target) else []
    except (TypeError, ValueError):  # one of torch's in C, which has no such flag
        names = []
    if "inplace" in names[: len(args)]:
        del args[names.index("inplace")]
    return args, kwargs


def check_target(pair: Pair, node: fx.Node, twin: fx.Node) -> None:
    """Check that a node calls the same function, method or module."""
    if node.op != twin.op or (node.target is not twin.target and node.target != twin.target):
        raise ProofError("wiring", node.name, f"it calls {twin.target}, not {node.target}")


def check_output(pair: Pair) -> None:
    """Check that both models return the same values, unchanged, in the same structure."""
    ends = [[node for node in side.graph.nodes if node.op == "output"] for side in (pair.original, pair.result)]
    if len(ends[0]) != 1 or len(ends[1]) != 1:
        raise ProofError("wiring", "", "it does not return once")
    one, other = ends[0][0], ends[1][0]
    for node in one.all_input_nodes:
        keys = pair.original.keys(node)
        if pair.relation(node) is not None or any(pair.relation_of(key) is not None for key in keys):
            raise ProofError("wiring", node.name, "an output is not what it was")
    if not pair.same(one.args, other.args) or one.kwargs != other.kwargs:
        raise ProofError("wiring", one.name, f"it returns {other.args}, not {one.args}")


def check_rest(pair: Pair) -> None:
    """Check that the result has no other nodes and no other tensors, and that its order is the same."""
    result = pair.result
    for node in result.graph.nodes:
        if node.op in CALLS and node not in pair.accounted and result.pick(node) is None:
            raise ProofError("wiring", node.name, "the original has no such node")
        if node.op == "get_attr" and result.place(node) is None and node.name not in pair.original.nodes:
            raise ProofError("wiring", node.name, "the original has no such node")
    _check_leaves(pair)
    _check_tensors(pair)
    _check_order(pair)
    _check_memory(pair)


def _check_leaves(pair: Pair) -> None:
    """Check that a node reads the same tensors, or weights that were checked."""
    for node in pair.result.graph.nodes:
        if node.op not in ("placeholder", "get_attr") or not pair.is_fresh(node):
            continue
        if node not in pair.accounted:
            raise ProofError("wiring", node.name, "it is another constant, and nothing says so")
    for node in pair.original.graph.nodes:
        if node.op == "get_attr" and pair.original.place(node) is None:
            other = pair.result.nodes.get(node.name)
            leaves = [_fetch(side.root, leaf) for side, leaf in ((pair.original, node), (pair.result, other)) if leaf]
            if len(leaves) != 2 or not _is_same(leaves[0], leaves[1], {}):
                raise ProofError("wiring", node.name, "what it names differs")


def _fetch(root: nn.Module, node: fx.Node) -> Any:
    leaf: Any = root
    for name in str(node.target).split("."):
        leaf = getattr(leaf, name, None)
    return leaf


def _check_tensors(pair: Pair) -> None:
    """Check that each tensor of the result is one of the original, or a weight that was checked."""
    before, after = pair.original.tensors, pair.result.tensors
    for path, tensor in after.items():
        if id(tensor) in pair.weights:
            continue
        if path not in before or not is_same_tensor(before[path], tensor):
            raise ProofError("wiring", path, "it is another tensor, and nothing says so")
    gone = before.keys() - after.keys()
    if not gone:
        return
    free = {path for node in pair.changed for path in _read_by(pair, node)}
    statistics = {path.rpartition(".")[0] for path in free if path.endswith("running_mean")}
    for path in gone - free:
        owner, _, name = path.rpartition(".")
        if name != "num_batches_tracked" or owner not in statistics:
            raise ProofError("wiring", path, "it is gone, and nothing says so")
    if any(path in pair.original.mutated for path in gone):
        raise ProofError("wiring", "", "what the model changes is gone")


def _read_by(pair: Pair, node: fx.Node) -> set[str]:
    """The paths of all constants that a node reads."""
    side = pair.original
    places: set[str] = set()
    if node.op == "call_module":
        places.update(path for path in side.tensors if path.startswith(f"{node.target}."))
    stack = list(node.all_input_nodes)
    while stack:
        source = stack.pop()
        if source in side.constants:
            places.update([place] if (place := side.place(source)) is not None else [])
            stack.extend(source.all_input_nodes)
    return places


def _check_order(pair: Pair) -> None:
    """Check that nodes of both graphs run in the same order."""
    last = -1
    for node in pair.original.graph.nodes:
        if node in pair.changed or node in pair.original.constants or node.op not in CALLS:
            continue
        twin = pair.result.nodes.get(node.name if pair.original.is_spread(node) else pair.name(node))
        if twin is None or pair.original.pick(node) is not None:
            continue
        if pair.result.order[twin] < last:
            raise ProofError("wiring", node.name, "it runs earlier than it did")
        last = pair.result.order[twin]


def _check_memory(pair: Pair) -> None:
    """Check that no changed value is written into, and that nothing new shares memory with a written one."""
    for node in pair.changed:
        if node in pair.original.tangled or any(source in pair.original.tangled for source in node.all_input_nodes):
            raise ProofError("wiring", node.name, "it may be changed in place while something else reads it")
    names = [
        {pair.name(node) if index == 0 and node in side.calls else side.key(node) for node in side.tangled}
        for index, side in enumerate((pair.original, pair.result))
    ]
    if names[0] != names[1]:
        different = ", ".join(sorted(names[0] ^ names[1])[:3])
        raise ProofError("wiring", different, "in-place operators write into other values than they did")
    changing = [
        {path for node in side.tangled if (path := side.place(node)) is not None} | side.mutated
        for side in (pair.original, pair.result)
    ]
    if changing[0] != changing[1]:
        raise ProofError("wiring", "", "the models change other tensors")
    ties = [
        sorted(sorted(path for path in changing[0] if path in side.tensors and storage(side.tensors[path]) == memory)
               for memory in {storage(side.tensors[path]) for path in changing[0] if path in side.tensors})
        for side in (pair.original, pair.result)
    ]  # fmt: skip
    if ties[0] != ties[1]:
        raise ProofError("wiring", "", "tensors that the models change share memory in another way")
