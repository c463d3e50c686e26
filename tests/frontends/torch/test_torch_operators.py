"""The table of torch operators, row by row, held against what torch does with memory, shapes and types."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_iter, tree_map

import bnfold
from bnfold.frontends.torch.operators import spelling
from bnfold.frontends.torch.operators.calls import Keeps, Memory, Operator, Outputs
from bnfold.frontends.torch.operators.table import FUNCTIONS, METHODS, MODULES, OPERATORS, ROWS
from tests.toys.torch_models import assert_same, drawn, exported, traced, trained

X = drawn(2, 4, 6, 6)
ROW, SQUARE, VECTOR, SCALAR, ONES = X[0, 0, 0].clone(), X[0, 0].clone(), drawn(4), drawn(1)[0], drawn(1, 1, 1, 1)
CUBE, LINE, VOLUME, BATCH = X[0].clone(), X[0].clone()[None], drawn(1, 4, 4, 4, 4), X[0].clone()
WHOLE, NOTHING, LIST = torch.arange(1, 7).reshape(2, 3), drawn(0, 4), torch.tensor([0, 1, 2, 3])
TRUE = torch.ones(2, 4, 6, 6, dtype=torch.bool)
PLAIN = [(X,), (SQUARE,), (VECTOR,), (ONES,), (SCALAR,), (WHOLE,), (NOTHING,), (X.transpose(1, 3),), (TRUE,)]
PAIRS = [
    (X, X),
    (X, ONES),
    (ONES, ONES),
    (SCALAR, SCALAR),
    (WHOLE, WHOLE),
    (X, 0.0),
    (X, 1.0),
    (WHOLE, 1),
    (TRUE, TRUE),
]
NORM = (drawn(4), drawn(4).abs(), drawn(4), drawn(4))
REDUCED = [(X,), (X, 1), (X, (2, 3)), (X, 1, True), (ONES, (2, 3), True), (ONES, 0), (VECTOR, 0), (SCALAR, 0)]


def window(n: int) -> Tensor:
    """Data with `n` axes behind the channels, all of size one or four."""
    return drawn(1, 4, *[4] * n)


POOLED = [(window(n), size) for n in (1, 2, 3) for size in (1, 2)]
ADAPTED = [(window(n), size) for n in (1, 2, 3) for size in (1, 2, 4)] + [(drawn(1, 4, *[1] * n), 1) for n in (1, 2, 3)]

# Positional arguments in the order of Python; calls that change nothing are there wherever there are any.
SAMPLES: dict[str, list[tuple[Any, ...]]] = {
    **{f"conv{n}d": [(window(n), drawn(4, 4, *[1] * n), *bias) for bias in ((), (VECTOR,))] for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": [(window(n), drawn(4, 4, *[1] * n))] for n in (1, 2, 3)},
    "convolution": [(X, drawn(4, 4, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)],
    "linear": [(X, drawn(6, 6)), (VECTOR, drawn(1, 4))],
    "matmul": [(X, X), (SQUARE, ROW), (ROW, ROW), (ONES, ONES), (X, torch.eye(6, dtype=X.dtype))],
    "mm": [(SQUARE, SQUARE), (SQUARE, torch.eye(6, dtype=X.dtype))],
    "bmm": [(CUBE, CUBE)],
    "addmm": [(SQUARE, SQUARE, SQUARE), (SQUARE, drawn(6, 0), drawn(0, 6))],
    "baddbmm": [(CUBE, CUBE, CUBE), (CUBE, drawn(4, 6, 0), drawn(4, 0, 6))],
    "einsum": [("ab->ba", SQUARE), ("ab->ab", SQUARE)],
    "batch_norm": [(X, *NORM[:2]), (X, *NORM)],
    "instance_norm": [(X, *NORM[:2], None, None, False), (X,)],
    "native_batch_norm": [(X, *NORM, False, 0.1, 1e-5)],
    "_native_batch_norm_legit": [(X, VECTOR, VECTOR, *NORM[:2], False, 0.1, 1e-5)],
    "_native_batch_norm_legit_no_training": [(X, VECTOR, VECTOR, *NORM[:2], 0.1, 1e-5)],
    "_batch_norm_no_update": [(X, VECTOR, VECTOR, *NORM[:2], 0.1, 1e-5)],
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "pow", "floor_divide", "remainder", "fmod"), PAIRS),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "atan2"), PAIRS),
    **dict.fromkeys(("logical_and", "logical_or", "bitwise_and", "bitwise_or"), PAIRS),
    "cat": [([X, X], 1), ([X],), ([X, drawn(0)],), ([ONES, ONES],)],
    "stack": [([X, X], 1), ([X],)],
    "chunk": [(X, 2, 1), (X, 1)],
    "split": [(X, 2, 1), (X, 2), (X, [2], 0)],
    "split_with_sizes": [(X, [2], 0)],
    "narrow": [(X, 1, 0, 4), (X, 1, 1, 2)],
    "slice": [(X, 1, 0, 4), (X,)],
    "slice_all": [(X, slice(None)), (X, (..., slice(1, 2))), (X, LIST[:2]), (X, 0)],
    "select": [(X, 0, 1), (ONES, 0, 0)],
    "index": [(X, [None, LIST]), (X, [LIST[:2]]), (X, [TRUE])],
    "index_select": [(X, 1, LIST), (SCALAR, 0, torch.tensor([0])), (ONES, 1, torch.tensor([0]))],
    "permute": [(X, (0, 1, 2, 3)), (X, (0, 2, 3, 1))],
    "transpose": [(X, 1, 1), (X, 1, 2)],
    "t": [(SQUARE,)],
    "adjoint": [(SQUARE,), (drawn(1, 1),)],
    "reshape": [(X, (2, 4, 6, 6)), (X, (2, 4, 36)), (X, (-1,))],
    "reshape_as": [(X, X.clone()), (X, drawn(2, 4, 36))],
    "flatten": [(X,), (X, 1), (VECTOR,), (X, 2, 2)],
    "unflatten": [(X, 1, (2, 2)), (X, 1, (4,))],
    "squeeze": [(X,), (ONES,), (ONES, 0), (X, 0)],
    "unsqueeze": [(X, 0)],
    "pixel_shuffle": [(X, 2), (X, 1)],
    "pixel_unshuffle": [(X, 2), (X, 1)],
    "channel_shuffle": [(X, 2), (X, 1), (X, 4)],
    "expand": [(X, (2, 4, 6, 6)), (ONES, (2, 4, 6, 6)), (X, (1, 2, 4, 6, 6))],
    "expand_as": [(X, X.clone()), (ONES, X)],
    "repeat": [(X, (1, 1, 1, 1)), (X, (2, 1, 1, 1)), (ONES, (1, 1, 1, 1)), (SCALAR, ())],
    "tile": [(X, (1, 1, 1, 1)), (X, (1,)), (X, ()), (SCALAR, ())],
    **dict.fromkeys(("max_pool", "max_pool_with_indices", "avg_pool"), POOLED),
    **dict.fromkeys(("adaptive_avg_pool", "adaptive_max_pool", "adaptive_max_pool_with_indices"), ADAPTED),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "norm", "all", "any", "max", "min", "prod", "logsumexp"), REDUCED),
    **dict.fromkeys(("var", "std", "var_mean"), REDUCED[:4]),
    **dict.fromkeys(("argmax", "argmin"), REDUCED),
    "interpolate": [(X, (6, 6)), (X, None, 1.0), (X, (6, 6), None, "bilinear"), (X, (6, 6), None, "area"),
                    (window(1), 4), (window(3), 4, None, "trilinear"), (ONES, (1, 1)), (X, (6, 6), None, "bicubic")],
    "pad": [(X, mode_pads, mode) for mode in ("constant", "reflect", "replicate", "circular")
            for mode_pads in ((0, 0, 0, 0), (1, 0, 1, 0))] + [(X, ()), (X, (-1, 0))],
    "dropout": [(each, *rest) for each in (X, CUBE, VOLUME) for rest in ((0.5, False), (0.0, True), (0.5, True))],
    "prelu": [(X, VECTOR), (VECTOR.abs(), VECTOR[:1]), (VECTOR, torch.ones(1, dtype=X.dtype))],
    "leaky_relu": [*PLAIN, (X, 1.0)],
    "identity": [(X,)],
    "to": [(X, torch.float64), (X, torch.float32), (X, X.clone()), (X, SQUARE.float()), (X, "cpu")],
    "type_as": [(X, X.clone()), (X, SQUARE.float())],
    "flip": [(X, (1,)), (X, ()), (ONES, (0,)), (SCALAR, ())],
    "clamp": [(X, 0), (X, 0, 1), (WHOLE, -9)],
    "mv": [(SQUARE, ROW)],
    "dot": [(ROW, ROW)],
    "_weight_norm": [(SQUARE, SQUARE[:, :1]), (drawn(1, 1).abs(), drawn(1, 1).abs(), 0)],
    "_weight_norm_interface": [(SQUARE, SQUARE[:, :1])],
    "arange": [(4,)],
    "scalar_tensor": [(4,)],
    "full": [((2, 3), 1.0)],
    "ones": [((2, 3),)],
    "zeros": [((2, 3),)],
    "shape": [(X,)],
    "grid_sampler": [(X, drawn(2, 6, 6, 2), mode, "zeros", False) for mode in ("bilinear", "nearest")],
    "im2col": [(X, 1), (X, 2)],
    "col2im": [(drawn(2, 4, 36), (6, 6), 1), (drawn(2, 4, 9), (6, 6), (2, 2), 1, 0, 3), (drawn(2, 4, 36), 6, 1)],
    "softmax": [(X, 1), (ONES, 1), (SCALAR, 0)],
    "log_softmax": [(X, 1), (ONES, 1), (SCALAR, 0)],
    "softmin": [(X, 1), (ONES, 1)],
    "layer_norm": [(X, (6,)), (X, (6,), ROW, ROW)],
    "group_norm": [(X, 2), (X, 4, VECTOR, VECTOR)],
    "rms_norm": [(X, (6,)), (X, (6,), ROW)],
    "embedding": [(SQUARE, LIST), (LIST, SQUARE), (torch.arange(6), SQUARE)],
    "local_response_norm": [(X, 1), (X, 2)],
    "scaled_dot_product_attention": [(X, X, X), (ONES, ONES, ONES)],
    "threshold": [(X, -99.0, 0.0), (X, 0.0, 0.0)],
    "glu": [(X, 1)],
    "cumsum": [(X, 1), (ONES, 1), (SCALAR, 0)],
    "cumprod": [(X, 1), (ONES, 1), (SCALAR, 0)],
    "gather": [(CUBE, 0, torch.zeros(4, 6, 6, dtype=torch.int64)), (ROW, 0, torch.arange(6))],
    "scatter": [(ROW, 0, torch.arange(6), ROW.clone()), (ROW, 0, LIST[:0], ROW)],
    "scatter_add": [(ROW, 0, torch.arange(6), ROW.clone()), (ROW, 0, LIST[:0], ROW)],
    "index_put": [(X, (LIST[:1],), SCALAR), (X, (LIST[:0],), SCALAR)],
    "lerp": [(X, X, 0.0), (X, X, 1.0), (X, X, X)],
    "masked_fill": [(X, TRUE, 0.0), (X, ~TRUE, 0.0)],
    "where": [(X, TRUE, X), (TRUE, X, X), (~TRUE, X, X), (TRUE[0, 0, 0, 0], SCALAR, SCALAR)],
    "native_layer_norm": [(X, (6,), ROW, ROW, 1e-5)],
    "native_group_norm": [(X, VECTOR, VECTOR, 2, 4, 36, 2, 1e-5)],
    **{key: [(X, X, X), (X, ONES, ONES), (SCALAR, SCALAR, SCALAR)] for key in ("addcmul", "addcdiv")},
    **dict.fromkeys(("hypot", "logaddexp"), PAIRS),
    "outer": [(ROW, ROW)],
    "kthvalue": [(X, 1), (SCALAR, 1)],
    "median": REDUCED[:2],
    "masked_select": [(X, TRUE)],
    "masked_scatter": [(X, TRUE, X.clone()), (X, ~TRUE, X.clone())],
    "full_like": [(X, 1.0)],
    "new_full": [(X, (2, 3), 1.0)],
    **{key: [(X, (2, 3))] for key in ("new_ones", "new_zeros")},
    "index_add": [(ROW, 0, torch.arange(6), ROW.clone()), (ROW, 0, LIST[:0], ROW[:0])],
    "index_copy": [(ROW, 0, torch.arange(6), ROW.clone()), (ROW, 0, LIST[:0], ROW[:0])],
    "index_fill": [(ROW, 0, LIST, 1.0), (ROW, 0, LIST[:0], 1.0)],
    "scatter_reduce": [(ROW, 0, torch.arange(6), ROW.clone(), "sum"), (ROW, 0, LIST[:0], ROW.clone(), "sum")],
    "repeat_interleave": [(X, 1), (X, 1, 0), (X, 2), (torch.ones(4, dtype=torch.int64),)],
    "take_along_dim": [(ROW, torch.arange(6)), (ROW, torch.arange(6), 0)],
    "nan_to_num": PLAIN,
    "roll": [(X, 0, 1), (X, 1, 1), (NOTHING, 1), (X, 6, 2)],
    "topk": [(X, 6), (SCALAR, 1)],
    "sort": [(X,), (SCALAR,), (ONES,)],
    "tril": [(X, 9), (SQUARE,)],
    "triu": [(X, -9), (SQUARE,)],
    "round": [*PLAIN, (X.round(),)],
}  # fmt: skip

# Where aten takes other arguments than Python.
ATEN_SAMPLES: dict[str, list[tuple[Any, ...]]] = {
    "einsum": [("ab->ba", [SQUARE]), ("ab->ab", [SQUARE])],
    "batch_norm": [(X, VECTOR, VECTOR, *NORM[:2], False, 0.1, 1e-5, False)],
    "instance_norm": [(X, VECTOR, VECTOR, *NORM[:2], False, 0.1, 1e-5, False)],
    "clamp_min": [(X, -99)],
    "roll": [(X, [0], [1]), (X, [6], [2]), (NOTHING, [1], [0])],
    **{f"{name}_pool{n}d": [(window(n), [size] * n) for size in (1, 2, 4)] + [(drawn(1, 4, *[1] * n), [1] * n)]
       for name in ("adaptive_avg", "_adaptive_avg", "adaptive_max") for n in (1, 2, 3)},
    **{name: [(window(int(name.removesuffix("_aa")[-2])), [4] * int(name.removesuffix("_aa")[-2]), *rest)
              for rest in ((), (False,), (None,), (False, None))]
       for name in ROWS["interpolate"].aten.split()},
    "pad": [(X, [0, 0, 0, 0]), (X, [1, 0, 1, 0], "replicate"), (X, [0, 0, 0, 0], "circular")],
    "constant_pad_nd": [(X, [0, 0]), (X, []), (X, [-1, 0])],
    **{f"{kind}_pad{n}d": [(window(n), [0, 0] * n), (window(n), [1, 0] * n)]
       for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "_unsafe_view": [(X, (2, 4, 36))],
    "_reshape_alias": [(X, (2, 4, 6, 6), X.stride())],
    "_to_copy": [(X,)],
    "linalg_vector_norm": [(X, 2, [1]), (ONES, 2, [1])],
    "_softmax": [(X, 1, False), (SCALAR, 0, False)],
    "_log_softmax": [(X, 1, False), (SCALAR, 0, False)],
    "_assert_tensor_metadata": [(X,)],
    "sym_size": [(X, 0)],
    "size": [(X, 0)],
    "sym_stride": [(X, 0)],
    "grid_sampler": [(X, drawn(2, 6, 6, 2), 0, 0, False)],
    "grid_sampler_2d": [(X, drawn(2, 6, 6, 2), 0, 0, False)],
    "im2col": [(X, [1, 1], [1, 1], [0, 0], [1, 1])],
    "col2im": [(drawn(2, 4, 36), [6, 6], [1, 1], [1, 1], [0, 0], [1, 1])],
    "embedding": [(SQUARE, LIST)],
    "group_norm": [(X, 2, VECTOR, VECTOR)],
    "softmin": [(X, 1)],
}  # fmt: skip

MODULE_SAMPLES: dict[type[nn.Module], tuple[Any, ...]] = {
    **{getattr(nn, f"{kind}{n}d"): (4, 4, 1) for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)},
    nn.Linear: (6, 6),
    nn.BatchNorm2d: (4,),
    nn.InstanceNorm2d: (4,),
    nn.Embedding: (9, 4),
    nn.Unflatten: (1, (2, 2)),
    nn.Upsample: ((6, 6),),
    nn.ConstantPad2d: (0, 0.0),
    nn.Threshold: (-99.0, 0.0),
    nn.LayerNorm: (6,),
    nn.RMSNorm: (6,),
    nn.GroupNorm: (2, 4),
    nn.Fold: ((6, 6), 1),
    nn.SyncBatchNorm: (4,),
    nn.PReLU: (),
    nn.Softmax: (1,),
    nn.Softmin: (1,),
    nn.LogSoftmax: (1,),
    nn.GLU: (1,),
    nn.PixelShuffle: (1,),
    nn.PixelUnshuffle: (1,),
    nn.ChannelShuffle: (1,),
    nn.LocalResponseNorm: (1,),
    nn.Unfold: (1,),
    **dict.fromkeys((nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d), (0,)),
    **{
        getattr(nn, f"{kind}Pool{n}d"): (1,) for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax") for n in (1, 2, 3)
    },
}


@dataclass(frozen=True)
class Run:
    """An operator that ran: its arguments and result, and how bnfold reads the call."""

    arguments: tuple[Any, ...]
    result: Any
    call: spelling.Call


def ran(row: Operator, kind: str, target: Any, samples: list[tuple[Any, ...]]) -> Iterator[Run]:
    """Every sample that one spelling takes."""
    for sample in samples:
        fresh = tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, sample)
        graph, nodes = fx.Graph(), {}
        for each in tree_iter(fresh):
            if isinstance(each, Tensor):
                nodes[id(each)] = graph.placeholder("x")
        args = tree_map(lambda each: nodes.get(id(each), each), fresh)  # noqa: B023 (called at once)
        node = graph.create_node(kind, target, args)
        try:
            result = getattr(fresh[0], target)(*fresh[1:]) if kind == "call_method" else target(*fresh)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError, UserWarning):
            continue  # a sample for another spelling, or for other types
        by_node = {node: each for each in tree_iter(fresh) if isinstance(each, Tensor) for node in [nodes[id(each)]]}
        call = spelling.spell(node, None)
        told = fx.node.map_arg(dict(call.arguments), by_node.get)
        yield Run(fresh, result, replace(call, arguments=told))


def spellings(row: Operator) -> Iterator[tuple[str, list[Run]]]:
    """Each spelling of a row but modules, with its runs."""
    samples = SAMPLES.get(row.name, PLAIN)
    for function in row.functions:
        yield f"function {function}", [*ran(row, "call_function", function, samples)]
    for function in row.also:
        yield f"function {function}", [*ran(row, "call_function", function, ATEN_SAMPLES[row.name])]
    for method in row.methods.split():
        shifted = [(sample[0], *sample[1]) for sample in samples if len(sample) == 2 and isinstance(sample[1], tuple)]
        yield f"method {method}", [*ran(row, "call_method", method, samples + shifted)]
    for attribute in row.attributes.split():
        yield f"attribute {attribute}", [*ran(row, "call_function", getattr, [(s[0], attribute) for s in samples])]
    for name in (row.name, *row.aten.split()):
        packet = getattr(torch.ops.aten, name, None)
        runs = []
        for overload in packet.overloads() if packet is not None else ():
            target = getattr(packet, overload)
            is_of_tensors = "Tensor" in str(target._schema).rpartition("->")[2] or row.name == "shape"
            if is_of_tensors and "out" not in overload.split("_"):
                runs += ran(row, "call_function", target, ATEN_SAMPLES.get(name, samples))
        if packet is not None:
            yield f"aten {name}", runs


def storages(value: Any) -> set[int]:
    tensors = [each for each in tree_iter(value) if isinstance(each, Tensor) and each.numel()]
    return {each.untyped_storage().data_ptr() for each in tensors}


ELSEWHERE = {"cudnn_batch_norm"}
"""What only other devices have."""

SHUFFLES = {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle"}
"""What copies on the CPU, and may be a view on other devices."""

ROW_NAMES = [row.name for row in OPERATORS if row.name not in ELSEWHERE]


@pytest.mark.parametrize("name", ROW_NAMES)
def test_memory_is_as_declared(name: str) -> None:
    row, has_shared = ROWS[name], False
    for spelled, runs in spellings(row):
        assert runs, f"no sample ran {spelled}"
        for run in runs:
            assert run.call.operator is row, spelled
            if run.call.is_inplace or run.call.op == "shape":
                continue
            made, source = storages(run.result), run.call.arguments.get("input")
            if row.memory is Memory.FRESH:
                assert not made & storages(run.arguments), f"{spelled} of {run.arguments[1:]} is not fresh"
            elif row.memory is not Memory.ANY:
                assert not (made & storages(run.arguments)) - storages(source), f"{spelled} shares more than its input"
            has_shared |= bool(made & storages(run.arguments))
        if row.memory is Memory.REPEATED:
            assert any(0 in run.result.stride() for run in runs)
    assert has_shared == (row.memory is not Memory.FRESH) or name in SHUFFLES, "no sample shares memory"


@pytest.mark.parametrize("name", ROW_NAMES)
def test_shape_and_type_are_as_declared(name: str) -> None:
    row = ROWS[name]
    for spelled, runs in spellings(row):
        for run in runs:
            source = run.call.arguments.get("input")
            if "tensors" in run.call.arguments:
                source = run.call.arguments["tensors"][0]
            is_told = any(isinstance(each, torch.dtype) for each in tree_iter(run.arguments))
            data = run.result if row.outputs is Outputs.ALL else [run.result]
            for each in [data[0][0]] if row.outputs is Outputs.FIRST else data:
                if Keeps.SHAPE in row.keeps:
                    assert each.shape == source.shape, spelled
                if Keeps.RANK in row.keeps:
                    assert each.dim() == source.dim(), spelled
                if Keeps.TYPE in row.keeps and not is_told:
                    assert each.dtype == source.dtype, spelled
            if row.carry or row.linear or row.is_batchnorm:
                assert isinstance(run.result, tuple | list) == (row.outputs is not Outputs.ONE), spelled


@pytest.mark.parametrize("kind", [kind for row in OPERATORS for kind in row.modules if kind is not nn.SyncBatchNorm])
def test_modules_are_as_declared(kind: type[nn.Module]) -> None:
    row, _ = MODULES[kind.forward]
    module = kind(*MODULE_SAMPLES.get(kind, ())).double().eval()
    for x in (X, LIST, window(1), window(3), drawn(2, 4, 36)):
        graph = fx.Graph()
        node = graph.call_module("it", (graph.placeholder("x"),))
        call = spelling.spell(node, nn.ModuleDict({"it": module}))
        assert call.operator is row
        try:
            result = module(x)
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
            continue  # of another rank or type
        if row.memory is Memory.FRESH:
            assert not storages(result) & storages([x, *module.parameters(), *module.buffers()])
        if Keeps.SHAPE in row.keeps:
            assert result.shape == x.shape
        if Keeps.RANK in row.keeps:
            assert result.dim() == x.dim()
        return
    pytest.fail(f"no sample ran {kind.__name__}")


@pytest.mark.parametrize("equation", ["ab,bc->ac", "ab,ab->ab", "ab,cd->ab", "ab,ab->ba", "ab,cd->abcd"])
@pytest.mark.parametrize("other", [SQUARE.clone(), torch.ones(6, 6, dtype=X.dtype), torch.eye(6, dtype=X.dtype)])
def test_an_einsum_of_two_is_fresh(equation: str, other: Tensor) -> None:
    assert not storages(torch.einsum(equation, SQUARE, other)) & storages([SQUARE, other])


@pytest.mark.parametrize("equation", ["ab,cd->ab", "ab,cd->abcd"])
def test_an_einsum_with_a_single_number_is_fresh(equation: str) -> None:
    one = torch.ones(1, 1, dtype=X.dtype)
    assert not storages(torch.einsum(equation, SQUARE, one)) & storages([SQUARE, one])


def test_no_spelling_is_in_two_rows() -> None:
    assert len(ROWS) == len(OPERATORS)
    assert len(FUNCTIONS) == sum(len({*row.functions, *row.also}) for row in OPERATORS)
    assert len(METHODS) == sum(len(row.methods.split()) for row in OPERATORS)
    atens = [name for row in OPERATORS for name in {row.name, *row.aten.split()}]
    assert len(atens) == len(set(atens))


class Behind(nn.Module):
    """Something in place behind a BatchNorm whose input is read once more."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call, self.norm, self.conv = call, nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def transposed(self: Any, x: Tensor) -> Any:
    h = F.silu(x)
    return self.conv(F.relu(self.norm(h).adjoint(), inplace=True)), h * 2


@pytest.mark.parametrize(
    "row", [ROWS["adjoint"], replace(ROWS["adjoint"], memory=Memory.ANY)], ids=["told", "not told"]
)
def test_what_a_row_leaves_out_is_safe(row: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spelling.METHODS, "adjoint", (row, row.parameters))
    monkeypatch.setitem(spelling.ATEN, "adjoint", row)
    model = trained(Behind(transposed))
    with torch.no_grad():
        expected = copy.deepcopy(model)(X.clone())
        program = bnfold.fuse(exported(model, X)).module()
        for fused in (bnfold.fuse(model, example_inputs=X), bnfold.fuse(traced(model), example_inputs=X), program):
            assert_same(list(expected), list(fused(X.clone())))


@pytest.mark.parametrize("name", ["atleast_2d", "sum_to_size", "corrcoef"])
def test_an_aten_operator_without_a_row_may_share_memory(name: str) -> None:
    overload = getattr(torch.ops.aten, name)
    node = fx.Graph().call_function(getattr(overload, overload.overloads()[0]), (fx.Graph().placeholder("x"),))
    assert spelling.spell(node, None).operator.memory is Memory.ANY


@pytest.mark.parametrize("write", [operator.ipow, operator.imod, operator.ifloordiv])
def test_an_operator_of_python_writes_into_what_a_batchnorm_reads(write: Any) -> None:
    def call(self: Any, x: Tensor) -> Any:
        h = F.silu(x)
        y = self.norm(h)
        h = write(h, 2)
        return self.conv(y), h

    model = trained(Behind(call))
    with torch.no_grad():
        expected = copy.deepcopy(model)(X.clone())
        assert_same(list(expected), list(bnfold.fuse(model, example_inputs=X)(X.clone())))
