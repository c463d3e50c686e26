"""All that bnfold knows about the operators of torch: one row an operator.

What a row leaves out is safe. An operator whose `memory` is not told, as one that is not in the table, may share memory
with all that it reads; one without a reader stops every affine. Tests run each row in each spelling, and hold its
memory, shape and type against what it says.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from bnfold.frontends.reading import identity, rectifier
from bnfold.frontends.torch.operators import read_carry, read_linear
from bnfold.frontends.torch.operators.calls import UNKNOWN, Describe, Keeps, Memory, Operator, Outputs, Slot

CASTS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}

_RANKS: dict[Any, int] = {nn.BatchNorm2d._check_input_dim: 4, nn.BatchNorm3d._check_input_dim: 5}
"""Ranks that a BatchNorm insists on."""


def _named(*names: str, **fixed: Any) -> Describe:
    """Attributes that are arguments; one that a class of several lacks is left out."""
    return lambda module, path: {**{name: getattr(module, name) for name in names if hasattr(module, name)}, **fixed}


def _held(module: nn.Module, path: str, *names: str) -> dict[str, Any]:
    return {name: None if getattr(module, name) is None else Slot(path, name) for name in names}


def _conv(*names: str) -> Describe:
    describe = _named("stride", "padding", "dilation", "groups", *names)
    return lambda module, path: {**_held(module, path, "weight", "bias"), **describe(module, path)}


def _statistics(module: Any, path: str) -> dict[str, Any]:
    tensors = _held(module, path, "weight", "bias", "running_mean", "running_var")
    return {**tensors, "eps": module.eps, "rank": _RANKS.get(type(module)._check_input_dim)}


def _batch_norm(module: Any, path: str) -> dict[str, Any]:
    by_batch = module.training or module.running_mean is None or module.running_var is None
    return {**_statistics(module, path), "training": by_batch}


def _instance_norm(module: Any, path: str) -> dict[str, Any]:
    return {**_statistics(module, path), "use_input_stats": module.training or not module.track_running_stats}


def _same(name: str, *modules: type[nn.Module], measures: str = "") -> Operator:
    """A row of which all spellings have one name, and that only tells that the result is fresh."""
    functions = {id(function): function for space in (torch, F) if (function := getattr(space, name, None)) is not None}
    return Operator(name, "input *rest", tuple(functions.values()), name if hasattr(torch.Tensor, name) else "",
                    modules=dict.fromkeys(modules, _named()), memory=Memory.FRESH, measures=measures)  # fmt: skip


_CONV = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
_STATISTICS = "running_mean running_var weight bias"
_POOL = "input kernel_size stride padding dilation ceil_mode return_indices"
_POOLING = ("kernel_size", "stride", "padding", "ceil_mode")
_AVERAGE = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

_OF_ONE_NAME = (
    "acos acosh addcdiv addcmul all amin any argmax argmin asin asinh atan atan2 atanh bitwise_and bitwise_not"
    " bitwise_or ceil cos cosh cumprod cumsum eq erf erfc exp2 expm1 floor floor_divide fmod"
    " gather ge gt hypot index_copy index_fill index_put isfinite isinf isnan kthvalue le lerp log log10"
    " log1p log2 logaddexp logical_and logical_not logical_or logit logsumexp lt masked_fill masked_scatter"
    " masked_select max maximum median min minimum nan_to_num native_group_norm native_layer_norm ne nonzero"
    " outer prod remainder repeat_interleave roll round"
    " scatter sgn sign sin sinh sort square take_along_dim tan topk tril triu trunc"
    " where"
)
"""Operators of which all spellings have one name, and that are only known to make fresh tensors."""

_OF_A_SHAPE = "empty_like full_like new_full new_ones new_zeros ones_like rand_like randn_like zeros_like"
"""Operators that make fresh tensors by the shape or type of their input alone."""

FRESH, INPUT, REPEATED = Memory.FRESH, Memory.INPUT, Memory.REPEATED
TYPE, SHAPE_AND_TYPE, RANK_AND_TYPE = Keeps.TYPE, Keeps.SHAPE | Keeps.TYPE, Keeps.RANK | Keeps.TYPE

OPERATORS: tuple[Operator, ...] = (
    # linear
    *[Operator(f"conv{n}d", _CONV, (getattr(torch, f"conv{n}d"), getattr(F, f"conv{n}d")),
               modules={getattr(nn, f"Conv{n}d"): _conv("padding_mode")},
               memory=FRESH, keeps=RANK_AND_TYPE, linear=read_linear.conv) for n in (1, 2, 3)],
    *[Operator(f"conv_transpose{n}d", _TRANSPOSED,
               (getattr(torch, f"conv_transpose{n}d"), getattr(F, f"conv_transpose{n}d")),
               modules={getattr(nn, f"ConvTranspose{n}d"): _conv("output_padding")},
               memory=FRESH, keeps=RANK_AND_TYPE, linear=read_linear.conv) for n in (1, 2, 3)],
    Operator("convolution", memory=FRESH, linear=read_linear.conv),
    Operator("linear", "input weight bias", (F.linear,),
             modules={nn.Linear: lambda module, path: _held(module, path, "weight", "bias")},
             memory=FRESH, keeps=RANK_AND_TYPE, linear=read_linear.linear),
    Operator("matmul", "input other", (torch.matmul, operator.matmul), "matmul __matmul__",
             memory=FRESH, linear=read_linear.matmul, carry=read_carry.product),
    Operator("mm", "input mat2", (torch.mm,), "mm",
             memory=FRESH, is_evaluated=True, linear=read_linear.matmul, carry=read_carry.product),
    Operator("bmm", "input mat2", (torch.bmm,), "bmm",
             memory=FRESH, linear=read_linear.matmul, carry=read_carry.product),
    Operator("addmm", "input mat1 mat2", (torch.addmm,), "addmm", memory=FRESH, linear=read_linear.addmm),
    Operator("baddbmm", "input batch1 batch2", (torch.baddbmm,), "baddbmm", memory=FRESH, linear=read_linear.baddbmm),
    Operator("einsum", "equation *operands", (torch.einsum,), linear=read_linear.einsum),  # of one: a transpose
    # affine
    Operator("batch_norm", f"input {_STATISTICS} training momentum eps", (F.batch_norm,),
             also={torch.batch_norm: "input weight bias running_mean running_var training momentum eps cudnn_enabled"},
             modules=dict.fromkeys((nn.BatchNorm2d, nn.SyncBatchNorm), _batch_norm),
             memory=FRESH, keeps=SHAPE_AND_TYPE, is_batchnorm=True, is_evaluated=True),
    Operator("instance_norm", f"input {_STATISTICS} use_input_stats momentum eps", (F.instance_norm,),
             also={torch.instance_norm:
                   "input weight bias running_mean running_var use_input_stats momentum eps cudnn_enabled"},
             modules={nn.InstanceNorm2d: _instance_norm},
             memory=FRESH, keeps=SHAPE_AND_TYPE, is_batchnorm=True),
    *[Operator(name, memory=FRESH, outputs=Outputs.FIRST, is_batchnorm=True)
      for name in ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_no_update", "cudnn_batch_norm")],
    Operator("_native_batch_norm_legit_no_training", memory=FRESH, keeps=SHAPE_AND_TYPE, outputs=Outputs.FIRST,
             is_batchnorm=True),
    Operator("add", "input other", (torch.add, operator.add, operator.iadd), "add __add__ __radd__ add_ __iadd__",
             memory=FRESH, is_arithmetic=True, is_evaluated=True, carry=read_carry.add),
    Operator("sub", "input other", (torch.sub, torch.subtract, operator.sub, operator.isub),
             "sub subtract __sub__ sub_ __isub__", aten="subtract",
             memory=FRESH, is_arithmetic=True, is_evaluated=True, carry=read_carry.add),
    Operator("rsub", "input other", (torch.rsub,), "__rsub__", memory=FRESH, is_arithmetic=True, is_evaluated=True),
    Operator("mul", "input other", (torch.mul, torch.multiply, operator.mul, operator.imul),
             "mul multiply __mul__ __rmul__ mul_ __imul__", aten="multiply",
             memory=FRESH, is_arithmetic=True, is_evaluated=True),
    Operator("div", "input other", (torch.div, torch.divide, torch.true_divide, operator.truediv, operator.itruediv),
             "div divide true_divide __truediv__ div_ __itruediv__", aten="true_divide",
             memory=FRESH, is_arithmetic=True, is_evaluated=True),
    Operator("neg", "input", (torch.neg, torch.negative, operator.neg), "neg negative __neg__",
             memory=FRESH, keeps=SHAPE_AND_TYPE, is_arithmetic=True, is_evaluated=True),
    # cut and join
    Operator("cat", "tensors dim", (torch.cat, torch.concat, torch.concatenate), aten="concat concatenate",
             memory=FRESH, keeps=TYPE, is_evaluated=True, carry=read_carry.concat),
    Operator("chunk", "input chunks dim", (torch.chunk,), "chunk",
             memory=INPUT, keeps=TYPE, outputs=Outputs.ALL, carry=read_carry.split),
    Operator("split", "input split_size dim", (torch.split,), "split",
             memory=INPUT, keeps=TYPE, outputs=Outputs.ALL, carry=read_carry.split),
    Operator("split_with_sizes", "input split_sizes dim", (torch.split_with_sizes,), "split_with_sizes",
             memory=INPUT, outputs=Outputs.ALL, carry=read_carry.split),
    Operator("narrow", "input dim start length", (torch.narrow,), "narrow", memory=INPUT, carry=read_carry.narrow),
    Operator("slice", memory=INPUT, keeps=TYPE, is_evaluated=True, carry=read_carry.slice_axis),
    Operator("slice_all", "input index", (operator.getitem,), "__getitem__",
             memory=INPUT, keeps=TYPE, is_evaluated=True, carry=read_carry.getitem),
    Operator("select", memory=INPUT, is_evaluated=True),
    Operator("index", memory=FRESH, is_evaluated=True, carry=read_carry.index),
    Operator("index_select", "input dim index", (torch.index_select,), "index_select",
             memory=FRESH, is_evaluated=True, carry=read_carry.index_select),
    # other shapes
    Operator("permute", "input *dims", (torch.permute,), "permute",
             memory=INPUT, keeps=TYPE, is_evaluated=True, carry=read_carry.permute),
    Operator("transpose", "input dim0 dim1", (torch.transpose, torch.swapaxes, torch.swapdims),
             "transpose swapaxes swapdims", aten="swapaxes swapdims",
             memory=INPUT, keeps=RANK_AND_TYPE, is_evaluated=True, carry=read_carry.transpose),
    Operator("t", "input", (torch.t,), "t", attributes="T", aten="numpy_T",
             memory=INPUT, is_evaluated=True, carry=read_carry.reverse_axes),
    Operator("adjoint", "input", (torch.adjoint,), "adjoint", attributes="mT mH H", aten="mT mH matrix_H",
             memory=INPUT, is_evaluated=True, carry=read_carry.last_axes_swapped),
    Operator("reshape", "input *shape", (torch.reshape,), "reshape view",
             aten="view _unsafe_view _reshape_copy _reshape_alias view_copy",
             memory=INPUT, keeps=TYPE, is_evaluated=True, carry=read_carry.reshape),
    Operator("reshape_as", "input other", methods="reshape_as view_as",
             memory=INPUT, measures="other", is_evaluated=True, carry=read_carry.reshape),
    Operator("flatten", "input start_dim end_dim", (torch.flatten,), "flatten",
             modules={nn.Flatten: _named("start_dim", "end_dim")},
             memory=INPUT, keeps=TYPE, is_evaluated=True, carry=read_carry.reshape),
    Operator("unflatten", "input dim sizes", (torch.unflatten,), "unflatten",
             modules={nn.Unflatten: lambda module, path: {"dim": module.dim, "sizes": module.unflattened_size}},
             memory=INPUT, keeps=TYPE, carry=read_carry.reshape),
    Operator("squeeze", "input *dim", (torch.squeeze,), "squeeze",
             memory=INPUT, keeps=TYPE, is_evaluated=True, carry=read_carry.reshape),
    Operator("unsqueeze", "input dim", (torch.unsqueeze,), "unsqueeze",
             memory=INPUT, keeps=TYPE, is_evaluated=True, carry=read_carry.reshape),
    Operator("pixel_shuffle", "input upscale_factor", (torch.pixel_shuffle, F.pixel_shuffle),
             modules={nn.PixelShuffle: _named("upscale_factor")},
             memory=INPUT, keeps=RANK_AND_TYPE, carry=read_carry.pixel_shuffle),
    Operator("pixel_unshuffle", "input downscale_factor", (torch.pixel_unshuffle, F.pixel_unshuffle),
             modules={nn.PixelUnshuffle: _named("downscale_factor")},
             memory=INPUT, keeps=RANK_AND_TYPE, carry=read_carry.pixel_unshuffle),
    Operator("channel_shuffle", "input groups", (torch.channel_shuffle, F.channel_shuffle),
             modules={nn.ChannelShuffle: _named("groups")},
             memory=INPUT, keeps=SHAPE_AND_TYPE, carry=read_carry.channel_shuffle),
    Operator("expand", "input *size", (torch.broadcast_to,), "expand broadcast_to", aten="broadcast_to",
             memory=REPEATED, keeps=TYPE, is_evaluated=True, carry=read_carry.expand),
    Operator("expand_as", "input other", methods="expand_as",
             memory=REPEATED, measures="other", is_evaluated=True, carry=read_carry.expand),
    Operator("repeat", "input *repeats", methods="repeat", memory=FRESH, is_evaluated=True, carry=read_carry.repeat),
    Operator("tile", "input *repeats", (torch.tile,), "tile", memory=FRESH, carry=read_carry.repeat),
    # pools, means, resizing, padding
    Operator("max_pool", _POOL, tuple(getattr(space, f"max_pool{n}d") for space in (F, torch) for n in (1, 2, 3)),
             aten="max_pool1d max_pool2d max_pool3d",
             modules=dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
                                   _named(*_POOLING, "dilation", "return_indices")),
             memory=FRESH, keeps=RANK_AND_TYPE, carry=read_carry.max_pool),
    Operator("max_pool_with_indices",
             aten="max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices",
             memory=FRESH, outputs=Outputs.FIRST, carry=read_carry.max_pool),
    Operator("avg_pool", _AVERAGE, (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), aten="avg_pool1d avg_pool2d avg_pool3d",
             modules=dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
                                   _named(*_POOLING, "count_include_pad", "divisor_override")),
             memory=FRESH, keeps=RANK_AND_TYPE, carry=read_carry.avg_pool),
    Operator("adaptive_avg_pool", "input output_size",
             (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
             aten="adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
                  " _adaptive_avg_pool2d _adaptive_avg_pool3d",
             modules=dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
                                   _named("output_size")),
             memory=FRESH, keeps=RANK_AND_TYPE, carry=read_carry.adaptive_avg_pool),
    Operator("adaptive_max_pool", "input output_size return_indices",
             (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
             modules=dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
                                   _named("output_size", "return_indices")),
             memory=FRESH, keeps=RANK_AND_TYPE, carry=read_carry.max_pool),
    Operator("adaptive_max_pool_with_indices", aten="adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
             memory=FRESH, outputs=Outputs.FIRST, carry=read_carry.max_pool),
    Operator("mean", "input dim keepdim", (torch.mean,), "mean",
             memory=FRESH, keeps=TYPE, is_evaluated=True, carry=read_carry.mean),
    Operator("sum", "input dim keepdim", (torch.sum,), "sum",
             memory=FRESH, is_evaluated=True, carry=read_carry.sum_over),
    Operator("index_add", "input dim index source", (torch.index_add,), "index_add index_add_",
             memory=FRESH, data="source", carry=read_carry.add_by_index),
    Operator("scatter_add", "input dim index src", (torch.scatter_add,), "scatter_add scatter_add_",
             memory=FRESH, data="src", carry=read_carry.add_by_index),
    Operator("scatter_reduce", "input dim index src reduce", (torch.scatter_reduce,), "scatter_reduce scatter_reduce_",
             memory=FRESH, data="src", carry=read_carry.add_by_index),
    Operator("amax", "input dim keepdim", (torch.amax,), "amax", memory=FRESH, carry=read_carry.amax),
    Operator("interpolate", "input size scale_factor mode align_corners recompute_scale_factor antialias",
             (F.interpolate,),
             aten=" ".join(f"{prefix}upsample_{kind}{suffix}" for prefix in ("", "_") for suffix in ("", "_aa")
                           for kind in ("nearest1d", "nearest2d", "nearest3d", "nearest_exact1d", "nearest_exact2d",
                                        "nearest_exact3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d")),
             modules={nn.Upsample: _named("size", "scale_factor", "mode", "align_corners")},
             memory=FRESH, keeps=RANK_AND_TYPE, carry=read_carry.interpolate),
    Operator("pad", "input pad mode value", (F.pad,), aten="constant_pad_nd",
             modules={
                 nn.ConstantPad2d: lambda module, path: {"pad": module.padding, "value": module.value},
                 nn.ReflectionPad2d: lambda module, path: {"pad": module.padding, "mode": "reflect"},
                 nn.ReplicationPad2d: lambda module, path: {"pad": module.padding, "mode": "replicate"},
                 nn.CircularPad2d: lambda module, path: {"pad": module.padding, "mode": "circular"},
             },
             memory=FRESH, keeps=RANK_AND_TYPE, carry=read_carry.pad),
    Operator("pad_copies",
             aten=" ".join(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
             memory=FRESH, carry=read_carry.pad),
    # elementwise
    Operator("dropout", "input p training inplace",
             (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
             aten="feature_dropout alpha_dropout", modules=dict.fromkeys(_DROPOUTS, _named("training", "inplace")),
             memory=INPUT, keeps=SHAPE_AND_TYPE, carry=read_carry.dropout),
    Operator("relu", "input inplace", (F.relu, torch.relu, F.relu_, torch.relu_), "relu relu_",
             modules={nn.ReLU: _named()}, memory=FRESH, keeps=SHAPE_AND_TYPE, carry=rectifier),
    Operator("leaky_relu", "input negative_slope inplace", (F.leaky_relu, F.leaky_relu_),
             modules={nn.LeakyReLU: _named("negative_slope")},
             memory=FRESH, keeps=SHAPE_AND_TYPE, carry=rectifier),
    Operator("prelu", "input weight", (torch.prelu, F.prelu), "prelu",
             modules={nn.PReLU: lambda module, path: _held(module, path, "weight")},
             memory=FRESH, keeps=SHAPE_AND_TYPE, carry=rectifier),
    Operator("identity", "input", (torch.clone, torch.detach), "clone contiguous detach",
             aten="clone contiguous detach alias lift_fresh_copy detach_", modules={nn.Identity: _named()},
             memory=INPUT, keeps=SHAPE_AND_TYPE, is_evaluated=True, carry=identity),
    Operator("to", "input *to", methods="to type", aten="_to_copy",
             memory=INPUT, keeps=Keeps.SHAPE, is_evaluated=True, carry=read_carry.cast),
    Operator("cast", "input", methods=" ".join(CASTS),
             memory=INPUT, keeps=Keeps.SHAPE, is_evaluated=True, carry=read_carry.cast),
    Operator("type_as", "input other", methods="type_as", memory=INPUT, keeps=Keeps.SHAPE, measures="other",
             carry=read_carry.cast),
    Operator("flip", "input *dims", (torch.flip,), "flip", memory=FRESH, keeps=RANK_AND_TYPE),
    # evaluated where they are constant
    *[Operator(name, "input", (getattr(torch, name),), name, memory=FRESH, is_evaluated=True)
      for name in ("sqrt", "rsqrt", "reciprocal", "exp")],
    Operator("abs", "input", (torch.abs, operator.abs), "abs", memory=FRESH, is_evaluated=True),
    Operator("pow", "input exponent", (torch.pow, operator.pow), "pow __pow__", memory=FRESH, is_evaluated=True),
    Operator("clamp", "input min max", (torch.clamp, torch.clip), "clamp clip clamp_min", aten="clamp_min",
             memory=FRESH, is_evaluated=True),
    Operator("var", "input *rest", (torch.var,), "var", memory=FRESH, is_evaluated=True),
    Operator("var_mean", "input *rest", (torch.var_mean,), memory=FRESH, outputs=Outputs.FIRST, is_evaluated=True),
    Operator("std", "input *rest", (torch.std,), "std", memory=FRESH, is_evaluated=True),
    Operator("norm", "input *rest", (torch.norm, torch.linalg.vector_norm), "norm", aten="linalg_vector_norm",
             memory=FRESH, is_evaluated=True),
    Operator("stack", "tensors dim", (torch.stack,), memory=FRESH, is_evaluated=True),
    Operator("mv", "input vec", (torch.mv,), "mv", memory=FRESH, is_evaluated=True),
    Operator("dot", "input other", (torch.dot, torch.vdot), "dot", aten="vdot", memory=FRESH, is_evaluated=True),
    Operator("_weight_norm", "input g dim", (torch._weight_norm,), memory=FRESH, is_evaluated=True),
    Operator("_weight_norm_interface", memory=FRESH, outputs=Outputs.FIRST, is_evaluated=True),
    *[
        Operator(name, functions=(getattr(torch, name),), memory=FRESH, is_evaluated=True)
        for name in ("arange", "full", "ones", "scalar_tensor", "zeros")
    ],
    # only fresh
    Operator("shape", "input *rest", methods="size dim ndimension numel nelement is_floating_point stride get_device"
             " is_contiguous element_size",
             attributes="shape ndim dtype device requires_grad is_cuda layout",
             aten="sym_size sym_stride sym_numel size _assert_tensor_metadata", memory=FRESH),
    Operator("grid_sampler", "input *rest", (F.grid_sample,), aten="grid_sampler_2d", memory=FRESH),
    Operator("im2col", "input *rest", (F.unfold,), modules={nn.Unfold: _named()}, memory=FRESH),
    Operator("col2im", "input *rest", (F.fold,), modules={nn.Fold: _named()}, memory=FRESH),
    Operator("log_sigmoid", "input *rest", (F.logsigmoid,), modules={nn.LogSigmoid: _named()}, memory=FRESH),
    Operator("softmax", "input *rest", (F.softmax, torch.softmax), "softmax", aten="_softmax",
             modules=dict.fromkeys((nn.Softmax, nn.Softmax2d), _named()), memory=FRESH),
    Operator("log_softmax", "input *rest", (F.log_softmax, torch.log_softmax), "log_softmax", aten="_log_softmax",
             modules={nn.LogSoftmax: _named()}, memory=FRESH),
    Operator("layer_norm", "input *rest", (F.layer_norm,), modules={nn.LayerNorm: _named()}, memory=FRESH),
    Operator("group_norm", "input *rest", (F.group_norm,), modules={nn.GroupNorm: _named()}, memory=FRESH),
    *[_same(name, *modules) for name, *modules in (
        ("celu", nn.CELU), ("elu", nn.ELU), ("embedding", nn.Embedding), ("gelu", nn.GELU), ("glu", nn.GLU),
        ("hardshrink", nn.Hardshrink), ("hardsigmoid", nn.Hardsigmoid), ("hardswish", nn.Hardswish),
        ("hardtanh", nn.Hardtanh), ("local_response_norm", nn.LocalResponseNorm), ("mish", nn.Mish), ("normalize",),
        ("relu6",), ("rms_norm", nn.RMSNorm), ("scaled_dot_product_attention",), ("selu", nn.SELU),
        ("sigmoid", nn.Sigmoid), ("silu", nn.SiLU), ("softmin", nn.Softmin), ("softplus", nn.Softplus),
        ("softshrink", nn.Softshrink), ("softsign", nn.Softsign), ("tanh", nn.Tanh), ("tanhshrink", nn.Tanhshrink),
        ("threshold", nn.Threshold),
    )],
    *[_same(name) for name in _OF_ONE_NAME.split()],
    *[_same(name, measures="input") for name in _OF_A_SHAPE.split()],
)  # fmt: skip


ROWS = {row.name: row for row in OPERATORS}
FUNCTIONS: dict[Any, tuple[Operator, str]] = {
    function: (row, row.also.get(function, row.parameters))
    for row in OPERATORS
    for function in (*row.functions, *row.also)
}
METHODS = {method: (row, row.parameters) for row in OPERATORS for method in row.methods.split()}
ATTRIBUTES = {attribute: row for row in OPERATORS for attribute in row.attributes.split()}
ATEN = ROWS | {name: row for row in OPERATORS for name in row.aten.split()}
MODULES = {kind.forward: (row, describe) for row in OPERATORS for kind, describe in row.modules.items()}

NOBODY_KNOWS = Operator(UNKNOWN)
"""The row of every operator that the table does not have."""
