"""A GraphModule comes back as one, whatever spelling its calls have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, weight_norm

import bnfold
from bnfold import Fold, Reason, Refusal
from tests.toys.branchy_networks import NETWORKS, deploy
from tests.toys.branchy_networks import trained as trained_network
from tests.toys.torch_models import (
    Row,
    assert_folds,
    assert_same,
    assert_stays,
    drawn,
    exported,
    fuse,
    of_batchnorms,
    run,
    sole,
    traced,
    trained,
)

IMAGE = drawn(2, 4, 8, 8)


def operators(graph: fx.Graph) -> list[str]:
    """What its nodes call."""
    return [str(getattr(node.target, "__name__", node.target)) for node in graph.nodes if node.op.startswith("call_")]


class Holder(nn.Module):
    """Parameters without modules, and a function that uses them."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], fan_in: int = 4, out: int = 6) -> None:
        super().__init__()
        self.call = call
        self.kernel = nn.Parameter(drawn(out, fan_in, 3, 3, seed=3))
        self.matrix = nn.Parameter(drawn(out, fan_in, seed=4))
        self.bias = nn.Parameter(drawn(out, seed=5))
        self.gamma, self.beta = nn.Parameter(drawn(out, seed=6)), nn.Parameter(drawn(out, seed=7))
        self.register_buffer("mean", drawn(out, seed=8))
        self.register_buffer("var", drawn(out, seed=9).abs() + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)

    def norm(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.gamma, self.beta)


SPELLINGS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "F.conv2d": (lambda m, x: m.norm(F.conv2d(x, m.kernel, m.bias)), (2, 4, 8, 8)),
    "torch.conv2d with keywords": (
        lambda m, x: m.norm(torch.conv2d(input=x, weight=m.kernel, bias=None, stride=2, padding=1)),
        (2, 4, 8, 8),
    ),
    "torch.batch_norm": (
        lambda m, x: torch.batch_norm(F.conv2d(x, m.kernel), m.gamma, m.beta, m.mean, m.var, False, 0.1, 1e-5, False),
        (2, 4, 8, 8),
    ),
    "batch_norm with keywords in another order": (
        lambda m, x: F.batch_norm(
            F.conv2d(x, m.kernel), eps=1e-3, bias=m.beta, weight=m.gamma, running_var=m.var, running_mean=m.mean
        ),
        (2, 4, 8, 8),
    ),
    "batch_norm without affine": (lambda m, x: F.batch_norm(F.conv2d(x, m.kernel), m.mean, m.var), (2, 4, 8, 8)),
    "conv_transpose2d": (
        lambda m, x: m.norm(F.conv_transpose2d(x, m.kernel.transpose(0, 1), None, 2, 1, 1)),
        (2, 4, 8, 8),
    ),
    "F.linear": (lambda m, x: m.norm(F.linear(x, m.matrix, m.bias)), (3, 4)),
    "x @ w.t() + b": (lambda m, x: m.norm(x @ m.matrix.t() + m.bias), (3, 4)),
    "x.matmul": (lambda m, x: m.norm(x.matmul(m.matrix.T)), (3, 4)),
    "torch.mm": (lambda m, x: m.norm(torch.mm(x, m.matrix.t())), (3, 4)),
    "torch.addmm": (lambda m, x: m.norm(torch.addmm(m.bias, x, m.matrix.t())), (3, 4)),
    "torch.addmm with alpha and beta": (
        lambda m, x: m.norm(torch.addmm(m.bias, x, m.matrix.t(), alpha=0.5, beta=2.0)),
        (3, 4),
    ),
    "w @ x": (lambda m, x: m.norm(m.matrix @ x), (2, 4, 5)),
    "torch.bmm": (lambda m, x: m.norm(torch.bmm(m.matrix.unsqueeze(0), x)), (1, 4, 5)),
    "einsum to channels in front": (lambda m, x: m.norm(torch.einsum("oi,bil->bol", m.matrix, x)), (2, 4, 5)),
    "einsum from channels behind": (lambda m, x: m.norm(torch.einsum("bli,oi->bol", x, m.matrix)), (2, 5, 4)),
    "einsum without an example": (
        lambda m, x: F.batch_norm(torch.einsum("bli,oi->blo", x, m.matrix).permute(0, 2, 1), m.mean, m.var),
        (2, 5, 4),
    ),
    "x.mul and x.add": (lambda m, x: m.norm(F.conv2d(x, m.kernel).mul(2.0).add(m.bias.reshape(6, 1, 1))), (2, 4, 8, 8)),
    "2 * x - b": (lambda m, x: m.norm(m.bias.reshape(1, 6, 1, 1) - 2 * F.conv2d(x, m.kernel)), (2, 4, 8, 8)),
    "in place on a fresh value": (lambda m, x: m.norm(F.conv2d(x, m.kernel).mul_(3.0)), (2, 4, 8, 8)),
    "permute and view": (lambda m, x: m.norm(F.linear(x.permute(0, 2, 3, 1).reshape(-1, 4), m.matrix)), (2, 4, 3, 3)),
    "a weight that is computed from constants": (
        lambda m, x: m.norm(F.conv2d(x, m.kernel / (m.kernel.norm() + 1e-6))),
        (2, 4, 8, 8),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str) -> None:
    call, shape = SPELLINGS[name]
    x = drawn(*shape)
    fused = assert_folds(traced(Holder(call).eval()), x, example_inputs=x)
    assert not any("batch_norm" in each for each in operators(fused.graph))
    fused.graph.lint()


def test_einsum_tells_its_rank() -> None:
    call, shape = SPELLINGS["einsum without an example"]
    assert_folds(traced(Holder(call).eval()), drawn(*shape))


def test_a_graph_module_keeps_names_modules_and_meta() -> None:
    graph = traced(trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())))
    graph.meta["note"] = "kept"
    names = [node.name for node in graph.graph.nodes]
    fused = assert_folds(graph, IMAGE)
    assert isinstance(fused, fx.GraphModule)
    assert fused.meta["note"] == "kept"
    assert [node.name for node in fused.graph.nodes] == [name for name in names if name != "_0"]
    assert [name for name, _ in fused.named_children()] == ["0", "2"]
    assert type(fused.get_submodule("0")) is nn.Conv2d


def test_the_result_can_be_copied_and_traced_again() -> None:
    graph = traced(trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())))
    fused = assert_folds(graph, IMAGE)
    expected = run(graph, IMAGE)
    assert_same(expected, run(copy.deepcopy(fused), IMAGE))
    assert_same(expected, run(fx.symbolic_trace(fused), IMAGE))


# Sharing: parameters are copied where they are written


class Shared(nn.Module):
    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


SHARING: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[bool]]] = {
    "a convolution twice in a row": (lambda m, x: m.norm(m.conv(torch.sin(m.conv(x)))), [True]),
    "a convolution for two BatchNorms": (lambda m, x: m.norm(m.conv(x)) * m.last(m.conv(x)), [True, True]),
    "a BatchNorm behind two convolutions": (lambda m, x: m.norm(m.conv(x)) * m.norm(m.other(x)), [True, True]),
    "the pair twice": (lambda m, x: m.norm(m.conv(torch.sin(m.norm(m.conv(x))))), [True, True]),
    "a convolution whose output is read twice": (lambda m, x: m.norm(m.conv(x)) * m.conv(x), [True]),
    "a value that is read beside": (lambda m, x: (lambda y: m.norm(y) * y)(m.conv(x)), [False]),
    "a value that leaves": (lambda m, x: (lambda y: (m.norm(y), y))(m.conv(x)), [False]),
}


@pytest.mark.parametrize("name", SHARING)
def test_sharing_is_exact_or_refused(name: str) -> None:
    call, folds = SHARING[name]
    _, outcomes = fuse(traced(trained(Shared(call))), IMAGE)
    assert [isinstance(each, Fold) for each in of_batchnorms(outcomes)] == folds


def test_tied_weights_get_their_own_copy() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1)))
    model[3].weight = model[0].weight
    graph = traced(model)
    fused = assert_folds(graph, IMAGE)
    assert torch.equal(fused.get_submodule("3").weight, model[3].weight)


def test_a_parameter_that_two_functions_read_is_copied() -> None:
    holder = Holder(lambda m, x: m.norm(F.conv2d(x, m.kernel)) * F.conv2d(x, m.kernel)).eval()
    fused = assert_folds(traced(holder), IMAGE, example_inputs=IMAGE)
    assert torch.equal(fused.kernel, holder.kernel)


# In place, aliases, buffers that change


class Aliases(Shared):
    """Values that something else sees change."""


ALIASES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a view changes behind it": lambda m, x: (lambda y: (y.view(-1).mul_(2.0), m.norm(y))[1])(m.conv(x)),
    "the value changes behind it": lambda m, x: (lambda y: (m.norm(y), y.add_(1.0))[0])(m.conv(x)),
    "the output changes and the input is read": lambda m, x: (lambda y: m.norm(y).mul_(2.0) + y)(m.conv(x)),
    "a slice is set": lambda m, x: (lambda y: (y.__setitem__((0,), 1.0), m.norm(y))[1])(m.conv(x)),
    "inplace relu behind a shared value": lambda m, x: (lambda y: F.relu(m.norm(y), inplace=True) * y)(m.conv(x)),
    "the input itself": lambda m, x: m.norm(m.conv(x)) + x.add_(1.0),
}


@pytest.mark.parametrize("name", ALIASES)
def test_values_that_change_in_place_are_never_wrong(name: str) -> None:
    graph = traced(trained(Aliases(ALIASES[name])))
    with torch.no_grad():
        expected = graph(IMAGE.clone())
        fused = bnfold.fuse(graph, example_inputs=IMAGE.clone())
        assert_same([expected], [fused(IMAGE.clone())])


class Counting(nn.Module):
    """A buffer that each call changes, and that the weight is multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.factor.add_(1.0)
        return self.norm(self.conv(x) * self.factor)


def test_a_buffer_that_changes_is_no_constant() -> None:
    graph = traced(trained(Counting()))
    fused = bnfold.fuse(graph)
    with torch.no_grad():
        for _ in range(3):
            assert_same([graph(IMAGE)], [fused(IMAGE)])


# Types


def test_a_narrowing_cast_between_stays() -> None:
    model = trained(Row(nn.Conv2d(4, 6, 3), lambda x: x.half().double(), nn.BatchNorm2d(6)))
    assert_stays(traced(model), Reason.OVERFLOW, IMAGE)


def test_a_sum_of_different_types_stays() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.one(x) + self.two(x.float()).double())

    model = trained(Mixed())
    model.two.float()
    _, outcomes = fuse(traced(model), IMAGE, example_inputs=IMAGE)
    assert isinstance(sole(outcomes), Refusal)


def test_a_module_call_as_a_whole_is_not_seen_through() -> None:
    class Whole(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    model = trained(nn.Sequential(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))))
    graph = fx.GraphModule(model, Whole().trace(model))
    refusal = assert_stays(graph, Reason.NOT_LINEAR, IMAGE)
    assert "trace into it" in refusal.detail


class Kept(nn.Module):
    """A Sequential between a BatchNorm and the convolution behind it."""

    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv, self.row = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Sequential(*inside)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(x)
        y = self.norm(h)
        z = self.row(h).mul_(2)
        return self.conv(y), z


@pytest.mark.parametrize("inside", [nn.Identity(), nn.Flatten(), nn.ReLU(inplace=True)], ids=lambda each: repr(each))
def test_a_module_called_as_a_whole_may_give_back_what_it_reads(inside: nn.Module) -> None:
    class Whole(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    model = trained(Kept(inside))
    fuse(fx.GraphModule(model, Whole().trace(model)), IMAGE, example_inputs=IMAGE)


# Parametrisations: materialised where the graph computes the weight


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("normalise", [weight_norm, parametrizations.weight_norm], ids=["old", "new"])
def test_weight_norm_that_the_graph_computes_is_materialised(normalise: Callable[[nn.Module], nn.Module]) -> None:
    model = trained(nn.Sequential(normalise(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)))
    fused = assert_folds(exported(model, IMAGE), IMAGE)
    assert not any("norm" in name for name in operators(fused.graph))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_weight_that_a_hook_notes_is_left_as_it_was() -> None:
    """The sizes of the example come of a run on fake tensors, which the hook would leave on its module."""
    model = trained(nn.Sequential(weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)))
    graph = fx.symbolic_trace(model)
    fused, *_ = fuse(graph, IMAGE, example_inputs=IMAGE)
    for module in (graph.get_submodule("0"), fused.get_submodule("0")):
        assert type(vars(module)["weight"]) is torch.Tensor


# Merging


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(each, nn.Conv2d | nn.Linear) for each in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_branchy_networks_become_their_deploy_form(name: str) -> None:
    model = trained_network(NETWORKS[name]()).double()
    x = drawn(1, 3, 32, 32)
    fused = assert_folds(traced(model), x, example_inputs=x)
    assert convolutions(fused) == convolutions(deploy(copy.deepcopy(model)))


def test_convolutions_that_are_concatenated_become_one_module_of_the_right_size() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.one(x), self.two(x)], 1)

    fused, outcomes = fuse(traced(trained(Pair())), IMAGE, example_inputs=IMAGE)
    assert [type(each) for each in outcomes] == [bnfold.Merge]
    assert (fused.one.out_channels, fused.one.in_channels) == (8, 4)
    assert convolutions(fused) == 1


def test_without_merging_branches_stay() -> None:
    model = trained_network(NETWORKS["RepVGG"]()).double()
    x = drawn(1, 3, 32, 32)
    _, outcomes = fuse(traced(model), x, example_inputs=x, merge=False)
    assert not any(isinstance(each, bnfold.Merge) for each in outcomes)
    assert any(isinstance(each, Refusal) for each in outcomes)


def test_einsums_that_order_other_axes_differently_do_not_merge() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Parameter(drawn(4, 6, seed=1)), nn.Parameter(drawn(4, 6, seed=2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bxyi,io->bxyo", x, self.one) + torch.einsum("bxyi,io->byxo", x, self.two)

    x = drawn(2, 5, 5, 4)
    _, outcomes = fuse(traced(Swapped()), x, example_inputs=x)
    assert outcomes == ()


class HoldsGraph(nn.Module):
    """Calls a `GraphModule`, as a module does that was folded in part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = traced(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
        self.conv, self.norm = nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.inner(x)))


@pytest.mark.parametrize("options", [{}, {"example_inputs": drawn(2, 4, 7, 7)}], ids=["traced", "with inputs"])
def test_a_module_that_holds_a_graph_is_traced_through_it(options: dict[str, Any]) -> None:
    assert_folds(trained(HoldsGraph()), drawn(2, 4, 7, 7), **options)


def test_the_batchnorms_of_a_graph_that_is_called_as_a_whole_stay() -> None:
    class Whole(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, fx.GraphModule) or super().is_leaf_module(m, module_qualified_name)

    module = trained(HoldsGraph())
    _, outcomes = fuse(fx.GraphModule(module, Whole().trace(module)), drawn(2, 4, 7, 7))
    assert all(isinstance(each, Refusal) for each in outcomes)
    assert "inner" in {each.batchnorm for each in of_batchnorms(outcomes)}


class Product(nn.Module):
    """``x @ weight + bias``, with a scale between the two where that is asked for."""

    def __init__(self, *, is_scaled: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(drawn(4, 6, seed=1)), nn.Parameter(drawn(6, seed=2))
        self.is_scaled = is_scaled

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return (y * self.bias if self.is_scaled else y) + self.bias


@pytest.mark.parametrize("make", [traced, lambda module: exported(module, drawn(3, 4))], ids=["graph", "program"])
def test_an_addition_behind_a_product_folds_only_beside_something_else(make: Callable[[nn.Module], Any]) -> None:
    x = drawn(3, 4)
    options = {"example_inputs": x} if make is traced else {}
    assert fuse(make(Product(is_scaled=False).eval()), x, **options)[1] == ()
    fused, outcomes = fuse(make(Product(is_scaled=True).eval()), x, **options)
    assert len(outcomes) == 2
    assert sum(node.op == "call_function" for node in fused.graph.nodes) == 2


def test_hooks_and_attributes_of_a_graph_module_stay() -> None:
    """`copy.deepcopy` of a graph module leaves them out."""
    model = traced(trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))))
    model.note = ["mine"]
    model.register_forward_hook(lambda module, given, made: made * 2)
    model.register_forward_pre_hook(lambda module, given, named: ((given[0] + 1,), named), with_kwargs=True)
    fused = assert_folds(model, IMAGE)
    assert fused.note == ["mine"]
    assert fused.note is not model.note


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")  # torch's own
def test_the_module_of_a_program_goes_on_checking_its_inputs() -> None:
    program = exported(trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), IMAGE)
    fused, _ = fuse(program.module(), IMAGE)
    with pytest.raises(Exception, match=r"(?i)guard|expected|shape"):
        fused(drawn(3, 4, 8, 8))
    with pytest.raises(NotImplementedError):
        fused.train()
