"""What is right of a program or a graph module is proved; what is wrong in any way is not."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import bnfold
from bnfold.algebra.affine import Affine
from bnfold.errors import InvalidModelError
from bnfold.frontends.torch import view
from bnfold.frontends.torch.capture.copies import copy_module, copy_program
from bnfold.frontends.torch.operators import table
from bnfold.frontends.torch.operators.calls import Memory
from bnfold.proof.certificate import Certificate, Relation
from bnfold.proof.checker import Proof
from bnfold.proof.torch.calls import FRESH
from bnfold.proof.torch.check import check_program
from bnfold.proof.torch.shapes import Shapes
from bnfold.proof.torch.sides import Side, digest
from tests.toys.torch_models import assert_same, exported, run, traced, trained
from tests.toys.torch_proofs import certify

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")  # torch's own

Model = Any

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


class Network(nn.Module):
    """Upstream, downstream, through carriers and parts, into a BatchNorm that stays, into a matrix, and a merge."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.conv3 = nn.Conv2d(4, 4, 1, groups=4, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv4, self.pool, self.bn4 = nn.Conv2d(4, 6, 2), nn.MaxPool2d(2), nn.BatchNorm2d(6)
        self.bn5, self.bn6 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.matrix, self.bn7 = nn.Parameter(torch.randn(24, 5)), nn.BatchNorm1d(5)
        self.offset = nn.Parameter(torch.linspace(0, 1, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.relu(self.bn1(self.mean(self.conv1(x))))
        g = torch.sigmoid(self.bn2(self.conv2(r) + self.conv3(r)))
        one, two = torch.chunk(self.pool(self.conv4(self.bn3(g))), 2, 1)
        h = torch.sigmoid(self.bn4(torch.cat([one, two], 1)))
        y = torch.tanh(self.bn6(self.bn5(h)))
        return y, torch.tanh(self.bn7(torch.matmul(h.flatten(1), self.matrix))) * torch.sigmoid(self.offset)


IMAGE = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = trained(Network())
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):  # a maximum carries no other sign
            each.weight.data.abs_()
    return model.to(dtype)


FORMS: dict[str, Callable[[nn.Module, Tensor], Model]] = {
    "program": lambda module, x: exported(module, x),
    "decomposed": lambda module, x: exported(module, x).run_decompositions(),
    "graph": lambda module, x: traced(module),
}

Folded = tuple[Model, Model, Certificate, Tensor]


@pytest.fixture(scope="module", params=TYPES, ids=lambda each: str(each).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    kind: torch.dtype = request.param
    return kind


@pytest.fixture(scope="module", params=FORMS)
def folded(request: pytest.FixtureRequest, dtype: torch.dtype) -> Folded:
    x = IMAGE.to(dtype)
    original = FORMS[request.param](network(dtype), x)
    return original, *certify(original, example_inputs=x), x


def proof_of(folded: Folded, result: Model) -> Proof:
    """What the checker says of a result that may have been changed since its certificate was made."""
    original, _, certificate, x = folded
    return check_program(original, result, replace(certificate, result=digest(result)), (x,))


def graph_of(model: Model) -> fx.Graph:
    return (model.graph_module if isinstance(model, ExportedProgram) else model).graph


def duplicate(model: Model) -> Model:
    """A copy with tensors of its own, and the names of its nodes."""
    if not isinstance(model, ExportedProgram):
        return copy.deepcopy(model)
    twin = copy_program(model)
    for home in (twin.state_dict, twin.constants):
        home.update({name: each.detach().clone() for name, each in home.items() if isinstance(each, Tensor)})
    for name, each in model.state_dict.items():
        if isinstance(each, nn.Parameter):
            twin.state_dict[name] = nn.Parameter(twin.state_dict[name], each.requires_grad)
    return twin


def held(model: Model) -> dict[str, Tensor]:
    """What a model holds, by path; writing into it changes the model."""
    return dict(model.state_dict if isinstance(model, ExportedProgram) else model.state_dict())


def fresh(original: Model, result: Model) -> Iterator[str]:
    """The weights that folding made."""
    known = held(original)
    for path, tensor in held(result).items():
        if path not in known or known[path].shape != tensor.shape or not torch.equal(known[path], tensor):
            yield path


def put(model: Model, path: str, change: Callable[[Tensor], Tensor]) -> None:
    tensor = held(model)[path]
    with torch.no_grad():
        tensor.copy_(change(tensor.clone()))


def call(model: Model, *names: str) -> fx.Node:
    """The first node that calls an operator or a module of one of the names."""
    root = model.graph_module if isinstance(model, ExportedProgram) else model
    for node in graph_of(model).nodes:
        title = str(getattr(node.target, "__name__", node.target))
        if node.op == "call_module":
            title = type(root.get_submodule(node.target)).__name__
        if node.op.startswith("call") and title.partition(".")[0] in names:
            return node
    raise AssertionError(names)


def recompile(model: Model) -> None:
    (model.graph_module if isinstance(model, ExportedProgram) else model).recompile()


def test_a_network_in_every_type_is_proved(folded: Folded, dtype: torch.dtype) -> None:
    for result in (folded[1], duplicate(folded[1])):
        proof = proof_of(folded, result)
        assert proof.failures == ()
        assert proof.folds >= 5
        assert min(proof.obligations.values()) >= 1
        assert proof.worst_ulp <= (2 if dtype is torch.float64 else 0.5 + 1e-6)


# ----------------------------------------------------------------------------------------------------------- mutations

CONVOLUTIONS = ("conv2d", "convolution", "Conv2d")


def shaped(original: Model, result: Model, *shape: int) -> str:
    return next(path for path in fresh(original, result) if tuple(held(result)[path].shape) == shape)


def swapped_channels(result: Model, original: Model) -> None:
    put(result, shaped(original, result, 4, 3, 3, 3), lambda kernel: kernel[[1, 0, 2, 3]])


def without_eps(result: Model, original: Model) -> None:
    var = held(original)["bn1.running_var"].double()
    factor = torch.sqrt((var + 1e-2) / var).reshape(-1, 1, 1, 1)
    put(result, shaped(original, result, 4, 3, 3, 3), lambda kernel: (kernel.double() * factor).to(kernel.dtype))


def merge_tap(result: Model, original: Model) -> None:
    def change(kernel: Tensor) -> Tensor:
        kernel[1, 0, 1, 1] += 0.125
        return kernel

    put(result, shaped(original, result, 4, 1, 3, 3), change)


def lost_node(result: Model, original: Model) -> None:
    relu = call(result, "relu", "ReLU")
    relu.replace_all_uses_with(relu.all_input_nodes[0])
    graph_of(result).erase_node(relu)


def other_operator(result: Model, original: Model) -> None:
    relu = call(result, "relu")
    relu.target = torch.ops.aten.sigmoid.default if isinstance(relu.target, torch._ops.OpOverload) else torch.sigmoid


def other_window(result: Model, original: Model) -> None:
    node = call(result, "max_pool2d", "max_pool2d_with_indices", "MaxPool2d")
    if node.op == "call_module":
        result.get_submodule(node.target).kernel_size = (1, 4)
    else:
        node.update_arg(1, [1, 4])


def other_border(result: Model, original: Model) -> None:
    node = call(result, *CONVOLUTIONS)
    if node.op == "call_module":
        result.get_submodule(node.target).padding = (1, 0)
    else:
        node.update_arg(4, [1, 0])


def other_stride(result: Model, original: Model) -> None:
    node = call(result, *CONVOLUTIONS)
    if node.op == "call_module":
        result.get_submodule(node.target).stride = (1, 1)
    else:
        node.update_arg(3, [1, 1])


def other_group(result: Model, original: Model) -> None:
    for node in graph_of(result).nodes:
        if node.op == "call_module" and getattr(result.get_submodule(node.target), "groups", 1) == 4:
            result.get_submodule(node.target).groups = 2
            return
        if node.op == "call_function" and len(node.args) > 6 and node.args[-1] == 4:
            node.update_arg(len(node.args) - 1, 2)
            return
    raise AssertionError


def swapped_edge(result: Model, original: Model) -> None:
    tanh = call(result, "tanh")
    tanh.replace_input_with(tanh.all_input_nodes[0], [n for n in graph_of(result).nodes if "sigmoid" in n.name][1])


def swapped_operands(result: Model, original: Model) -> None:
    cat = call(result, "cat")
    cat.update_arg(0, list(reversed(cat.args[0])))  # type: ignore[arg-type]


def other_part(result: Model, original: Model) -> None:
    picks = [node for node in graph_of(result).nodes if node.target is operator.getitem]
    pick = next(node for node in picks if node.args[1] == 1)
    pick.update_arg(1, 0)


def swapped_outputs(result: Model, original: Model) -> None:
    end = next(node for node in graph_of(result).nodes if node.op == "output")
    end.args = (tuple(reversed(end.args[0])),)


def renamed_input(result: Model, original: Model) -> None:
    node = next(n for n in graph_of(result).nodes if n.op == "placeholder" and n.name == "x")
    node.target = "renamed"
    node._rename("renamed")
    if isinstance(result, ExportedProgram):
        for spec in result.graph_signature.input_specs:
            if spec.arg.name == "x":
                spec.arg.name = "renamed"


def added_node(result: Model, original: Model) -> None:
    tanh = call(result, "tanh")
    with graph_of(result).inserting_after(tanh):
        fresh = graph_of(result).call_function(tanh.target, (tanh,))
    tanh.replace_all_uses_with(fresh, delete_user_cb=lambda user: user is not fresh)


def added_dead_node(result: Model, original: Model) -> None:
    tanh = call(result, "tanh")
    with graph_of(result).inserting_after(tanh):
        graph_of(result).call_function(tanh.target, (tanh,))


def another_constant(result: Model, original: Model) -> None:
    put(result, "offset", lambda offset: offset + 1)


def another_tensor(result: Model, original: Model) -> None:
    if isinstance(result, ExportedProgram):
        result.state_dict["unheard.of"] = torch.zeros(3)
    else:
        result.register_buffer("unheard_of", torch.zeros(3))


def stale_weight(result: Model, original: Model) -> None:
    path = shaped(original, result, 4, 3, 3, 3)
    put(result, path, lambda kernel: held(original)["conv1.weight"])


def lost_buffer(result: Model, original: Model) -> None:
    if isinstance(result, ExportedProgram):
        del result.state_dict["offset"]
    else:
        del result.offset


def other_type(result: Model, original: Model) -> None:
    path = shaped(original, result, 4, 3, 3, 3)
    wide = torch.float64 if held(result)[path].dtype is not torch.float64 else torch.float32
    if isinstance(result, ExportedProgram):
        result.state_dict[path] = nn.Parameter(result.state_dict[path].detach().to(wide))
    else:
        owner, _, name = path.rpartition(".")
        setattr(result.get_submodule(owner), name, nn.Parameter(held(result)[path].to(wide)))


def wider_epsilon(result: Model, original: Model) -> None:
    node = call(result, "batch_norm", "_native_batch_norm_legit_no_training", "BatchNorm2d")
    if node.op == "call_module":
        result.get_submodule(node.target).eps = 0.5
    else:
        node.update_arg(6 if len(node.args) == 7 else 7, 0.5)


def bias_along_rows(result: Model, original: Model) -> None:
    add = [node for node in graph_of(result).nodes if "add" in str(getattr(node.target, "__name__", node.target))][-1]
    add.replace_input_with(add.all_input_nodes[1], add.all_input_nodes[0])


def written_into(result: Model, original: Model) -> None:
    """A sigmoid that two read becomes one in place."""
    node = [each for each in graph_of(result).nodes if "sigmoid" in each.name][1]
    is_overload = isinstance(node.target, torch._ops.OpOverload)
    node.target = torch.ops.aten.sigmoid_.default if is_overload else torch.sigmoid_


def code_of_another_graph(result: Model, original: Model) -> None:
    root = result.graph_module if isinstance(result, ExportedProgram) else result
    right = copy.deepcopy(root.graph)
    lost_node(result, original)
    root.recompile()
    wrong = root._code
    root.graph = right
    root._code = wrong


def other_signature(result: Model, original: Model) -> None:
    if isinstance(result, ExportedProgram):
        specs = result.graph_signature.output_specs
        specs[0].arg, specs[1].arg = specs[1].arg, specs[0].arg
    else:
        result.train()


def hooked(result: Model, original: Model) -> None:
    if isinstance(result, ExportedProgram):
        result.graph_signature.input_specs[0].target = "another.path"
    else:
        result.get_submodule("pool").register_forward_hook(lambda module, given, made: made * 2)


MUTATIONS: list[Callable[[Model, Model], None]] = [
    swapped_channels, without_eps, merge_tap, lost_node, other_operator, other_window, other_border, other_stride,
    other_group, swapped_edge, swapped_operands, other_part, swapped_outputs, renamed_input, added_node,
    added_dead_node, another_constant, another_tensor, stale_weight, lost_buffer, other_type, wider_epsilon,
    bias_along_rows, written_into, other_signature, hooked,
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.__name__)
def test_a_wrong_result_is_not_proved(folded: Folded, mutation: Callable[[Model, Model], None]) -> None:
    original, result, _, _ = folded
    wrong = duplicate(result)
    mutation(wrong, original)
    recompile(wrong)
    assert digest(wrong) != digest(result) or mutation is hooked
    assert not proof_of(folded, wrong).is_proved


def test_code_that_is_not_that_of_its_graph_is_not_proved(folded: Folded) -> None:
    wrong = duplicate(folded[1])
    code_of_another_graph(wrong, folded[0])
    assert not proof_of(folded, wrong).is_proved


def next_number(tensor: Tensor, index: int) -> Tensor:
    """With one number replaced by its neighbour."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    changed = tensor.contiguous().reshape(-1).clone()
    changed.view(kind)[index] += 1
    return changed.reshape(tensor.shape)


def test_a_weight_that_is_one_ulp_off_is_not_proved(folded: Folded, dtype: torch.dtype) -> None:
    """But for the kernel and bias of the merge, which have a bound and no closed form; and biases in float64."""
    original, result, _, _ = folded
    missed = []
    merged = shaped(original, result, 4, 1, 3, 3).removesuffix("weight")
    for path in fresh(original, result):
        count = held(result)[path].numel()
        is_exempt = path.startswith(merged) or (dtype is torch.float64 and held(result)[path].dim() == 1)
        for index in {0, count // 2, count - 1}:
            wrong = duplicate(result)
            put(wrong, path, lambda tensor, index=index: next_number(tensor, index))  # type: ignore[misc]
            if proof_of(folded, wrong).is_proved and not is_exempt:
                missed.append((path, index))
    assert missed == []


# -------------------------------------------------------------------------------------------------------- certificates


def test_a_certificate_of_another_model_is_refused(folded: Folded) -> None:
    original, result, certificate, x = folded
    with pytest.raises(InvalidModelError, match="another original"):
        check_program(result, original, certificate, (x,))


def test_a_certificate_that_lies_proves_nothing(folded: Folded) -> None:
    original, result, certificate, x = folded
    inside = {key for key in certificate.merged if key[1] != "add"}  # whose values nothing outside reads
    for key, relation in certificate.relations.items():
        if key in inside:
            continue
        affine = relation.pulled or relation.pushed
        assert affine is not None
        twice = Affine(affine.scale * 1.5, affine.shift, affine.axis)
        for lie in (Relation(twice, None), Relation(None, twice)):
            wrong = replace(certificate, relations={**certificate.relations, key: lie})
            assert not check_program(original, result, wrong, (x,)).is_proved
        without = {name: each for name, each in certificate.relations.items() if name != key}
        assert not check_program(original, result, replace(certificate, relations=without), (x,)).is_proved
    nothing = Certificate(certificate.original, certificate.result, {}, {}, frozenset(), {})
    assert not check_program(original, result, nothing, (x,)).is_proved


def test_names_that_are_not_there_are_refused(folded: Folded) -> None:
    original, result, certificate, x = folded
    relation = Relation(Affine(np.ones(4), np.ones(4), 1), None)
    for wrong in (
        replace(certificate, relations={("main", "unheard_of"): relation}),
        replace(certificate, vanished=frozenset({("main", "unheard_of")})),
        replace(certificate, merged={("function", "conv1"): "conv1"}),
        replace(certificate, names={("main", "unheard_of[0]"): "x"}),
    ):
        with pytest.raises(InvalidModelError, match="does not have"):
            check_program(original, result, wrong, (x,))


# --------------------------------------------------------------------------------------------------------------- holes


def claim(original: Model, result: Model, **parts: Any) -> bool:
    """Whether a result is proved by what somebody claims of it, for images of four channels."""
    nothing: dict[str, Any] = {"names": {}, "relations": {}, "vanished": frozenset(), "merged": {}}
    claimed = Certificate(digest(original), digest(result), **{**nothing, **parts})
    return check_program(original, result, claimed, (torch.randn(2, 4, 6, 6, dtype=torch.float64),)).is_proved


class Code(nn.Module):
    """A function as a module, with a convolution and a BatchNorm whose map is the identity."""

    def __init__(self, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.call = call
        self.conv, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, eps=0.0)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def without(model: fx.GraphModule, name: str) -> fx.GraphModule:
    """A copy in which what a node reads stands for it."""
    twin = copy.deepcopy(model)
    node = next(each for each in twin.graph.nodes if each.name == name)
    if node.users:
        node.replace_all_uses_with(node.all_input_nodes[0])
    twin.graph.erase_node(node)
    twin.recompile()
    return twin


def graph_of_code(call: Callable[[Any, Tensor], Any], *, train: bool = False) -> fx.GraphModule:
    return traced(Code(call).double().train(train))


def renames(original: str, result: str) -> dict[tuple[str, str], str]:
    return {("main", original): result}


def test_an_identity_that_goes_is_proved() -> None:
    original = graph_of_code(lambda m, x: m.norm(m.conv(x)))
    gone = {"names": renames("norm", "conv"), "vanished": frozenset({("main", "norm")})}
    assert claim(original, without(original, "norm"), **gone)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: (y := m.conv(x)) + m.norm(y).relu_(),
        lambda m, x: m.norm(y := m.conv(x)).flatten(1).relu_() + y.flatten(1),
        lambda m, x: F.relu(z := m.norm(y := m.conv(x)), inplace=True) + y + z,
        lambda m, x: m.norm(x).add_(1),
        lambda m, x: m.norm(y := m.conv(x)).copy_(x) + y,
    ],
)
def test_what_was_a_copy_that_something_writes_into_is_not_taken_for_what_it_was_copied_from(call: Any) -> None:
    original = graph_of_code(call)
    source = next(node for node in original.graph.nodes if node.name == "norm").all_input_nodes[0].name
    gone = {"names": renames("norm", source), "vanished": frozenset({("main", "norm")})}
    assert not claim(original, without(original, "norm"), **gone)


RELEASED: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[Any, Tensor], Any], bool]] = {
    "by a flag": (lambda m, x: F.relu(m.norm(x), inplace=True), lambda m, x: F.relu(m.norm(x)), True),
    "by a name": (lambda m, x: torch.relu_(m.norm(x)), lambda m, x: torch.relu(m.norm(x)), True),
    "by a method": (lambda m, x: m.norm(x).relu_(), lambda m, x: m.norm(x).relu(), True),
    "with a slope": (
        lambda m, x: F.leaky_relu(m.norm(x), 0.25, True),
        lambda m, x: F.leaky_relu(m.norm(x), 0.25, False),
        True,
    ),
    "with another slope": (
        lambda m, x: F.leaky_relu(m.norm(x), 0.25, True),
        lambda m, x: F.leaky_relu(m.norm(x), 0.5, False),
        False,
    ),
    "another activation": (lambda m, x: m.norm(x).relu_(), lambda m, x: m.norm(x).silu(), False),
    "no activation": (lambda m, x: m.norm(x).mul_(2), lambda m, x: m.norm(x).mul(2), False),
    "what is read again": (
        lambda m, x: (y := m.norm(x)).relu_() + y,
        lambda m, x: (y := m.norm(x)).relu() + y,
        False,
    ),
    "what is read again by a view": (
        lambda m, x: (v := (y := m.norm(x)).view(-1), y.relu_().view(-1) + v)[1],
        lambda m, x: (v := (y := m.norm(x)).view(-1), y.relu().view(-1) + v)[1],
        False,
    ),
    "the input": (lambda m, x: x.relu_(), lambda m, x: x.relu(), False),
}
"""What writes, what makes it afresh, and whether these are the same."""


@pytest.mark.parametrize("name", RELEASED)
def test_what_writes_no_more_is_the_same_where_nothing_else_sees_it(name: str) -> None:
    call, other, is_same = RELEASED[name]
    original, result = graph_of_code(call), graph_of_code(other)
    result.load_state_dict(original.state_dict())
    names = {
        ("main", one.name): two.name for one, two in zip(original.graph.nodes, result.graph.nodes, strict=True)
        if one.name != two.name
    }  # fmt: skip
    assert bool(claim(original, result, names=names)) == is_same


def test_what_is_copied_into_other_memory_shares_none_with_it() -> None:
    original = graph_of_code(lambda m, x: torch.zeros_like(x).copy_(m.norm(y := m.conv(x))).relu_() + y)
    gone = {"names": renames("norm", "conv"), "vanished": frozenset({("main", "norm")})}
    assert claim(original, without(original, "norm"), **gone)


@pytest.mark.parametrize("normalise", [F.batch_norm, F.instance_norm])
def test_a_weight_normalised_by_its_own_statistics_is_constant_unless_they_are_kept(normalise: Any) -> None:
    flag = {"training" if normalise is F.batch_norm else "use_input_stats": True}
    free = Side(graph_of_code(lambda m, x: F.conv2d(x, normalise(m.conv.weight, None, None, **flag))))
    kept = Side(
        graph_of_code(
            lambda m, x: F.conv2d(x, normalise(m.conv.weight, m.norm.running_mean, m.norm.running_var, **flag))
        )
    )
    assert [side.nodes[normalise.__name__] in side.constants for side in (free, kept)] == [True, False]


def test_a_dropout_that_hardly_drops_does_not_vanish() -> None:
    original = graph_of_code(lambda m, x: F.dropout(m.conv(x), 1e-15))
    gone = {"names": renames("dropout", "conv"), "vanished": frozenset({("main", "dropout")})}
    assert not claim(original, without(original, "dropout"), **gone)


def test_a_batchnorm_in_training_mode_does_not_vanish() -> None:
    original = graph_of_code(lambda m, x: m.norm(m.conv(x)), train=True)
    gone = {"names": renames("norm", "conv"), "vanished": frozenset({("main", "norm")})}
    assert not claim(original, without(original, "norm"), **gone)


def test_what_nobody_reads_but_draws_random_numbers_does_not_merge_away() -> None:
    original = graph_of_code(lambda m, x: (torch.rand_like(x), torch.rand_like(x))[1])
    assert not claim(original, without(original, "rand_like"), merged=renames("rand_like", "rand_like"))


def test_parts_of_a_tuple_are_not_swapped_by_their_names() -> None:
    original = graph_of_code(lambda m, x: torch.cat([part.relu() for part in (x.chunk(2, 1)[0], x.chunk(2, 1)[1])], 1))
    swapped = copy.deepcopy(original)
    for node in swapped.graph.nodes:
        if node.target is operator.getitem:
            node.update_arg(1, 1 - node.args[1])
    swapped.recompile()
    names = {
        ("main", f"{chunk}[{index}]"): f"{chunk}[{1 - index}]" for chunk in ("chunk", "chunk_1") for index in (0, 1)
    }
    assert not claim(original, swapped)
    with pytest.raises(InvalidModelError, match="no value"):
        claim(original, swapped, names=renames("chunk", "x"))
    assert not claim(
        original, swapped, names={key: name for key, name in names.items() if key[1].endswith(("k[0]", "1[1]"))}
    )


def test_another_structure_of_the_outputs_is_not_proved() -> None:
    original = exported(Code(lambda m, x: m.norm(m.conv(x))).double().eval(), torch.randn(2, 4, 6, 6).double()).module()
    other = copy_module(original)
    assert claim(original, other)
    other._out_spec = other.graph._codegen.pytree_info.in_spec
    assert not claim(original, other)
    assert not claim(original, copy.deepcopy(original))  # which has lost its hooks


DOUBLED = Affine(np.full(4, 2.0), np.zeros(4), 1)


def doubled(call: Callable[[Any, Tensor], Tensor]) -> bool:
    """Whether it is proved that a BatchNorm, which doubles, goes into the convolution that comes first."""
    original = graph_of_code(lambda m, x: m.norm(call(m, m.conv(x))))
    original.norm.weight.data.fill_(2)
    result = without(original, "norm")
    names = [node.name for node in original.graph.nodes if node.op.startswith("call")][:-1]
    result.conv.weight = nn.Parameter(original.conv.weight.detach() * 2)
    changed = [name for name in names if "getattr" not in name and "size" not in name]
    return claim(
        original,
        result,
        names=renames("norm", names[-1]),
        vanished=frozenset({("main", "norm")}),
        relations={("main", name): Relation(DOUBLED, None) for name in changed},
    )


def test_a_scale_goes_through_what_is_homogeneous() -> None:
    assert doubled(lambda m, y: F.max_pool2d(torch.relu(y), 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda m, y: torch.sigmoid(y),
        lambda m, y: torch.clamp_min(y, -1e9),
        lambda m, y: F.hardtanh(y, -1e9, 1e9),
        lambda m, y: F.threshold(y, -1e9, 0.0),
        lambda m, y: F.dropout(y, 1e-15),
        lambda m, y: y + 1e-3,
        lambda m, y: y * y,
    ],
)
def test_no_change_goes_through_what_is_not_homogeneous(call: Callable[[Any, Tensor], Tensor]) -> None:
    """Data of the size that is drawn may not meet what such an operator does."""
    assert not doubled(call)


@pytest.mark.parametrize(("padding", "is_right"), [(0, True), (1, False)])
def test_a_shift_does_not_go_through_padding_with_zeros(padding: int, is_right: bool) -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4, eps=0.0), nn.Conv2d(4, 4, 3, padding=padding)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(torch.sigmoid(x)))

    module = Behind().double().eval()
    module.norm.bias.data.fill_(0.5)
    original = traced(module)
    result = without(original, "norm")
    shift = module.conv.weight.detach().sum((1, 2, 3)) * 0.5
    result.conv.bias = nn.Parameter(module.conv.bias.detach() + shift)
    relation = Relation(None, Affine(np.ones(4), np.full(4, 0.5), 1))
    parts = {
        "names": renames("norm", "sigmoid"),
        "vanished": frozenset({("main", "norm")}),
        "relations": {("main", "norm"): relation},
    }
    assert claim(original, result, **parts) is is_right


def test_a_program_that_was_saved_is_proved_by_the_same_certificate(tmp_path: Path) -> None:
    original = exported(network(torch.float32), IMAGE)
    result, certificate = certify(original)
    saved = []
    for name, model in (("original", original), ("result", result)):
        torch.export.save(model, tmp_path / f"{name}.pt2")
        saved.append(torch.export.load(tmp_path / f"{name}.pt2"))
    assert check_program(saved[0], saved[1], certificate).failures == ()


def test_a_program_with_sizes_that_vary_is_proved() -> None:
    sizes = {"x": {0: torch.export.Dim("batch", min=2, max=8), 2: torch.export.Dim("height", min=10, max=64)}}

    class Varying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = F.max_pool2d(self.conv(x), 2)
            y = y.view(x.shape[0], 2, 2, y.shape[2], -1).flatten(1, 2)
            return self.last(self.norm(y).mean((2, 3)).view(x.shape[0], -1))

    original = exported(trained(Varying()), IMAGE.double(), dynamic_shapes=sizes)
    result, certificate = certify(original)
    proof = check_program(original, result, certificate)
    assert proof.failures == ()
    assert proof.folds == 1
    assert proof.obligations["carriers"] >= 2


class Counting(nn.Module):
    """Changes a buffer of its own with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.ones(4, 4, 1, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.state.mul_(2)
        return x


def test_a_weight_that_a_module_changes_is_no_constant() -> None:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, Counting) or super().is_leaf_module(module, name)

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count, self.norm = Counting(), nn.BatchNorm2d(4, eps=0.0).double()
            self.kernel = self.count.state

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.count(x * 0.5)
            return self.norm(F.conv2d(x, self.kernel)), y

    module = Uses().eval()
    module.norm.weight.data.fill_(2)
    graph = Tracer(param_shapes_constant=False).trace(module)
    original = fx.GraphModule(module, graph)
    result = without(original, "norm")
    result.kernel = nn.Parameter(module.kernel * 2)
    convolution = next(node for node in result.graph.nodes if node.name == "conv2d")
    with result.graph.inserting_before(convolution):
        convolution.replace_input_with(convolution.args[1], result.graph.get_attr("kernel"))
    result.recompile()
    parts = {
        "names": renames("norm", "conv2d"),
        "vanished": frozenset({("main", "norm")}),
        "relations": {("main", "conv2d"): Relation(DOUBLED, None)},
    }
    assert not claim(original, result, **parts)
    assert bool((original.count.state == 1).all()), "the check ran the module itself"


def test_a_part_that_has_fewer_axes_is_not_taken_for_one_that_has_as_many() -> None:
    """Nothing is known of the shape of an entry of `unbind` where the inputs are not known."""
    original = graph_of_code(lambda m, x: F.linear(m.norm(x).unbind(1)[0], m.conv.weight[:, :, 0, 0]).unsqueeze(1))
    ranks = Shapes(Side(original))
    nodes = {node.name: node for node in original.graph.nodes}
    assert ranks.rank(nodes["norm"]) == 4
    assert ranks.rank(nodes["getitem"]) is None


def test_what_makes_fresh_memory_is_the_same_to_those_who_fold_and_who_check() -> None:
    """Two lists, made apart; that of the front end is held against real storages."""
    declared = {operator.name: operator.memory for operator in table.OPERATORS}
    known = FRESH & declared.keys()
    assert len(known) > 60
    assert {name for name in known if declared[name] is not Memory.FRESH} == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [3, 5])
def test_a_chain_of_batchnorms_is_no_false_alarm(count: int, dtype: torch.dtype) -> None:
    """Shifts that cancel on the way are as exact as any others, in whatever order the maps were composed."""
    generator = torch.Generator().manual_seed(count)
    for attempt in range(8):
        chain = nn.Sequential(nn.ReLU(), *(nn.BatchNorm2d(256) for _ in range(count))).eval()
        for index, norm in enumerate(chain[1:]):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
                tensor.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            norm.weight.data *= 0.01 if index % 2 else 1.0
        original = exported(chain.to(dtype), torch.randn(2, 256, 2, 2, dtype=dtype))
        result, certificate = certify(original)
        assert sum("batch_norm" in str(node.target) for node in result.graph.nodes) == 1
        assert check_program(original, result, certificate).failures == (), attempt


class Shaped(nn.Module):
    """A BatchNorm that folds through a reshape to the shape of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.matrix = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.matrix(torch.sigmoid(self.norm(y.reshape(y.shape))))


def test_a_shape_that_code_reads_is_one_argument_and_no_pair_of_values() -> None:
    original, inputs = traced(trained(Shaped())), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    result, certificate = certify(original, example_inputs=inputs)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.modules())
    assert check_program(original, result, certificate, (inputs,)).failures == ()


class Added(nn.Module):
    """A scale in front of an addition by index to what was zeros."""

    def __init__(self, *, is_written: bool) -> None:
        super().__init__()
        self.norm, self.matrix, self.is_written = nn.BatchNorm1d(4), nn.Linear(4, 3), is_written

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(3, 4, dtype=x.dtype)
        if self.is_written:
            total.add_(1.0)
        total = total.index_add(0, torch.arange(4) % 3, self.norm(x))
        return self.matrix(torch.relu(total))


@pytest.mark.parametrize("is_written", [False, True])
def test_zeros_that_something_writes_into_are_none(is_written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A front end that took no notice of the writing would fold it, and must not be believed."""
    monkeypatch.setattr(view, "tangled", lambda *arguments: set())
    module = trained(Added(is_written=is_written))
    with torch.no_grad():
        module.norm.weight.abs_()
        module.norm.bias.zero_()
        module.norm.running_mean.zero_()
    inputs = torch.randn(4, 4, dtype=torch.float64)
    original = traced(module)
    result, certificate = certify(original, example_inputs=inputs)
    assert not any(isinstance(each, nn.BatchNorm1d) for each in result.modules())
    assert bool(check_program(original, result, certificate, (inputs,)).failures) == is_written


def test_convolutions_that_merge_need_no_known_rank() -> None:
    """A hook keeps the only operator that tells the rank from telling it."""
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)))
    model[2].register_forward_hook(lambda module, given, made: None)
    fused, outcomes = bnfold.fuse(fx.symbolic_trace(model), return_outcomes=True)
    assert any(isinstance(outcome, bnfold.Merge) for outcome in outcomes)
    assert_same(run(model, IMAGE.double()), run(fused, IMAGE.double()))
