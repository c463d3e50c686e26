"""Operators that became one: the region of the original against what stands for it, on random data and impulses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.proof.carriers import draw
from bnfold.proof.evaluate import Unevaluated, evaluate, wide
from bnfold.proof.failure import Failure
from bnfold.proof.models import Scope, first_output
from bnfold.proof.pair import Pair

AnyArray = npt.NDArray[Any]

ALLOWED = frozenset({"Add", "Conv", "Gemm", "MatMul", "Neg", "Pad", "Sub", "Sum"})
"""Operators that may stand for a region."""

IMPULSES = 64
"""Channels that get an impulse, at each of the places."""


def roots(pair: Pair, scope: Scope) -> set[str]:
    """Values that regions make for the rest of the graph."""
    merged = pair.certificate.merged
    found: set[str] = set()
    if not any(path == scope.path for path, _ in merged):
        return found

    def note(value: str, reader: str | None) -> None:
        stack = [value]
        while stack:
            read = stack.pop()
            maker = scope.makers.get(read)
            if maker is None:
                continue
            key = scope.path, first_output(maker)
            if key in merged:
                if merged[key] != reader:
                    found.add(read)
            elif key in pair.certificate.vanished:
                stack.extend(maker.input)

    for node in scope.nodes:
        key = scope.path, first_output(node)
        if key not in pair.certificate.vanished:
            for each in node.input:
                note(each, merged.get(key))
    for each in scope.outputs:
        note(each, None)
    for path, inner in pair.original.scopes.items():
        if inner.around is scope or path.startswith(scope.path + "/"):
            for each in inner.readers:
                note(each, None)
            for node in inner.nodes:
                for each in node.input:
                    if inner.owner(each) is scope:
                        note(each, None)
            for each in inner.outputs:
                if inner.owner(each) is scope:
                    note(each, None)
    return found


def is_read_outside(pair: Pair, scope: Scope, node: onnx.NodeProto) -> bool:
    """Whether anything but regions reads what a node made that vanished."""
    stack = [node.output[0]]
    while stack:
        value = stack.pop()
        if value in scope.outputs or scope.readers.get(value, 0) != len(
            [1 for reader in pair.readers(scope, value) for each in reader.input if each == value]
        ) // max(1, 1):
            return True
        for reader in pair.readers(scope, value):
            if (scope.path, first_output(reader)) not in pair.certificate.merged:
                return True
    return False


def _region(pair: Pair, scope: Scope, root: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes of the original that one operator stands for, and what they read."""
    merged = pair.certificate.merged
    mark = merged[scope.path, first_output(root)]
    chosen: set[int] = set()
    reads: list[str] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in chosen:
            continue
        chosen.add(id(node))
        for value in node.input:
            if not value or scope.constant(value) is not None:
                continue
            maker = scope.makers.get(value)
            key = scope.path, first_output(maker) if maker is not None else ""
            if maker is not None and (merged.get(key) == mark or _leads_inside(pair, scope, maker, mark)):
                stack.append(maker)
            elif value not in reads:
                reads.append(value)
    return [node for node in scope.nodes if id(node) in chosen], reads


def _leads_inside(pair: Pair, scope: Scope, node: onnx.NodeProto, mark: str) -> bool:
    """Whether a node vanished behind a part of the region."""
    while (scope.path, first_output(node)) in pair.certificate.vanished:
        makers = [scope.makers[each] for each in node.input if each in scope.makers and scope.constant(each) is None]
        if len(makers) != 1:
            return False
        node = makers[0]
        if pair.certificate.merged.get((scope.path, first_output(node))) == mark:
            return True
    return False


def check_merge(pair: Pair, scope: Scope, other: Scope, root: onnx.NodeProto) -> None:
    """That one operator is a region of the original, within the rounding of its weights."""
    name = first_output(root)
    nodes, reads = _region(pair, scope, root)
    made = [each for each in root.output if each][0]
    ends = {pair.name(scope, each): each for each in reads}
    if len(ends) != len(reads):
        raise Failure("merges", name, "it reads two values that became one")
    stands = _stands(pair, scope, other, pair.name(scope, made), set(ends), name)
    try:
        _compare(pair, scope, other, name, made, nodes, reads, stands)
    except Unevaluated as error:
        raise Failure("merges", name, f"not covered: {error}") from error


def _stands(pair: Pair, scope: Scope, other: Scope, made: str, ends: set[str], name: str) -> list[onnx.NodeProto]:
    """The nodes of the result that stand for a region."""
    chosen: set[int] = set()
    stack = [made]
    while stack:
        value = stack.pop()
        if not value or value in ends or other.constant(value) is not None:
            continue
        node = other.makers.get(value)
        if node is None or node.op_type not in ALLOWED or node.domain not in ("", "ai.onnx"):
            raise Failure("merges", name, f"{value!r} stands for it, which is not made of what it reads")
        if id(node) in chosen:
            continue
        if id(node) in pair.accounted:
            raise Failure("merges", name, f"{value!r} stands for something else as well")
        chosen.add(id(node))
        stack.extend(node.input)
    pair.accounted.update(chosen)
    return [node for node in other.nodes if id(node) in chosen]


def _constants(scope: Scope, nodes: list[onnx.NodeProto]) -> dict[str, AnyArray]:
    names = {each for node in nodes for each in node.input if each}
    return {name: found for name in names if (found := scope.constant(name)) is not None}


def _compare(
    pair: Pair,
    scope: Scope,
    other: Scope,
    name: str,
    made: str,
    nodes: list[onnx.NodeProto],
    reads: list[str],
    stands: list[onnx.NodeProto],
) -> None:
    generator = np.random.default_rng()
    constants, fresh = _constants(scope, nodes), _constants(other, stands)
    relation = pair.relation(scope, made)
    unit = max((_unit(each) for each in fresh.values()), default=2.0**-53)
    sizes = {key: np.abs(wide(each)) if each.dtype.kind == "f" or each.dtype.name == "bfloat16" else each
             for key, each in fresh.items()}  # fmt: skip
    shapes = {value: _shape(pair, scope, value, nodes) for value in reads}

    def run(given: dict[str, AnyArray], now: dict[str, AnyArray]) -> tuple[AnyArray, AnyArray, AnyArray]:
        before = evaluate(nodes, {**constants, **given}, [made], scope.opsets)[0]
        target = pair.name(scope, made)
        after = evaluate(stands, {**fresh, **now}, [target], other.opsets)[0]
        bound = evaluate(_absolute(stands), {**sizes, **{k: np.abs(v) for k, v in now.items()}}, [target],
                         other.opsets)[0]  # fmt: skip
        if relation is not None:
            before = before if relation.pulled is None else relation.pulled(before)
            if relation.pushed is not None:
                raise Failure("merges", name, "what it makes changed in a way that is not covered")
        return before, after, bound

    drawn = {value: draw(pair.relation(scope, value), shapes[value], generator) for value in reads}
    names = {value: pair.name(scope, value) for value in reads}
    zero = run({value: drawn[value][0] for value in reads}, {names[value]: drawn[value][1] for value in reads})
    _judge(name, *zero, unit, 1.0)
    for value in reads:
        _impulses(pair, scope, name, value, drawn, names, run, unit, generator)


def _impulses(
    pair: Pair,
    scope: Scope,
    name: str,
    value: str,
    drawn: dict[str, tuple[AnyArray, AnyArray]],
    names: dict[str, str],
    run: Any,
    unit: float,
    generator: np.random.Generator,
) -> None:
    """One channel at a time, at corners, borders and in the middle: differences to the answer to nothing."""
    from bnfold.proof.carriers import _apply

    relation = pair.relation(scope, value)
    shape = drawn[value][1].shape
    still = np.zeros(shape)

    def both(now: AnyArray) -> tuple[dict[str, AnyArray], dict[str, AnyArray]]:
        old: AnyArray = now
        if relation is not None:
            if relation.pulled is not None:
                if not np.all(relation.pulled.scale) or relation.pushed is not None:
                    raise Unevaluated("what it reads changed by a map that has no inverse")
                old = (now - _apply(relation.pulled, np.zeros(shape))) / _apply(
                    relation.pulled.with_shift(np.zeros(relation.pulled.size)), np.ones(shape)
                )
            else:
                old = _apply(relation.pushed, now)
        nothing = {each: np.zeros_like(pairs[1]) for each, pairs in drawn.items()}
        return {**nothing, value: old}, {**{names[each]: nothing[each] for each in nothing}, names[value]: now}

    if any(pair.relation(scope, each) for each in drawn if each != value):
        return
    base = run(*both(still))
    _judge(name, *base, unit, 1.0)
    axis = 1 if len(shape) > 2 else len(shape) - 1
    channels = range(shape[axis])
    if len(channels) > IMPULSES:
        channels = generator.choice(shape[axis], IMPULSES, replace=False)  # type: ignore[assignment]
    places = [tuple(0 for _ in shape), tuple(size - 1 for size in shape), tuple(size // 2 for size in shape)]
    if len(shape) > 2:
        places.append(tuple(0 if axis_ == 2 else size // 2 for axis_, size in enumerate(shape)))
    for channel in channels:
        for place in dict.fromkeys((*each[:axis], int(channel), *each[axis + 1 :]) for each in places):
            x = still.copy()
            x[place] = 1.0
            found = run(*both(x))
            size = np.maximum(np.abs(found[0]), np.abs(base[0]))
            with np.errstate(all="ignore"):
                bound = unit * np.abs(found[1] - base[1]) * 1.01 + 1e-13 * (size + base[2]) + _tiny(unit)
                wrong = ~(np.abs((found[0] - base[0]) - (found[1] - base[1])) <= bound)
            if wrong.any():
                at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
                raise Failure(
                    "merges",
                    name,
                    f"channel {int(channel)} of what it reads gives {float((found[1] - base[1])[at])!r}, not "
                    f"{float((found[0] - base[0])[at])!r}",
                )


def _tiny(unit: float) -> float:
    return {2.0**-11: 2.0**-24, 2.0**-8: 2.0**-130, 2.0**-24: 2.0**-149}.get(unit, 0.0)


def _judge(name: str, before: AnyArray, after: AnyArray, bound: AnyArray, unit: float, factor: float) -> None:
    if before.shape != after.shape:
        raise Failure("merges", name, f"its result has shape {after.shape}, not {before.shape}")
    with np.errstate(all="ignore"):
        allowed = 1.01 * unit * bound + 1e-13 * (bound + np.abs(before)) + 64 * _tiny(unit) * before.size
        wrong = ~(np.abs(before - after) <= allowed)
    if wrong.any():
        at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        raise Failure("merges", name, f"it gives {float(after[at])!r}, not {float(before[at])!r}")


def _unit(array: AnyArray) -> float:
    """Half the spacing of a type at 1."""
    import ml_dtypes

    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        return 0.0
    return float(ml_dtypes.finfo(array.dtype).eps) / 2  # type: ignore[no-untyped-call]


def _absolute(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The same operators, adding up instead of cancelling."""
    made = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if copy.op_type == "Sub":
            copy.op_type = "Add"
        elif copy.op_type == "Neg":
            copy.op_type = "Identity"
        made.append(copy)
    return made


def _shape(pair: Pair, scope: Scope, value: str, nodes: list[onnx.NodeProto]) -> tuple[int, ...]:
    """A shape for what a region reads: as small as its windows allow."""
    known = pair.shape(scope, value)
    wide_nodes = [node for node in nodes if value in node.input and node.op_type in ("Conv", "MatMul", "Gemm")]
    channels: int | None = None
    rank = None if known is None else len(known)
    for node in wide_nodes:
        kernel = scope.constant(node.input[1])
        if node.op_type == "Conv" and kernel is not None:
            from bnfold.proof.linear import attribute

            channels, rank = kernel.shape[1] * int(attribute(node, "group", 1)), kernel.ndim
    if rank is None:
        raise Unevaluated(f"the shape of {value!r} does not follow from the model's inputs")
    sizes = [2 if each is None else each for each in (known or (None,) * rank)]
    if channels is not None:
        sizes[1] = channels
    has_window = any(node.op_type in ("Conv", "AveragePool") for node in nodes)
    if has_window and rank > 2:
        reach = 1
        for node in nodes:
            if node.op_type in ("Conv", "AveragePool"):
                kernel = scope.constant(node.input[1]) if node.op_type == "Conv" else None
                reach = max(reach, _reach(node, kernel))
        sizes = [1, sizes[1], *(min(size, reach) if known and known[2 + i] else reach
                                for i, size in enumerate(sizes[2:]))]  # fmt: skip
    elif known is not None and known[0] is None:
        sizes[0] = 2
    return tuple(sizes)


def _reach(node: onnx.NodeProto, kernel: AnyArray | None) -> int:
    from bnfold.proof.linear import attribute

    window = list(kernel.shape[2:]) if kernel is not None else list(attribute(node, "kernel_shape", [1]))
    dilations = list(attribute(node, "dilations", [1] * len(window)))
    strides = list(attribute(node, "strides", [1] * len(window)))
    return max(d * (k - 1) + 1 + 2 * s for k, d, s in zip(window, dilations, strides, strict=True))
