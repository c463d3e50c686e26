"""What a node calls: torch's own operators by one name in every spelling, with their arguments by name.

An unknown call has no name. It may write into everything that it reads, and no change goes through it.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import fx, nn
from torch.export._unlift import GuardsFn

CALLS = ("call_function", "call_method", "call_module")

_CONV = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_NORM = "input running_mean running_var weight bias"

PARAMETERS: dict[str, str] = {
    **{f"conv{n}d": _CONV for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _TRANSPOSED for n in (1, 2, 3)},
    "linear": "input weight bias",
    "matmul": "input other",
    "mm": "input mat2",
    "bmm": "input mat2",
    "addmm": "input mat1 mat2",
    "baddbmm": "input batch1 batch2",
    "batch_norm": f"{_NORM} training momentum eps",
    "instance_norm": f"{_NORM} use_input_stats momentum eps",
    "index_add": "input dim index source",
    "scatter_add": "input dim index src",
    "scatter_reduce": "input dim index src reduce",
}
"""The positional parameters of functions and methods whose arguments matter, in the order of `torch.nn.functional`."""

_NOT_LINEAR = ("norm", "_add", "_reduce")

LINEAR = frozenset({*(name for name in PARAMETERS if not name.endswith(_NOT_LINEAR)), "convolution", "einsum"})

BATCHNORMS = frozenset(
    {
        "batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "cudnn_batch_norm",
    }
)  # fmt: skip

SPREAD = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unbind"})
"""Functions and methods that return a tuple of data."""

MODULES: dict[type[nn.Module], str] = {
    **{getattr(nn, f"{kind}{n}d"): name.format(n)
       for n in (1, 2, 3)
       for kind, name in (("Conv", "conv{}d"), ("ConvTranspose", "conv_transpose{}d"), ("MaxPool", "max_pool{}d"),
                          ("AvgPool", "avg_pool{}d"), ("AdaptiveAvgPool", "adaptive_avg_pool{}d"),
                          ("AdaptiveMaxPool", "adaptive_max_pool{}d"), ("BatchNorm", "batch_norm"),
                          ("InstanceNorm", "instance_norm"), ("ZeroPad", "pad"), ("ConstantPad", "pad"),
                          ("ReflectionPad", "pad"), ("ReplicationPad", "pad"), ("CircularPad", "pad"))},
    nn.SyncBatchNorm: "batch_norm", nn.Linear: "linear", nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu", nn.Identity: "identity", nn.Flatten: "flatten", nn.Unflatten: "unflatten",
    nn.PixelShuffle: "pixel_shuffle", nn.PixelUnshuffle: "pixel_unshuffle", nn.ChannelShuffle: "channel_shuffle",
    nn.Upsample: "interpolate", nn.UpsamplingNearest2d: "interpolate", nn.UpsamplingBilinear2d: "interpolate",
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
                    "dropout"),
}  # fmt: skip

SAME = {
    "iadd": "add", "__add__": "add", "__radd__": "add", "__iadd__": "add", "subtract": "sub", "__sub__": "sub",
    "isub": "sub", "__isub__": "sub", "__rsub__": "rsub", "multiply": "mul", "__mul__": "mul", "__rmul__": "mul",
    "imul": "mul", "__imul__": "mul", "divide": "div", "true_divide": "div", "truediv": "div", "itruediv": "div",
    "__truediv__": "div", "__itruediv__": "div", "negative": "neg", "__neg__": "neg", "__matmul__": "matmul",
    "concat": "cat", "concatenate": "cat", "__getitem__": "getitem", "alpha_dropout": "dropout",
    "feature_alpha_dropout": "dropout", "feature_dropout": "dropout", "dropout1d": "dropout", "dropout2d": "dropout",
    "dropout3d": "dropout",
}  # fmt: skip
"""Other names of the same operators."""

SPACES = (F, torch, operator)
"""The modules in which functions are looked up."""

_SHAPES = (
    "size dim ndimension numel nelement is_floating_point stride get_device is_contiguous element_size shape"
    " ndim dtype device requires_grad is_cuda layout sym_size sym_stride sym_numel _assert_tensor_metadata"
    " empty_like full_like new_empty new_full new_ones new_zeros ones_like rand_like randn_like zeros_like"
)

SHAPES = frozenset(_SHAPES.split())
"""Operators and attributes that do not depend on the content of a tensor."""

SIZES = frozenset(name for name in SHAPES if not name.endswith("_like") and not name.startswith("new_"))
"""Those of them whose result is no tensor."""


_FRESH = (
    "add sub rsub mul div neg cat index index_select repeat tile relu leaky_relu prelu mean sum amax amin"
    " max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d"
    " avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d"
    " _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d constant_pad_nd sigmoid"
    " tanh silu gelu hardswish hardsigmoid hardtanh relu6 elu selu celu mish softplus softmax _softmax"
    " log_softmax exp log sqrt rsqrt pow abs sin cos erf clamp clamp_min layer_norm group_norm native_layer_norm"
    " native_group_norm scaled_dot_product_attention upsample_nearest2d upsample_bilinear2d interpolate"
    " pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
    " index_add scatter_add scatter_reduce"
    " embedding where stack full zeros ones arange eq ne lt le gt ge argmax argmin topk var var_mean std cumsum copy"
    " lift_fresh_copy"
)

BY_BATCH = "norm by its batch"
"""The name of all that normalise by statistics of what they read, and keep none."""

DEQUANTIZERS = frozenset({"dequantize_per_channel", "dequantize_per_tensor"})
"""Operators of `quantized_decomposed` that make float numbers of integers."""

FRESH = (LINEAR - {"einsum"}) | BATCHNORMS | {BY_BATCH} | DEQUANTIZERS | frozenset(_FRESH.split())
"""Operators whose results share no memory with their inputs, but for those that they write into. Any other may."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call of an operator of torch.

    Attributes:
        name: the operator's name, without a trailing underscore; empty for an unknown one.
        arguments: the arguments by name, where `PARAMETERS` or a schema tells the names. For a module, its tensors are
            among them.
        module: the module that is called, if one is.
        writes: the nodes that it writes into.
        is_stateful: whether it may change the state of its module.
    """

    name: str
    arguments: Mapping[str, Any]
    module: nn.Module | None
    writes: tuple[fx.Node, ...]
    is_stateful: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """An argument; `default` where it is left out or None."""
        argument = self.arguments.get(name)
        return default if argument is None else argument


def read_call(node: fx.Node, root: nn.Module) -> Call:
    """Read the call of a node."""
    if node.op == "call_module":
        return _module(node, root.get_submodule(str(node.target)))
    if node.op == "call_method":
        return _method(node)
    if isinstance(node.target, torch._ops.OpOverload):
        return _overload(node, node.target)
    if node.target in REGIONS:
        return Call("", {}, None, tuple(node.all_input_nodes) if _writes_out(node, root) else ())
    return _function(node)


REGIONS = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)
"""Calls of an exported program that run a graph: code under `torch.no_grad` or `torch.autocast`."""


def _writes_out(node: fx.Node, root: nn.Module) -> bool:
    """Whether a region writes into anything but results of its own operators."""
    names = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
    regions = [body for name in names if isinstance(body := getattr(root, name, None), fx.GraphModule)]
    for region in regions:
        own: set[object] = set()
        for inner in region.graph.nodes:
            if inner.op not in CALLS:
                continue
            call = read_call(inner, region)
            if not own.issuperset(call.writes):
                return True
            if call.writes or call.name in FRESH:
                own.add(inner)
    return not regions


def _canonical(name: str) -> str:
    plain = name if name.startswith("__") else name.rstrip("_")
    return SAME.get(plain, plain)


def _overload(node: fx.Node, target: torch._ops.OpOverload) -> Call:
    schema = target._schema
    arguments: dict[str, Any] = {}
    for index, declared in enumerate(schema.arguments):
        name = "input" if declared.name == "self" else declared.name
        if index < len(node.args):
            arguments[name] = node.args[index]
        elif declared.name in node.kwargs:
            arguments[name] = node.kwargs[declared.name]
    written = [
        arguments.get("input" if parameter.name == "self" else parameter.name)
        for parameter in schema.arguments
        if parameter.alias_info is not None and parameter.alias_info.is_write
    ]
    name = schema.name.partition("::")[2]
    if target.namespace == "aten":
        name = _canonical(name)
    elif target.namespace != "quantized_decomposed" or name not in DEQUANTIZERS:
        name = ""
    if name == "dropout" and arguments.get("train", True):
        name = ""
    if name in BATCHNORMS and (arguments.get("training") or arguments.get("use_input_stats")):
        return _by_batch(node, arguments)
    return Call(name, arguments, None, tuple(source for source in written if isinstance(source, fx.Node)))


def _by_batch(node: fx.Node, arguments: Mapping[str, Any]) -> Call:
    """A call that normalises by statistics of what it reads, and writes into those that it is given."""
    if arguments.get("running_mean") is None and arguments.get("running_var") is None:
        return Call(BY_BATCH, arguments, None, ())
    return Call("", arguments, None, tuple(node.all_input_nodes))


def _bound(node: fx.Node, parameters: str) -> dict[str, Any]:
    names = parameters.split()
    arguments = dict(zip(names, node.args, strict=False))
    return {**arguments, **{("input" if name == "self" else name): value for name, value in node.kwargs.items()}}


def _method(node: fx.Node) -> Call:
    name = str(node.target)
    receiver = node.args[0] if node.args else None
    is_inplace = (name.endswith("_") and not name.endswith("__")) or (
        name == "__setitem__" or (name.startswith("__i") and name not in ("__index__", "__int__", "__invert__"))
    )
    if not hasattr(torch.Tensor, name):
        return Call("", {}, None, tuple(node.all_input_nodes))
    written = (receiver,) if is_inplace and isinstance(receiver, fx.Node) else ()
    plain = _canonical(name)
    return Call(plain, _bound(node, PARAMETERS.get(plain, "input")), None, written)


def _function(node: fx.Node) -> Call:
    target, everything = node.target, tuple(node.all_input_nodes)
    name = str(getattr(target, "__name__", ""))
    if target is getattr:
        attribute = str(node.args[1])
        return Call(attribute if attribute in {"T", "mT", "H", "mH", *SHAPES} else "", {}, None, ())
    if not any(getattr(space, name, None) is target for space in SPACES):
        home = str(getattr(target, "__module__", ""))
        is_plain = home in ("math", "_operator") or home.partition(".")[0] == "torch"
        is_plain = is_plain and not name.endswith("_") and not node.kwargs.keys() & {"out", "inplace"}
        return Call("", {}, None, () if is_plain else everything)
    plain = _canonical(name)
    parameters = PARAMETERS.get(plain, "input")
    if target in (torch.batch_norm, torch.instance_norm):
        flag = "training" if target is torch.batch_norm else "use_input_stats"
        parameters = f"input weight bias running_mean running_var {flag} momentum eps cudnn_enabled"
    arguments = _bound(node, parameters)
    first = node.args[0] if node.args else arguments.get("input")
    is_inplace = name.endswith("_") or _is_inplace(target, node)
    is_inplace |= target in (operator.setitem, operator.delitem) or (
        name.startswith("i") and getattr(operator, name, None) is target and name[1:] in dir(operator)
    )
    by_batch = plain in BATCHNORMS and (arguments.get("training") or _uses_batch(plain, arguments))
    if plain == "dropout" and _is_random(target, node):
        plain = ""
    if "out" in node.kwargs:
        return Call("", arguments, None, everything)
    if by_batch:
        return _by_batch(node, arguments)
    return Call(plain, arguments, None, (first,) if is_inplace and isinstance(first, fx.Node) else ())


def _uses_batch(name: str, arguments: Mapping[str, Any]) -> bool:
    return bool(name == "instance_norm" and arguments.get("use_input_stats", True))


def _is_random(target: Any, node: fx.Node) -> bool:
    """Whether a dropout drops anything."""
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # of torch itself: input, p, train
        return bool(node.kwargs.get("train", node.args[2] if len(node.args) > 2 else True))
    bound.apply_defaults()
    return bool(bound.arguments.get("training", True))


def _is_inplace(target: Any, node: fx.Node) -> bool:
    if node.kwargs.get("inplace"):
        return True
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return False
    return bool(bound.arguments.get("inplace"))


def _module(node: fx.Node, module: nn.Module) -> Call:
    everything = tuple(node.all_input_nodes)
    if type(module) is GuardsFn and not _has_hooks(module):  # checks the inputs of an exported program, reads alone
        return Call("", {}, module, ())
    parts = list(module.modules())
    if not all(_is_plain(part) for part in parts):
        return Call("", {}, module, everything, is_stateful=True)
    is_inplace = any(getattr(part, "inplace", False) for part in parts)
    kind = kind_of(module)
    name = "" if kind is None else MODULES.get(kind, "")
    if any(_normalises_by_batch(part) for part in parts) or (name == "dropout" and module.training):
        name = ""
    arguments: dict[str, Any] = {"input": node.args[0] if node.args else node.kwargs.get("input")}
    if name in LINEAR or name in BATCHNORMS:
        arguments.update({key: getattr(module, key) for key in ("weight", "bias")})
        settings = ("stride", "padding", "output_padding", "dilation", "groups", "padding_mode", "eps", "running_mean",
                    "running_var")  # fmt: skip
        arguments.update({key: getattr(module, key) for key in settings if hasattr(module, key)})
        if len(node.args) + len(node.kwargs) != 1:
            name = ""
    is_stateful = any(_normalises_by_batch(part) for part in parts)
    return Call(name, arguments, module, everything if is_inplace else (), is_stateful)


def _normalises_by_batch(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and (
        module.running_mean is None
        or module.training
        or (isinstance(module, nn.modules.instancenorm._InstanceNorm) and not module.track_running_stats)
    )


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_plain(module: nn.Module) -> bool:
    """Whether a module does exactly what a class of torch does."""
    return kind_of(module) is not None and "forward" not in vars(module) and not _has_hooks(module)


_HARMLESS = (
    "__init__ __module__ __qualname__ __doc__ __annotations__ __dict__ __weakref__ __firstlineno__"
    " __static_attributes__ __constants__ __parameters__ __orig_bases__ __repr__ extra_repr reset_parameters"
    " reset_running_stats train _save_to_state_dict _load_from_state_dict _version _get_name __reduce_ex__"
)

HARMLESS = frozenset(_HARMLESS.split())
"""What a subclass may define without doing something else in eval mode."""


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch that a module belongs to, also by a subclass that does not change what it does."""
    kinds = type(module).__mro__
    library: type[nn.Module] | None = next(
        (candidate for candidate in kinds if getattr(nn, candidate.__name__, None) is candidate), None
    )
    if library is None or not library.__module__.startswith("torch.nn.modules."):
        return None
    noted = {name for base in library.__mro__ for name in vars(base).get("__annotations__", ())}
    for kind in kinds:
        if kind in library.__mro__:
            continue
        if any(name not in HARMLESS and (hasattr(library, name) or name in noted) for name in vars(kind)):
            return None
    return library


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hook, None) for hook in HOOKS)
