"""What frequent operators make of contiguous fake tensors whose sizes are symbols.

torch finds the shape and the layout of a result by dozens of questions about symbols, which take longer than all the
rest of an export. Where the operands are contiguous, whatever their sizes, the result is known without them.

Where sizes are numbers, torch remembers what its operators make, but not of those that it takes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from sympy import sympify
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


def hints(sizes: Sequence[Any]) -> list[int] | None:
    """The sizes of the example; None where data decides one."""
    if any(isinstance(each, torch.SymInt) and not each.node.has_hint() for each in sizes):
        return None
    return [each.node.hint if isinstance(each, torch.SymInt) else each for each in sizes]


class Fakes:
    """The operators of one export.

    Each method takes what torch's own implementation does, and returns NotImplemented where it does not know.

    Args:
        layouts: of its tensors.
        terms: symbols of which nothing follows from an equation; None where all sizes are numbers.
    """

    def __init__(self, layouts: Layouts, terms: Mapping[Any, Any] | None) -> None:
        self._layouts = layouts
        self._terms = {} if terms is None else terms
        self._is_static = terms is None
        self._methods: dict[OpOverload, Impl] = {
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
            **dict.fromkeys(BINARY, self._binary),
            aten.cat.default: self._cat,
            aten.convolution.default: self._convolution,
            aten.native_group_norm.default: self._group_norm,
            aten.native_layer_norm.default: self._layer_norm,
            aten.view.default: self._view,
            aten._unsafe_view.default: self._view,
        }
        self._composites: dict[OpOverload, Impl] = {
            aten.batch_norm.default: self._batchnorm,
            aten.linear.default: self._linear,
            aten.matmul.default: self._matmul,
            aten.scaled_dot_product_attention.default: self._attention,
        }
        if not self._is_static:
            self._composites.update({aten.flatten.using_ints: self._flatten, aten.reshape.default: self._reshape})

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
            if not self._is_static:
                stack.enter_context(patch.object(FakeTensorMode, "_dispatch_impl", first))
            for operator, method in self._composites.items():
                stack.enter_context(_answered_by(method, operator))
            yield

    def _is_known(self, mode: FakeTensorMode, *values: Any) -> bool:
        """Whether tensors are alike, and contiguous."""
        return self._are_alike(mode, *values) and all(map(self._layouts.is_contiguous, values))

    def _are_alike(self, mode: FakeTensorMode, *values: Any) -> bool:
        """Whether tensors have one floating-point type and device, are no constants, and one has symbols if any has."""
        is_first = self._is_static or any(getattr(value, "_has_symbolic_sizes_strides", False) for value in values)
        return is_first and all(
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

    def _batchnorm(
        self,
        mode: FakeTensorMode,
        operator: OpOverload,
        value: Any,
        weight: Any,
        bias: Any,
        mean: Any,
        variance: Any,
        is_training: bool,
        *_: Any,
    ) -> Any:
        """That of eval mode."""
        held = [each for each in (weight, bias, mean, variance) if each is not None]
        if is_training or mean is None or variance is None or not self._are_alike(mode, value, *held):
            return NotImplemented
        if any(expressions(each.shape) != expressions(value.shape[1:2]) for each in held):
            return NotImplemented
        if self._layouts.is_contiguous(value):
            return _fresh(mode, value, value.shape)
        with mode:
            return torch.empty_like(value)

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
        """On a device whose kernels keep a layout, where weights and what they multiply have the same.

        A size that stays is that of the operand, as where something is added to it: a graph asks the same value for it.
        """
        if value.fake_device.type != "cpu" or value.dim() != weight.dim() or not self._is_known(mode, value, weight):
            return NotImplemented
        shape = _meta_registrations.calc_conv_nd_return_shape(
            value, weight, stride, padding, dilation, is_transposed, groups, output_padding if is_transposed else None
        )
        written = zip(value.shape, shape, expressions(value.shape), expressions(shape), strict=True)
        return _fresh(mode, value, [own if one == two else made for own, made, one, two in written])

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
        shape = self._inferred(shape, value)
        with in_kernel_invocation_manager(mode):
            made = torch.as_strided(value, shape, self._layouts.contiguous(shape))
        return FakeTensor(mode, made, device=value.fake_device)

    def _inferred(self, shape: Sequence[Any], value: Any) -> Sequence[Any]:
        """A shape of as many elements, without -1; nothing is asked of symbols of which nothing would follow."""
        sizes = expressions(shape)
        count, known = value.numel(), prod(size for size, written in zip(shape, sizes, strict=True) if written != -1)
        written = expressions((count, known))
        if -1 not in sizes and written[0] == written[1]:
            return shape
        numbers = hints((count, known))
        is_asked = all(self._terms.keys().isdisjoint(sympify(each).free_symbols) for each in written)
        if is_asked or numbers is None or not numbers[1] or numbers[0] % numbers[1] or sizes.count(-1) > 1:
            return infer_size(tuple(shape), count)
        if -1 in sizes:
            quotient = count // known
            return [quotient if each == -1 else size for size, each in zip(shape, sizes, strict=True)]
        return shape if numbers[0] == numbers[1] else infer_size(tuple(shape), count)

    def _flatten(self, mode: FakeTensorMode, operator: OpOverload, value: Any, start: int = 0, end: int = -1) -> Any:
        rank = value.dim()
        if not -rank <= start < rank or not -rank <= end < rank or start % rank >= end % rank:
            return NotImplemented
        first, last = start % rank, end % rank + 1
        shape = (*value.shape[:first], prod(value.shape[first:last]), *value.shape[last:])
        return self._reshape(mode, operator, value, shape)

    def _reshape(self, mode: FakeTensorMode, operator: OpOverload, value: Any, shape: Sequence[Any]) -> Any:
        """A view of what is contiguous; a copy, where the sizes of the example need one."""
        if not shape or not value.dim() or not self._are_alike(mode, value):
            return NotImplemented
        if self._layouts.is_contiguous(value):
            return self._view(mode, operator, value, shape)
        example = hints((*value.shape, *value.stride(), *shape))
        if example is None or _is_view(example, value.dim()):
            return NotImplemented
        return _fresh(mode, value, self._inferred(shape, value))

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


def _is_view(example: Sequence[int], rank: int) -> bool:
    """Whether a tensor of some sizes and strides can be seen in another shape, of further sizes, without a copy."""
    held = torch.empty_strided(example[:rank], example[rank : 2 * rank], device="meta")
    made = held.reshape(example[2 * rank :])
    return bool(made.untyped_storage()._cdata == held.untyped_storage()._cdata)


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
