"""What frequent operators make of contiguous fake tensors whose sizes are symbols.

torch finds the shape and the layout of a result by dozens of questions about symbols, which take longer than all the
rest of an export. Where the operands are contiguous, whatever their sizes, the result is known without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import _meta_registrations
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch._prims_common import infer_size
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)
from torch.fx.experimental.symbolic_shapes import guard_or_false, statically_known_true

Impl = Callable[..., Any]


class Layouts:
    """Tells which tensors are contiguous, by what their strides are in symbols.

    Where it says so, they are for all sizes; where it does not, they may be.
    """

    def __init__(self) -> None:
        self._strides: dict[tuple[Any, ...], tuple[Sequence[Any], tuple[Any, ...], tuple[Any, ...]]] = {}

    def is_contiguous(self, value: torch.Tensor) -> bool:
        """Whether the strides of a tensor are written as those of a contiguous one are."""
        return expressions(value.stride()) in self._contiguous(value.shape)[1:]

    def contiguous(self, shape: Sequence[Any]) -> Sequence[Any]:
        """The strides of a contiguous tensor."""
        return self._contiguous(shape)[0]

    def _contiguous(self, shape: Sequence[Any]) -> tuple[Sequence[Any], tuple[Any, ...], tuple[Any, ...]]:
        """The strides of contiguous tensors: as torch gives them, with a size of 0 counting as 1, and without that."""
        key = expressions(shape)
        if key not in self._strides:
            plain: list[Any] = [1]
            for size in reversed(shape[1:]):
                plain.insert(0, plain[0] * size)
            made = torch.empty(shape, device="meta").stride()
            self._strides[key] = (made, expressions(made), expressions(plain[: len(shape)]))
        return self._strides[key]


def expressions(sizes: Sequence[Any]) -> tuple[Any, ...]:
    """Sizes that can be compared: numbers, and what symbols are written as."""
    return tuple(each.node.expr if isinstance(each, torch.SymInt) else each for each in sizes)


class Fakes:
    """The operators of one export.

    Each method takes what torch's own implementation does, and returns NotImplemented where it does not know.
    """

    def __init__(self, layouts: Layouts) -> None:
        self._layouts = layouts
        self._methods: dict[OpOverload, Impl] = {
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
            **dict.fromkeys(BINARY, self._binary),
            aten._native_batch_norm_legit_no_training.default: self._batchnorm,
            aten.cat.default: self._cat,
            aten.convolution.default: self._convolution,
            aten.native_group_norm.default: self._group_norm,
            aten.native_layer_norm.default: self._layer_norm,
            aten.view.default: self._view,
            aten._unsafe_view.default: self._view,
        }
        self._composites: dict[OpOverload, Impl] = {
            aten.linear.default: self._linear,
            aten.matmul.default: self._matmul,
            aten.scaled_dot_product_attention.default: self._attention,
        }

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Answers inside, where it can, before torch does."""
        dispatch = FakeTensorMode._dispatch_impl

        def first(mode: FakeTensorMode, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            if func in self._methods:
                found = self._methods[func](mode, func, *args, **kwargs)
                if found is not NotImplemented:
                    return found
            return dispatch(mode, func, types, args, kwargs)

        with ExitStack() as stack:
            stack.enter_context(patch.object(FakeTensorMode, "_dispatch_impl", first))
            for operator, method in self._composites.items():
                stack.enter_context(_answered_by(method, operator))
            yield

    def _is_known(self, mode: FakeTensorMode, *values: Any) -> bool:
        """Whether tensors are alike, and contiguous."""
        return self._are_alike(mode, *values) and all(map(self._layouts.is_contiguous, values))

    def _are_alike(self, mode: FakeTensorMode, *values: Any) -> bool:
        """Whether tensors have one floating-point type and device, are no constants, and one has symbols."""
        return any(getattr(value, "_has_symbolic_sizes_strides", False) for value in values) and all(
            type(value) is FakeTensor
            and value.fake_mode is mode
            and value.constant is None
            and value.dtype.is_floating_point
            and value.dtype == values[0].dtype
            and value.fake_device == values[0].fake_device
            for value in values
        )

    def _elementwise(self, mode: FakeTensorMode, operator: OpOverload, value: Any, *rest: Any, **options: Any) -> Any:
        has_others = any(isinstance(each, torch.Tensor) for each in (*rest, *options.values()))
        if has_others or not self._is_known(mode, value):
            return NotImplemented
        return value if operator._schema.is_mutable else _fresh(mode, value, value.shape)

    def _binary(self, mode: FakeTensorMode, operator: OpOverload, value: Any, other: Any, **_: Any) -> Any:
        """Of two shapes that are the same, but for sizes of 1."""
        if isinstance(other, int | float) and self._is_known(mode, value):
            shape = value.shape
        elif not self._is_known(mode, value, other):
            return NotImplemented
        else:
            rank = max(value.dim(), other.dim())
            own, its = ([*(1 for _ in range(rank - each.dim())), *each.shape] for each in (value, other))
            mine, theirs = expressions(own), expressions(its)
            if not all(one == two or 1 in (one, two) for one, two in zip(mine, theirs, strict=True)):
                return NotImplemented
            shape = [
                one if mine[axis] == theirs[axis] or not guard_or_false(one == 1) else two
                for axis, (one, two) in enumerate(zip(own, its, strict=True))
            ]
            if expressions(shape) not in (expressions(value.shape), expressions(other.shape)):
                return NotImplemented
        if operator._schema.is_mutable:
            return value if expressions(shape) == expressions(value.shape) else NotImplemented
        return _fresh(mode, value, shape)

    def _batchnorm(self, mode: FakeTensorMode, operator: OpOverload, value: Any, *_: Any) -> Any:
        """That of eval mode."""
        if type(value) is not FakeTensor:
            return NotImplemented
        if not self._is_known(mode, value):
            with mode:  # torch runs a dozen operators for it
                return torch.empty_like(value), value.new_empty(0), value.new_empty(0)
        return tuple(_fresh(mode, value, shape) for shape in (value.shape, (0,), (0,)))

    def _cat(self, mode: FakeTensorMode, operator: OpOverload, values: Sequence[Any], axis: int = 0) -> Any:
        if not self._is_known(mode, *values) or not values[0].dim():
            return NotImplemented
        shape = list(values[0].shape)
        axis %= len(shape)
        rests = {(*sizes[:axis], None, *sizes[axis + 1 :]) for sizes in (expressions(each.shape) for each in values)}
        if len(rests) > 1:
            return NotImplemented
        shape[axis] = torch.sym_sum([each.shape[axis] for each in values])  # type: ignore[no-untyped-call]
        return _fresh(mode, values[0], shape)

    def _convolution(
        self,
        mode: FakeTensorMode,
        operator: OpOverload,
        value: Any,
        weight: Any,
        bias: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        is_transposed: bool,
        output_padding: Any,
        groups: int,
    ) -> Any:
        """On a device whose kernels keep a layout, where weights and what they multiply have the same."""
        if value.fake_device.type != "cpu" or value.dim() != weight.dim() or not self._is_known(mode, value, weight):
            return NotImplemented
        shape = _meta_registrations.calc_conv_nd_return_shape(
            value, weight, stride, padding, dilation, is_transposed, groups, output_padding if is_transposed else None
        )
        return _fresh(mode, value, shape)

    def _group_norm(self, mode: FakeTensorMode, operator: OpOverload, value: Any, *args: Any) -> Any:
        _, _, batch, channels, inner, groups, _ = args
        if value.fake_device.type != "cpu" or not self._is_known(mode, value):
            return NotImplemented
        size = 1
        for each in value.shape[2:]:
            size = size * each
        if expressions((batch, channels, inner)) != expressions((*value.shape[:2], size)):
            return NotImplemented
        return tuple(_fresh(mode, value, shape) for shape in (value.shape, (batch, groups), (batch, groups)))

    def _layer_norm(self, mode: FakeTensorMode, operator: OpOverload, value: Any, shape: Any, *_: Any) -> Any:
        """Which makes its operand contiguous."""
        if type(value) is not FakeTensor or value.fake_mode is not mode or value.fake_device.type != "cpu":
            return NotImplemented
        kept, normalised = value.shape[: -len(shape)], value.shape[-len(shape) :]
        is_fixed = value.dtype.is_floating_point and not any(isinstance(each, torch.SymInt) for each in shape)
        if not is_fixed or expressions(normalised) != expressions(shape):
            return NotImplemented
        moments = (*kept, *(1 for _ in shape))
        return tuple(_fresh(mode, value, shape) for shape in (value.shape, moments, moments))

    def _view(self, mode: FakeTensorMode, operator: OpOverload, value: Any, shape: Sequence[Any]) -> Any:
        """Of as many elements, which is asked where it does not show in how the sizes are written."""
        if not shape or not value.dim() or not self._is_known(mode, value):
            return NotImplemented
        if -1 in expressions(shape) or prod(expressions(shape)) != prod(expressions(value.shape)):
            shape = infer_size(tuple(shape), value.numel())
        with in_kernel_invocation_manager(mode):
            made = torch.as_strided(value, shape, self._layouts.contiguous(shape))
        return FakeTensor(mode, made, device=value.fake_device)

    def _linear(self, mode: FakeTensorMode, operator: OpOverload, value: Any, weight: Any, bias: Any = None) -> Any:
        """Which makes its result contiguous, as all products of matrices do."""
        tensors = (value, weight) if bias is None else (value, weight, bias)
        if value.dim() < 2 or weight.dim() != 2 or not self._are_alike(mode, *tensors):
            return NotImplemented
        if expressions(value.shape[-1:]) != expressions(weight.shape[1:]):
            return NotImplemented
        if bias is not None and expressions(bias.shape) != expressions(weight.shape[:1]):
            return NotImplemented
        return _fresh(mode, value, (*value.shape[:-1], weight.shape[0]))

    def _matmul(self, mode: FakeTensorMode, operator: OpOverload, one: Any, two: Any) -> Any:
        if min(one.dim(), two.dim()) < 2 or not self._are_alike(mode, one, two):
            return NotImplemented
        batch = one.shape[:-2] if two.dim() == 2 else two.shape[:-2]
        if expressions((*batch, one.shape[-1])) != expressions((*one.shape[:-2], two.shape[-2])):
            return NotImplemented
        return _fresh(mode, one, (*one.shape[:-1], two.shape[-1]))

    def _attention(
        self, mode: FakeTensorMode, operator: OpOverload, query: Any, key: Any, value: Any, *rest: Any, **options: Any
    ) -> Any:
        """As products of matrices of equal batches: only so does torch compute with a mask of three axes."""
        mask: Any = rest[0] if len(rest) == 1 else None
        is_masked = (
            isinstance(mask, torch.Tensor) and mask.dim() == 3 and query.dim() > 3 and not options.keys() - {"scale"}
        )
        if not is_masked or not self._are_alike(mode, query, key, value, mask):
            return NotImplemented
        *batch, length, width = query.shape
        source = key.shape[-2]
        if expressions((*batch, source, width, *batch, source)) != expressions((*key.shape, *value.shape[:-1])):
            return NotImplemented
        pairs = zip(mask.shape, (batch[-1], length, source), strict=True)
        if not all(expressions([one]) == (1,) or statically_known_true(one == two) for one, two in pairs):
            return NotImplemented
        return _fresh(mode, query, (*batch, length, value.shape[-1]))


@contextmanager
def _answered_by(method: Impl, operator: OpOverload) -> Iterator[None]:
    """Asks a method first what an operator makes that torch else takes apart."""
    key = DispatchKey.CompositeImplicitAutograd
    plain = operator.py_kernels.get(key, partial(operator._op_dk, key))

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if isinstance(args[0], FakeTensor):
            with unset_fake_temporarily():
                found = method(args[0].fake_mode, operator, *args, **kwargs)
            if found is not NotImplemented:
                return found
        return plain(*args, **kwargs)

    operator._dispatch_cache.clear()
    try:
        with patch.dict(operator.py_kernels, {key: kernel}):
            yield
    finally:
        operator._dispatch_cache.clear()


def _fresh(mode: FakeTensorMode, value: Any, shape: Sequence[Any]) -> FakeTensor:
    return FakeTensor(mode, torch.empty(shape, dtype=value.dtype, device="meta"), device=value.fake_device)


def _overloads(*names: str) -> tuple[OpOverload, ...]:
    """Operators by their names, and those that write in place."""
    spellings = (name.partition(".") for name in names)
    return tuple(
        getattr(getattr(aten, name), overload or "default")
        for plain, _, overload in spellings
        for name in (plain, f"{plain}_")
        if hasattr(aten, name)
    )


aten = torch.ops.aten
ELEMENTWISE = _overloads(
    *("clamp", "clamp_min", "elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish"),
    *("relu", "rsqrt", "sigmoid", "silu", "softplus", "sqrt", "tanh"),
)
"""What makes of a tensor of floating-point numbers another one of the same size and type."""

BINARY = _overloads("add.Tensor", "div.Tensor", "mul.Tensor", "sub.Tensor")
