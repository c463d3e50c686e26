"""An ExportedProgram comes back as one: signature, dynamic shapes and constants intact, and it can be saved."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

import bnfold
from bnfold import Fold, Reason, Refusal
from bnfold.testing import assert_equivalent
from tests.toys.branchy_networks import NETWORKS, deploy
from tests.toys.branchy_networks import trained as trained_network
from tests.toys.torch_models import (
    assert_folds,
    assert_same,
    assert_stays,
    drawn,
    exported,
    fuse,
    of_batchnorms,
    run,
    to_onnx_by_export,
    trained,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")  # torch's own

IMAGE = drawn(2, 4, 8, 8)


def operators(program: ExportedProgram) -> list[str]:
    """The aten operators, without overloads."""
    return [node.target._opname for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]


def targets(program: ExportedProgram, kind: InputKind) -> list[str | None]:
    return [spec.target for spec in program.graph_signature.input_specs if spec.kind is kind]


class Net(nn.Module):
    """Convolutions with BatchNorms, a buffer, a constant tensor and two inputs, of which one is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.register_buffer("offset", torch.linspace(0, 1, 6).reshape(6, 1, 1))
        self.table = torch.linspace(1, 2, 6)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        y = F.relu(self.bn1(self.conv1(x))) + self.offset
        z = self.bn2(self.conv2(y))
        value = torch.tanh(z) * self.table.reshape(1, -1, 1, 1)
        return {"value": value if scale is None else value * scale, "mean": y.mean((2, 3))}


def test_signature_and_structure_survive() -> None:
    program = exported(trained(Net()), IMAGE, torch.tensor(2.0, dtype=torch.float64))
    fused = assert_folds(program, IMAGE, torch.tensor(2.0, dtype=torch.float64))
    assert isinstance(fused, ExportedProgram)
    assert fused.graph_signature.user_inputs == program.graph_signature.user_inputs
    assert fused.graph_signature.user_outputs == program.graph_signature.user_outputs
    assert fused.call_spec == program.call_spec
    assert targets(fused, InputKind.BUFFER) == ["offset"]
    assert targets(fused, InputKind.CONSTANT_TENSOR) == targets(program, InputKind.CONSTANT_TENSOR)
    assert set(fused.state_dict) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "offset"}
    assert set(fused.constants) == set(program.constants)
    assert "batch_norm" not in operators(fused)


def test_the_argument_is_untouched_and_in_place_is_not() -> None:
    program = exported(trained(Net()), IMAGE)
    before, text = run(program, IMAGE), str(program.graph)
    bnfold.fuse(program)
    assert str(program.graph) == text
    fused = bnfold.fuse(program, inplace=True)
    assert fused is program
    assert "batch_norm" not in operators(program)
    assert_same(before, run(program, IMAGE))


def test_dynamic_shapes_survive() -> None:
    batch, height = Dim("batch", min=1, max=16), Dim("height", min=4, max=64)
    program = exported(trained(Net()), IMAGE, dynamic_shapes={"x": {0: batch, 2: height}})
    fused = assert_folds(program, IMAGE)
    assert fused.range_constraints == program.range_constraints
    other = drawn(5, 4, 13, 8)
    assert_same(run(program, other), run(fused, other))
    with pytest.raises(Exception, match=r"(?i)guard|expected|constraint"):
        run(fused, drawn(5, 4, 65, 8))


def test_the_result_can_be_saved_loaded_and_lowered() -> None:
    program = exported(trained(Net()), IMAGE)
    fused = assert_folds(program, IMAGE)
    file = io.BytesIO()
    torch.export.save(fused, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert_same(run(program, IMAGE), run(loaded, IMAGE))
    lowered = fused.run_decompositions()
    assert_same(run(program, IMAGE), run(lowered, IMAGE))


def test_decomposed_programs_fold() -> None:
    program = exported(trained(Net()), IMAGE).run_decompositions()
    assert "_native_batch_norm_legit_no_training" in operators(program)
    fused = assert_folds(program, IMAGE)
    assert "_native_batch_norm_legit_no_training" not in operators(fused)


def test_training_programs_stay() -> None:
    model = trained(Net())
    model.bn2.train()
    program = exported(model, IMAGE)
    twin = bnfold.fuse(program, return_outcomes=True)[1]
    folded, kept = of_batchnorms(twin)
    assert isinstance(folded, Fold)
    assert isinstance(kept, Refusal)
    assert kept.reason is Reason.TRAINING_MODE


def test_an_input_whose_name_python_knows_keeps_it() -> None:
    program = exported(trained(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), IMAGE)
    assert program.graph_signature.user_inputs == ("input",)
    assert assert_folds(program, IMAGE).graph_signature.user_inputs == ("input",)


def test_a_parameter_that_is_an_output_as_well_stays_what_it_is() -> None:
    class Tells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.norm(self.conv(x)), self.conv.weight * 2

    fused = assert_folds(exported(trained(Tells()), IMAGE), IMAGE)
    assert len(run(fused, IMAGE)) == 2


def test_a_buffer_that_the_program_changes_is_no_constant() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
            self.register_buffer("factor", torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.factor.add_(1)
            return self.norm(self.conv(x) * self.factor)

    program = exported(trained(Counts()), IMAGE)
    fused = bnfold.fuse(program)
    one, two = copy.deepcopy(program).module(), fused.module()
    for _ in range(3):
        assert_same([one(IMAGE)], [two(IMAGE)])


def test_shared_parameters_are_copied() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(self.conv(x)) * self.two(self.conv(torch.sin(x)))

    fused = assert_folds(exported(trained(Both()), IMAGE), IMAGE)
    weights = [name for name in fused.state_dict if name.endswith("weight") or "weight_folded" in name]
    assert len(weights) == 2


class Branching(nn.Module):
    """A BatchNorm in a branch that the data decide about."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cond(y.sum() > 0, lambda v: self.norm(v), lambda v: v * 2.0, (y,))


def test_batchnorms_in_branches_of_cond_are_named_and_stay() -> None:
    program = exported(trained(Branching()), IMAGE)
    refusal = assert_stays(program, Reason.SCOPE_BOUNDARY, IMAGE)
    assert refusal.scope != "main"


@pytest.mark.parametrize("name", NETWORKS)
def test_branchy_networks_become_their_deploy_form(name: str) -> None:
    model = trained_network(NETWORKS[name]()).double()
    x = drawn(1, 3, 32, 32)
    fused = assert_folds(exported(model, x), x)
    made = [each for each in operators(fused) if each in ("conv2d", "linear")]
    assert len(made) == sum(isinstance(each, nn.Conv2d | nn.Linear) for each in deploy(copy.deepcopy(model)).modules())


def test_preserved_module_calls_keep_their_borders() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.inner(x))

    program = exported(trained(Outer()), IMAGE, preserve_module_call_signature=("inner",))
    _, outcomes = fuse(program, IMAGE)
    assert all(isinstance(each, Refusal) for each in outcomes)


# Fuse and export, or export and fuse


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 1),
        )
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.relu(self.body(x)).mean((2, 3))))


def test_fusing_before_and_after_the_export_are_equivalent() -> None:
    model, x = trained(Classifier()).float(), IMAGE.float()
    original = to_onnx_by_export(model, x)
    before, after = to_onnx_by_export(bnfold.fuse(model, example_inputs=x), x), bnfold.fuse(original)
    for one in (before, after):
        assert not any(node.op_type == "BatchNormalization" for node in one.graph.node)
        assert_equivalent(original, one, outputs_only=True)
    assert_equivalent(before, after, outputs_only=True)
    assert_equivalent(exported(model, x), before)


class Regions(nn.Module):
    """A pair in front of a region and one behind it."""

    def __init__(self, region: Callable[[], Any], *, is_inplace: bool) -> None:
        super().__init__()
        self.region, self.is_inplace = region, is_inplace
        self.first, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.between, self.act = nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True)
        self.last, self.end = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        with self.region():
            if self.is_inplace:
                x = x.mul_(2)
            x = self.act(self.between(x)).sigmoid()
        made: Tensor = self.end(self.last(x.to(torch.float64)))
        return made


REGIONS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("kind", REGIONS)
def test_a_region_is_no_border_for_folds_beside_it(kind: str) -> None:
    program = exported(trained(Regions(REGIONS[kind], is_inplace=False)), IMAGE)
    assert any("wrap_with" in str(node.target) for node in program.graph.nodes)
    assert_folds(program, IMAGE)


@pytest.mark.parametrize("kind", REGIONS)
def test_a_region_that_writes_into_what_it_reads_keeps_it(kind: str) -> None:
    model = trained(Regions(REGIONS[kind], is_inplace=True))
    _, outcomes = fuse(exported(model, IMAGE), IMAGE)
    assert [type(each) for each in of_batchnorms(outcomes)] == [Refusal, Refusal]


class Cached(nn.Module):
    """A bias that is computed once, as timm's LeViT keeps those of its attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.table = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Parameter(torch.randn(1, 3, 3))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.table * 2
        return self.norm(self.conv(x)) + self.cache["bias"]


@pytest.mark.filterwarnings("ignore:A model attribute:UserWarning")  # torch's own, of such a program
@pytest.mark.parametrize("share", [False, True])
def test_a_program_with_a_result_of_autograd_as_a_constant(share: bool) -> None:
    module, x = trained(Cached()), drawn(2, 3, 5, 5)
    expected = module(x).detach()  # with gradients, so that the cache holds what they flow through
    program = exported(module, x)
    held = next(value for value in program.constants.values() if not value.is_leaf)
    fused, outcomes = bnfold.fuse(program, share=share, return_outcomes=True)
    assert [type(outcome) for outcome in outcomes] == [Fold]
    assert_same([expected], [fused.module()(x).detach()])
    assert any(value is held for value in fused.constants.values()) == share
