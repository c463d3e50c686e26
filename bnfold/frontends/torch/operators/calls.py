"""One description of a call, however fx spells it: aten, function, method, operator or module."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import fx, nn


class Slot(NamedTuple):
    """A parameter or buffer of a module that a `call_module` node calls."""

    path: str
    attribute: str


Handle = fx.Node | Slot
"""What stands for a tensor: a node, or a place in a called module."""


@dataclass(frozen=True, eq=False)
class Call:
    """What a node does.

    Attributes:
        op: the operation; aten's name without its overload.
        arguments: by name; a tensor is an `fx.Node` or a `Slot`. Those left out are absent.
        module: the module, for a call of one.
        is_inplace: whether it writes into its input.
        dims: the number that its name ends in: 2 for conv2d.
    """

    op: str
    arguments: Mapping[str, Any]
    module: nn.Module | None = None
    is_inplace: bool = False
    dims: int | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """An argument; `default` where it is left out or None."""
        found = self.arguments.get(name)
        return default if found is None else found


UNKNOWN = "unknown"
"""The `op` of a call that bnfold has no name for; it may do anything to its arguments."""

_CONV = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_POOL = "input kernel_size stride padding dilation ceil_mode return_indices"
_AVERAGE = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"

# op, parameters in Python's order ("*name" takes the rest), functions, methods
_SPELLINGS: list[tuple[str, str, tuple[Any, ...], tuple[str, ...]]] = [
    ("conv1d", _CONV, (torch.conv1d, F.conv1d), ()),
    ("conv2d", _CONV, (torch.conv2d, F.conv2d), ()),
    ("conv3d", _CONV, (torch.conv3d, F.conv3d), ()),
    ("conv_transpose1d", _TRANSPOSED, (torch.conv_transpose1d, F.conv_transpose1d), ()),
    ("conv_transpose2d", _TRANSPOSED, (torch.conv_transpose2d, F.conv_transpose2d), ()),
    ("conv_transpose3d", _TRANSPOSED, (torch.conv_transpose3d, F.conv_transpose3d), ()),
    ("linear", "input weight bias", (F.linear,), ()),
    ("matmul", "input other", (torch.matmul, operator.matmul), ("matmul", "__matmul__")),
    ("mm", "input mat2", (torch.mm,), ("mm",)),
    ("bmm", "input mat2", (torch.bmm,), ("bmm",)),
    ("addmm", "input mat1 mat2", (torch.addmm,), ("addmm",)),
    ("baddbmm", "input batch1 batch2", (torch.baddbmm,), ("baddbmm",)),
    ("einsum", "equation *operands", (torch.einsum,), ()),
    ("batch_norm", "input running_mean running_var weight bias training momentum eps", (F.batch_norm,), ()),
    ("batch_norm", "input weight bias running_mean running_var training momentum eps cudnn_enabled",
     (torch.batch_norm,), ()),
    ("instance_norm", "input running_mean running_var weight bias use_input_stats momentum eps",
     (F.instance_norm,), ()),
    ("instance_norm", "input weight bias running_mean running_var use_input_stats momentum eps cudnn_enabled",
     (torch.instance_norm,), ()),
    ("add", "input other", (torch.add, operator.add), ("add", "__add__", "__radd__")),
    ("add_", "input other", (operator.iadd,), ("add_", "__iadd__")),
    ("sub", "input other", (torch.sub, torch.subtract, operator.sub), ("sub", "subtract", "__sub__")),
    ("sub_", "input other", (operator.isub,), ("sub_", "__isub__")),
    ("rsub", "input other", (torch.rsub,), ("__rsub__",)),
    ("mul", "input other", (torch.mul, torch.multiply, operator.mul), ("mul", "multiply", "__mul__", "__rmul__")),
    ("mul_", "input other", (operator.imul,), ("mul_", "__imul__")),
    ("div", "input other", (torch.div, torch.divide, torch.true_divide, operator.truediv),
     ("div", "divide", "true_divide", "__truediv__")),
    ("div_", "input other", (operator.itruediv,), ("div_", "__itruediv__")),
    ("neg", "input", (torch.neg, torch.negative, operator.neg), ("neg", "negative", "__neg__")),
    ("cat", "tensors dim", (torch.cat, torch.concat, torch.concatenate), ()),
    ("chunk", "input chunks dim", (torch.chunk,), ("chunk",)),
    ("split", "input split_size dim", (torch.split,), ("split",)),
    ("split_with_sizes", "input split_sizes dim", (torch.split_with_sizes,), ("split_with_sizes",)),
    ("narrow", "input dim start length", (torch.narrow,), ("narrow",)),
    ("index_select", "input dim index", (torch.index_select,), ("index_select",)),
    ("permute", "input *dims", (torch.permute,), ("permute",)),
    ("transpose", "input dim0 dim1", (torch.transpose, torch.swapaxes, torch.swapdims),
     ("transpose", "swapaxes", "swapdims")),
    ("t", "input", (torch.t,), ("t",)),
    ("reshape", "input *shape", (torch.reshape,), ("reshape", "view")),
    ("reshape_as", "input other", (), ("reshape_as", "view_as")),
    ("flatten", "input start_dim end_dim", (torch.flatten,), ("flatten",)),
    ("unflatten", "input dim sizes", (torch.unflatten,), ("unflatten",)),
    ("squeeze", "input *dim", (torch.squeeze,), ("squeeze",)),
    ("unsqueeze", "input dim", (torch.unsqueeze,), ("unsqueeze",)),
    ("pixel_shuffle", "input upscale_factor", (torch.pixel_shuffle, F.pixel_shuffle), ()),
    ("pixel_unshuffle", "input downscale_factor", (torch.pixel_unshuffle, F.pixel_unshuffle), ()),
    ("channel_shuffle", "input groups", (torch.channel_shuffle, F.channel_shuffle), ()),
    *[("max_pool", _POOL, (getattr(F, f"max_pool{n}d"),), ()) for n in (1, 2, 3)],
    *[("max_pool", "input kernel_size stride padding dilation ceil_mode", (getattr(torch, f"max_pool{n}d"),), ())
      for n in (1, 2, 3)],
    *[("avg_pool", _AVERAGE, (getattr(F, f"avg_pool{n}d"),), ()) for n in (1, 2, 3)],
    *[("adaptive_avg_pool", "input output_size", (getattr(F, f"adaptive_avg_pool{n}d"),), ()) for n in (1, 2, 3)],
    *[("adaptive_max_pool", "input output_size return_indices", (getattr(F, f"adaptive_max_pool{n}d"),), ())
      for n in (1, 2, 3)],
    ("mean", "input dim keepdim", (torch.mean,), ("mean",)),
    ("sum", "input dim keepdim", (torch.sum,), ("sum",)),
    ("amax", "input dim keepdim", (torch.amax,), ("amax",)),
    ("interpolate", "input size scale_factor mode align_corners recompute_scale_factor antialias",
     (F.interpolate,), ()),
    ("pad", "input pad mode value", (F.pad,), ()),
    ("expand", "input *size", (), ("expand",)),
    ("expand", "input size", (torch.broadcast_to,), ("broadcast_to",)),
    ("expand_as", "input other", (), ("expand_as",)),
    ("repeat", "input *repeats", (), ("repeat",)),
    ("tile", "input *repeats", (torch.tile,), ("tile",)),
    ("dropout", "input p training inplace",
     (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), ()),
    ("relu", "input inplace", (F.relu, torch.relu), ("relu",)),
    ("relu_", "input", (torch.relu_, F.relu_), ("relu_",)),
    ("leaky_relu", "input negative_slope inplace", (F.leaky_relu,), ()),
    ("leaky_relu_", "input negative_slope", (F.leaky_relu_,), ()),
    ("prelu", "input weight", (torch.prelu, F.prelu), ("prelu",)),
    ("identity", "input", (torch.clone, torch.detach), ("clone", "contiguous", "detach")),
    ("to", "input *to", (), ("to", "type")),
    ("cast", "input", (), ("float", "double", "half", "bfloat16")),
    ("type_as", "input other", (), ("type_as",)),
    ("slice_all", "input index", (operator.getitem,), ("__getitem__",)),
    ("sqrt", "input", (torch.sqrt,), ("sqrt",)),
    ("rsqrt", "input", (torch.rsqrt,), ("rsqrt",)),
    ("reciprocal", "input", (torch.reciprocal,), ("reciprocal",)),
    ("pow", "input exponent", (torch.pow, operator.pow), ("pow", "__pow__")),
    ("abs", "input", (torch.abs, operator.abs), ("abs",)),
    ("exp", "input", (torch.exp,), ("exp",)),
    ("var", "input *rest", (torch.var,), ("var",)),
    ("var_mean", "input *rest", (torch.var_mean,), ()),
    ("std", "input *rest", (torch.std,), ("std",)),
    ("norm", "input *rest", (torch.norm, torch.linalg.vector_norm), ("norm",)),
    ("clamp", "input min max", (torch.clamp, torch.clip), ("clamp", "clip", "clamp_min")),
    ("stack", "tensors dim", (torch.stack,), ()),
    ("mv", "input vec", (torch.mv,), ("mv",)),
    ("dot", "input other", (torch.dot, torch.vdot), ("dot",)),
    ("_weight_norm", "input g dim", (torch._weight_norm,), ()),
    ("shape", "input *rest", (), ("size", "dim", "ndimension", "numel", "nelement", "is_floating_point",
                               "stride", "get_device", "is_contiguous", "element_size")),
    ("nonlinear", "input *rest",
     (F.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, F.softmax, F.mish, F.elu,
      torch.sigmoid, torch.tanh, torch.softmax, F.layer_norm, F.group_norm, F.log_softmax, torch.log_softmax,
      F.softplus, F.normalize, F.scaled_dot_product_attention, torch.where, F.embedding, torch.erf, torch.log),
     ("sigmoid", "tanh", "softmax", "log_softmax", "log")),
]  # fmt: skip

_FUNCTIONS: dict[Any, tuple[str, str]] = {
    target: (op, parameters) for op, parameters, functions, _ in _SPELLINGS for target in functions
}
_FUNCTION_NAMES: dict[Any, str] = {
    getattr(F, f"{name}{n}d"): f"{name}{n}d"
    for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    for n in (1, 2, 3)
}
"""Some of them are called `fn` and no more."""

_METHODS: dict[str, tuple[str, str]] = {
    method: (op, parameters) for op, parameters, _, methods in _SPELLINGS for method in methods
}

_ATEN = {
    "view": "reshape",
    "_unsafe_view": "reshape",
    "_reshape_copy": "reshape",
    "_reshape_alias": "reshape",
    "view_copy": "reshape",
    "clone": "identity",
    "contiguous": "identity",
    "detach": "identity",
    "alias": "identity",
    "lift_fresh_copy": "identity",
    "detach_": "identity",
    "_to_copy": "to",
    "feature_dropout": "dropout",
    "alpha_dropout": "dropout",
    "true_divide": "div",
    "subtract": "sub",
    "multiply": "mul",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "sym_size": "shape",
    "sym_stride": "shape",
    "sym_numel": "shape",
    "size": "shape",
    "_assert_tensor_metadata": "shape",
    "linalg_vector_norm": "norm",
    "broadcast_to": "expand",
    "constant_pad_nd": "pad",
    "index": "index",
    **{f"max_pool{n}d": "max_pool" for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": "max_pool_with_indices" for n in (1, 2, 3)},
    **{f"avg_pool{n}d": "avg_pool" for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": "adaptive_avg_pool" for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": "adaptive_avg_pool" for n in (2, 3)},
    **{f"adaptive_max_pool{n}d": "adaptive_max_pool_with_indices" for n in (1, 2, 3)},
    **{f"reflection_pad{n}d": "pad_copies" for n in (1, 2, 3)},
    **{f"replication_pad{n}d": "pad_copies" for n in (1, 2, 3)},
}

MULTIPLE = frozenset(
    [
        "chunk",
        "split",
        "split_with_sizes",
        "max_pool_with_indices",
        "adaptive_max_pool_with_indices",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_no_update",
        "var_mean",
        "_weight_norm_interface",
    ]
)
"""Operations whose outputs are picked from a tuple."""

_SHAPE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "requires_grad", "is_cuda", "layout"})


def spell(node: fx.Node, root: nn.Module | None) -> Call:
    """The description of a node's call.

    Args:
        node: a node of op `call_function`, `call_method` or `call_module`.
        root: where called modules are.
    """
    target = node.target
    if node.op == "call_module" and root is not None:
        module = root.get_submodule(str(target))
        return replace(_module(node, module), dims=_dims(type(module).__name__))
    if node.op == "call_method":
        return _bind(node, _METHODS.get(str(target)), is_inplace=_ends_inplace(str(target)))
    if isinstance(target, torch._ops.OpOverload):
        return replace(_aten(node, target), dims=_dims(target._schema.name))
    if target is getattr and len(node.args) > 1 and node.args[1] in _SHAPE_ATTRIBUTES:
        return Call("shape", {"input": node.args[0]})
    if target is getattr and node.args[1:] == ("T",):
        return Call("t", {"input": node.args[0]})
    name = str(_FUNCTION_NAMES.get(target) or getattr(target, "__name__", ""))
    found = _FUNCTIONS.get(target) if callable(target) else None
    is_foreign = found is None and getattr(target, "__module__", None) not in _HARMLESS
    is_inplace = _ends_inplace(name) or target is operator.setitem or is_foreign or _is_told_to_write(node)
    return replace(_bind(node, found, is_inplace=is_inplace), dims=_dims(name))


_HARMLESS = frozenset({None, "_operator", "builtins", "math", "torch", "torch.functional", "torch.nn.functional",
                       "torch._C._nn", "torch._C._special", "torch._C._linalg", "torch._C", "torch._VF",
                       "torch._assert", "torch.special", "torch.linalg", "torch.fx._symbolic_trace"})  # fmt: skip
"""Modules of functions that write into no argument, unless their name ends in an underscore."""


def _dims(name: str) -> int | None:
    found = re.search(r"([123])d(?![a-zA-Z0-9])", name.replace("_with_indices", ""))
    return int(found[1]) if found else None


def _ends_inplace(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name.endswith("__"))


def _is_told_to_write(node: fx.Node) -> bool:
    """Whether a function is given something to write into, or told to write into its input."""
    if "out" in node.kwargs or node.kwargs.get("inplace", False):
        return True
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # one of torch's in C, none of which has such a flag
        return False
    return "inplace" in names[: len(node.args)] and bool(node.args[names.index("inplace")])


def _aten(node: fx.Node, target: torch._ops.OpOverload) -> Call:
    schema = target._schema
    namespace, _, name = schema.name.partition("::")
    arguments: dict[str, Any] = {}
    for index, each in enumerate(schema.arguments):
        key = "input" if each.name == "self" else each.name
        if index < len(node.args) and not each.kwarg_only:
            arguments[key] = node.args[index]
        elif each.name in node.kwargs:
            arguments[key] = node.kwargs[each.name]
        elif each.has_default_value():
            arguments[key] = each.default_value
    writes = any(each.alias_info is not None and each.alias_info.is_write for each in schema.arguments)
    if namespace != "aten" or "out" in node.kwargs:
        return Call(UNKNOWN, arguments, is_inplace=writes)
    if name == "split" and target is torch.ops.aten.split.sizes:
        arguments["split_size"] = arguments.get("split_size", ())
    op = _ATEN.get(name.removesuffix("_") if writes else name, name.removesuffix("_") if writes else name)
    if op == "norm" or op == "var":
        arguments = {"input": arguments.get("input")}
    if op == "pad" and name == "constant_pad_nd":
        arguments["mode"] = "constant"
    if name == "native_batch_norm" or name == "_native_batch_norm_legit":
        writes = bool(arguments.get("training"))
    return Call(op, arguments, is_inplace=writes)


def _bind(node: fx.Node, found: tuple[str, str] | None, *, is_inplace: bool) -> Call:
    if found is None or "out" in node.kwargs:
        return Call(UNKNOWN, {"args": node.args, **node.kwargs}, is_inplace=is_inplace)
    op, parameters = found
    arguments: dict[str, Any] = dict(node.kwargs)
    for name, value in zip(parameters.split(), node.args, strict=False):
        if name.startswith("*"):
            rest = node.args[parameters.split().index(name) :]
            single = len(rest) == 1 and isinstance(rest[0], list | tuple)
            arguments[name[1:]] = tuple(rest[0]) if single else tuple(rest)  # type: ignore[arg-type]
        else:
            arguments[name] = value
    for alias, name in (
        ("self", "input"),
        ("tensor", "input"),
        ("split_size_or_sections", "split_size"),
        ("axis", "dim"),
        ("x", "input"),
        ("size", "shape"),
    ):
        if alias in arguments and name in parameters.replace("*", "").split() and name not in arguments:
            arguments[name] = arguments.pop(alias)
    if op == "cast":
        arguments["dtype"] = CASTS[str(node.target)]
    writes = is_inplace or op.endswith("_") or bool(arguments.get("inplace"))
    return Call(op.removesuffix("_"), arguments, is_inplace=writes)


CASTS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}


Describe = Callable[[Any, str], tuple[str, dict[str, Any]]]


def _slots(module: nn.Module, path: str, *names: str) -> dict[str, Any]:
    return {name: None if getattr(module, name) is None else Slot(path, name) for name in names}


def _conv(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    given = {name: getattr(module, name) for name in names}
    return f"conv{len(module.kernel_size)}d", {**_slots(module, path, "weight", "bias"), **given}


def _conv_transpose(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    names = ("stride", "padding", "dilation", "groups", "output_padding")
    given = {name: getattr(module, name) for name in names}
    return f"conv_transpose{len(module.kernel_size)}d", {**_slots(module, path, "weight", "bias"), **given}


def _linear(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    return "linear", _slots(module, path, "weight", "bias")


def _statistics(module: Any, path: str) -> dict[str, Any]:
    held = _slots(module, path, "weight", "bias", "running_mean", "running_var")
    return {**held, "eps": module.eps, "rank": RANKS.get(type(module)._check_input_dim)}


def _batch_norm(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    by_batch = module.training or module.running_mean is None or module.running_var is None
    return "batch_norm", {**_statistics(module, path), "training": by_batch}


def _instance_norm(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    by_input = module.training or not module.track_running_stats
    return "instance_norm", {**_statistics(module, path), "use_input_stats": by_input}


def _named(op: str, *names: str, **fixed: Any) -> Describe:
    return lambda module, path: (op, {**{name: getattr(module, name) for name in names}, **fixed})


def _prelu(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    return "prelu", _slots(module, path, "weight")


def _upsample(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    names = ("size", "scale_factor", "mode", "align_corners")
    return "interpolate", {name: getattr(module, name) for name in names}


def _flatten(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    return "flatten", {"start_dim": module.start_dim, "end_dim": module.end_dim}


def _unflatten(module: Any, path: str) -> tuple[str, dict[str, Any]]:
    return "unflatten", {"dim": module.dim, "sizes": module.unflattened_size}


RANKS: dict[Any, int] = {
    nn.BatchNorm2d._check_input_dim: 4,
    nn.BatchNorm3d._check_input_dim: 5,
}
"""Ranks that a BatchNorm insists on."""

_POOLING = ("kernel_size", "stride", "padding", "ceil_mode")

_MODULES: dict[Any, Describe] = {
    **{kind.forward: _conv for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)},
    **{kind.forward: _conv_transpose for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)},
    nn.Linear.forward: _linear,
    nn.BatchNorm2d.forward: _batch_norm,
    nn.SyncBatchNorm.forward: _batch_norm,
    nn.InstanceNorm2d.forward: _instance_norm,
    nn.Identity.forward: _named("identity"),
    **{
        kind.forward: _named("dropout", "training", "inplace")
        for kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    },
    nn.ReLU.forward: _named("relu"),
    nn.LeakyReLU.forward: _named("leaky_relu", "negative_slope"),
    nn.PReLU.forward: _prelu,
    **{
        kind.forward: _named("max_pool", *_POOLING, "dilation", "return_indices")
        for kind in (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    },
    nn.AvgPool1d.forward: _named("avg_pool", *_POOLING, "count_include_pad"),
    **{
        kind.forward: _named("avg_pool", *_POOLING, "count_include_pad", "divisor_override")
        for kind in (nn.AvgPool2d, nn.AvgPool3d)
    },
    **{
        kind.forward: _named("adaptive_avg_pool", "output_size")
        for kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    },
    **{
        kind.forward: _named("adaptive_max_pool", "output_size", "return_indices")
        for kind in (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    },
    nn.Flatten.forward: _flatten,
    nn.Unflatten.forward: _unflatten,
    nn.PixelShuffle.forward: _named("pixel_shuffle", "upscale_factor"),
    nn.PixelUnshuffle.forward: _named("pixel_unshuffle", "downscale_factor"),
    nn.ChannelShuffle.forward: _named("channel_shuffle", "groups"),
    nn.Upsample.forward: _upsample,
    nn.ConstantPad2d.forward: lambda module, path: ("pad", {"pad": module.padding, "value": module.value}),
    nn.ReflectionPad2d.forward: lambda module, path: ("pad", {"pad": module.padding, "mode": "reflect"}),
    nn.ReplicationPad2d.forward: lambda module, path: ("pad", {"pad": module.padding, "mode": "replicate"}),
    nn.CircularPad2d.forward: lambda module, path: ("pad", {"pad": module.padding, "mode": "circular"}),
}  # fmt: skip

_PARTS = ("_conv_forward", "_output_padding", "_check_input_dim", "_apply_instance_norm", "_get_no_batch_dim")
"""Methods that the forwards above call, and that a subclass may have changed as well."""


def is_known_forward(module: nn.Module) -> bool:
    """Whether the forward of the module is one of torch.nn's that are described here."""
    return type(module).forward in _MODULES and "forward" not in vars(module)


def is_plain_module(module: nn.Module) -> bool:
    """Whether calling the module is what its torch.nn class does: no forward of its own, on class or instance."""
    kind = type(module)
    if not is_known_forward(module) or kind.__call__ is not nn.Module.__call__:
        return False
    if is_parametrized(module):
        return False
    for name in _PARTS:
        found = getattr(kind, name, None)
        if found is not None and not getattr(found, "__module__", "").startswith("torch.nn.modules"):
            return False
    return True


def is_parametrized(module: nn.Module) -> bool:
    """Whether a weight of the module is computed from other parameters (weight_norm, spectral_norm, ...)."""
    if "parametrizations" in module._modules:
        return True
    return any(type(hook).__module__.startswith("torch.nn.utils.") for hook in module._forward_pre_hooks.values())


def _module(node: fx.Node, module: nn.Module) -> Call:
    is_inplace = bool(getattr(module, "inplace", False))
    if not is_plain_module(module):
        known = type(module).forward.__module__.startswith("torch.nn.modules") and "forward" not in vars(module)
        op = "nonlinear" if known else UNKNOWN
        return Call(op, {"args": node.args, **node.kwargs}, module, is_inplace or not known)
    op, arguments = _MODULES[type(module).forward](module, str(node.target))
    given = dict(zip(("input", "output_size"), node.args, strict=False))
    given.update(node.kwargs)
    if "output_size" in given and op.startswith("conv_transpose"):
        arguments["output_padding"] = given["output_size"]
    return Call(op, {**arguments, "input": given.get("input", given.get("x"))}, module, is_inplace)
