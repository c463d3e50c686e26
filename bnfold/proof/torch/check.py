"""Checks that a torch model is its original, given a certificate that relates their values.

It is the induction of `bnfold.proof.checker`, over the nodes of an fx graph: if the relations of a node's inputs hold,
those of its outputs hold. Torch itself evaluates the nodes, in float64.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from bnfold.errors import InvalidModelError
from bnfold.proof.batchnorm import check_parameters
from bnfold.proof.certificate import Certificate
from bnfold.proof.checker import Proof
from bnfold.proof.failure import ProofError
from bnfold.proof.linear import check_bias, check_kernel, solve_bias
from bnfold.proof.rounding import Worst
from bnfold.proof.torch import merges
from bnfold.proof.torch.calls import SHAPES
from bnfold.proof.torch.carriers import check_carrier, check_vanished
from bnfold.proof.torch.linear import Product, insist_on_axis, read_batchnorm, read_product
from bnfold.proof.torch.lowered import check_addition, find_addition
from bnfold.proof.torch.pair import Pair
from bnfold.proof.torch.quantized import check_scales, is_dequantized
from bnfold.proof.torch.shapes import Shapes
from bnfold.proof.torch.sides import AnyArray, Model, Side, digest, to_numpy
from bnfold.proof.torch.weighted import ADDED, check_added
from bnfold.proof.torch.wiring import (
    SIZES,
    check_models,
    check_node,
    check_output,
    check_rest,
    check_target,
    is_same_module,
)


@dataclass(eq=False)
class _Tally:
    met: Counter[str] = field(default_factory=Counter)
    folds: int = 0
    worst: Worst = field(default_factory=Worst)


def check_program(
    original: Model,
    result: Model,
    certificate: Certificate,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    has_digests: bool = True,
) -> Proof:
    """Whether a certificate proves that a result is its original, both of them programs or graph modules.

    Args:
        original: the original, which is not changed.
        result: the folded model, which is not changed either.
        certificate: how they are related.
        example_inputs: the arguments of a graph module. The proof then holds for inputs of these shapes; without
            them, for all inputs that the model takes.
        has_digests: whether the certificate names its models by digests, which are then compared. Whoever made it for
            these two need not compare.

    Raises:
        InvalidModelError: it is the certificate of other models, or it names what they do not have.
    """
    began = time.perf_counter()
    for model, claimed, which in ((original, certificate.original, "original"), (result, certificate.result, "result")):
        if has_digests and digest(model) != claimed:
            raise InvalidModelError(f"the certificate is of another {which}")
    tally, failures = _Tally(), []
    try:
        side = Side(original)
        pair = Pair(side, Side(result), certificate, Shapes(side, example_inputs))
        pair.insist_on_names()
        check_models(pair)
        _check_nodes(pair, tally)
        check_output(pair)
        check_rest(pair)
        tally.met["wiring"] += 1
    except ProofError as failure:
        failures.append(failure)
    obligations = {kind: tally.met[kind] for kind in ("wiring", "weights", "carriers", "merges")}
    seconds = time.perf_counter() - began
    return Proof(obligations, tally.folds, tally.worst.count, tally.worst.ulps, tuple(failures), seconds)


def _check_nodes(pair: Pair, tally: _Tally) -> None:
    """Check all obligations, node by node."""
    side = pair.original
    roots = merges.roots(pair)
    for node in side.graph.nodes:
        if node not in side.calls or side.pick(node) is not None:
            continue
        if pair.mark(node) is not None:
            pair.changed.add(node)
            merges.insist_on_part(pair, node)
            if node in roots:
                merges.check_merge(pair, node)
                tally.met["merges"] += 1
        elif pair.is_vanished(node):
            pair.changed.add(node)
            tally.folds += 1
            if merges.is_read_outside(pair, node):
                tally.met["weights" if check_vanished(pair, node) else "carriers"] += 1
        elif node in side.constants:
            if node.name in pair.result.nodes:
                check_node(pair, node)
        else:
            _check_node(pair, node, tally)


def _check_node(pair: Pair, node: fx.Node, tally: _Tally) -> None:
    side = pair.original
    read = [pair.relation(source) for source in node.all_input_nodes]
    read += [
        pair.relation_of(key) for source in node.all_input_nodes if side.is_spread(source) for key in side.keys(source)
    ]
    changes = [relation for (scope, key), relation in pair.certificate.relations.items() if _is_of(key, node)]
    if not any(read) and not changes:
        check_node(pair, node)
        return
    call = side.calls[node]
    is_type = call.name == "type_as" and node.all_input_nodes == [call.get("input"), call.get("other")] and not read[0]
    if call.name in SHAPES or is_type:
        check_node(pair, node)
        if changes:
            raise ProofError("wiring", node.name, "a shape cannot change")
        return
    pair.changed.add(node)
    rank = pair.shapes.rank(side.calls[node].get("input"))
    product = read_product(side, node)
    if product is not None:
        tally.worst = tally.worst.joined(_check_product(pair, node, product))
        tally.met["weights"] += 1
    elif (norm := read_batchnorm(side, node, rank)) is not None:
        addition = find_addition(pair, node)
        worst = _check_batchnorm(pair, node, rank) if addition is None else check_addition(pair, node, norm, addition)
        tally.worst = tally.worst.joined(worst)
        tally.met["weights"] += 1
    elif call.name in ADDED:
        check_node(pair, node)
        check_added(pair, node)
        tally.met["carriers"] += 1
    else:
        check_node(pair, node)
        check_carrier(pair, node)
        tally.met["carriers"] += 1


def _is_of(key: str, node: fx.Node) -> bool:
    return key == node.name or key.startswith(f"{node.name}[")


def _check_product(pair: Pair, node: fx.Node, product: Product) -> Worst:
    """Check that a linear operator has become its closed form."""
    name = node.name
    inner, outer = pair.relation(product.data), pair.relation(node)
    pushed, pulled = inner.back if inner else None, outer.forth if outer else None
    if (inner and pushed is None) or (outer and pulled is None):
        raise ProofError("weights", name, "its input or output changed in a way that is not covered")
    core, constant = _core(pair, node, product)
    now = read_product(pair.result, core)
    if now is None:
        raise ProofError("weights", name, "its weight is not constant")
    _check_rest_of_call(pair, node, core, product.rest, now.rest, ("weight", "bias", *SIZES))
    if product.axes != now.axes:
        raise ProofError("wiring", name, "its weight is on another side")
    if product.stored.shape != now.stored.shape:
        raise ProofError("weights", name, f"its weight has shape {now.stored.shape}, not {product.stored.shape}")
    rank = product.rank or pair.shapes.rank(product.data)
    out_rank = None if rank is None else rank
    insist_on_axis(name, pushed, product.axes[0], rank, product.kernel.sizes[1], "reads")
    insist_on_axis(name, pulled, product.axes[1], out_rank, product.kernel.sizes[0], "makes")
    if rank is not None and product.stored.ndim > max(rank, 2) and node.op != "call_module":
        raise ProofError("weights", name, "its weight has more axes than its input")
    if pushed is not None and pushed.has_shift and product.is_padded:
        raise ProofError("weights", name, "a shift went through it, and its outputs near the border do not see it")
    if is_dequantized(side := pair.original, product.weights[0]):
        if pushed is not None or product.kernel.factor != 1:
            raise ProofError("weights", name, "its quantised weight takes no change of its input")
        weights = product.weights[0], now.weights[0]
        worst = check_scales(name, (side, pair.result), weights, product.kernel, pulled)
    else:
        worst = check_kernel(name, product.kernel, now.kernel, pushed, pulled)
    bias = now.bias if constant is None else constant
    if constant is None and now.bias is not None and now.bias_factor != 1:
        raise ProofError("weights", name, "it has a beta")
    if bias is not None:
        before = product.bias.dtype if product.bias is not None else product.stored.dtype
        if bias.dtype not in (product.stored.dtype, before):
            raise ProofError("weights", name, f"its bias is of type {bias.dtype}")
        if bias.size == 1:
            bias = np_broadcast(bias, product.kernel.sizes[0])
    exact, error = solve_bias(product.kernel, product.wide_bias, pushed, pulled)
    if exact.ndim > 1 and bias is not None and bias.shape != exact.shape:
        raise ProofError("weights", name, f"its bias has shape {bias.shape}")
    pair.account_weights(*now.weights)
    return worst.joined(check_bias(name, exact, error, bias))


def np_broadcast(array: AnyArray, size: int) -> AnyArray:
    """One number for all channels, repeated for each."""
    return array.reshape(-1).repeat(size)


def _core(pair: Pair, node: fx.Node, product: Product) -> tuple[fx.Node, AnyArray | None]:
    """The operator in the result, and the constant that an addition behind it adds."""
    name, result = node.name, pair.result
    maker = pair.twin(node)
    pair.account(node, maker)
    if product.takes_bias or result.calls[maker].name != "add" or maker.op == "call_module":
        return maker, None
    places = [source for source in maker.args if isinstance(source, fx.Node) and source not in result.constants]
    constants = [source for source in maker.args if isinstance(source, fx.Node) and source in result.constants]
    if len(places) != 1 or len(constants) != 1 or len(maker.args) != 2 or maker.kwargs or result.calls[maker].writes:
        raise ProofError("wiring", name, "the value added to its result is no bias")
    tensor = result.constant(constants[0])
    assert tensor is not None
    constant, core = to_numpy(name, tensor), places[0]
    long = [axis - constant.ndim for axis, size in enumerate(constant.shape) if size != 1]
    rank = product.rank or pair.shapes.rank(product.data)
    if long not in ([], [product.axes[1]]) or rank is None or constant.ndim > rank:
        raise ProofError("wiring", name, "its bias lies along another axis")
    if core.op not in ("call_function", "call_method") or len(core.users) != 1:
        raise ProofError("wiring", name, "the addition does not add to its result")
    pair.account(node, core)
    pair.account_weights(constants[0])
    return core, constant


def _check_rest_of_call(
    pair: Pair, node: fx.Node, core: fx.Node, before: Any, after: Any, weights: tuple[str, ...]
) -> None:
    """Check that two calls are the same but for their weights."""
    sides = pair.original, pair.result
    if node.op == core.op == "call_module":
        modules = [side.root.get_submodule(str(part.target)) for side, part in zip(sides, (node, core), strict=True)]
        if not is_same_module(modules[0], modules[1], weights):
            raise ProofError("wiring", node.name, "the module that it calls differs")
        pair.account_weights(*modules[1].parameters(), *modules[1].buffers())
    else:
        check_target(pair, node, core)
    names = [side.calls[part].name for side, part in zip(sides, (node, core), strict=True)]
    if (
        names[0] != names[1]
        or before.keys() != after.keys()
        or not all(pair.same(before[key], after[key]) for key in before)
    ):
        raise ProofError("wiring", node.name, f"its arguments differ: {after}, not {before}")


def _check_batchnorm(pair: Pair, node: fx.Node, rank: int | None) -> Worst:
    """Check that a BatchNorm which stays is the map that it should be."""
    core = pair.twin(node)
    pair.account(node, core)
    before, now = read_batchnorm(pair.original, node, rank), read_batchnorm(pair.result, core, rank)
    if before is None or now is None:
        raise ProofError("weights", node.name, "it is no BatchNorm any more")
    _check_rest_of_call(
        pair, node, core, before.rest, now.rest, ("weight", "bias", "running_mean", "running_var", "affine")
    )
    key = pair.original.first(node)
    if any(other != key and pair.relation_of(other) for other in pair.original.keys(node)):
        raise ProofError("weights", node.name, "a further output changed")
    if [parameter.dtype for parameter in before.stored] != [parameter.dtype for parameter in now.stored]:
        raise ProofError("weights", node.name, "its parameters are of other types")
    pair.account_weights(*now.weights)
    affine, size = before.affine
    relations = pair.relation(before.data), pair.relation_of(key)
    return check_parameters(node.name, affine, size, relations, now.stored, now.epsilon)
