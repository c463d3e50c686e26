"""What a trace, an export and an example tell of a module, and what they do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

import bnfold
from bnfold import Fold, Reason, Refusal, UnsupportedModelError
from bnfold.frontends.torch.capture import exporting
from bnfold.frontends.torch.capture.exporting import export
from bnfold.frontends.torch.capture.inputs import read_inputs
from bnfold.frontends.torch.capture.source import Source, is_same, of_export
from bnfold.frontends.torch.change.program import ProgramStore
from tests.toys.torch_models import Row, assert_folds, assert_same, assert_stays, drawn, fuse, norms, run, sole, trained
from tests.toys.torch_networks import IMAGE, net

# Dynamic Python


class Control(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if y.sum() > 0 else -y


def test_data_dependent_control_flow_is_an_error_with_the_way_out() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Control cannot be traced.*control flow.*example_inputs"):
        bnfold.fuse(trained(Control()))
    with pytest.raises(UnsupportedModelError, match="Control cannot be exported"):
        bnfold.fuse(trained(Control()), example_inputs=IMAGE)


class Lengths(nn.Module):
    """Code that depends on a size: a symbolic trace cannot see through it, an export can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if x.shape[1] == 4 else y[:, :3]


def test_what_cannot_be_traced_is_exported_with_example_inputs() -> None:
    model = trained(Lengths())
    fused = assert_folds(model, IMAGE, example_inputs=IMAGE)
    assert type(fused) is Lengths
    assert isinstance(fused.norm, nn.Identity)


@dataclasses.dataclass
class Output:
    """A dataclass that no library knows."""

    value: Tensor
    hidden: Tensor | None = None


class Structures(nn.Module):
    """Dictionaries in, a dataclass out, and arguments of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, batch: dict[str, Tensor], scale: Tensor | None = None) -> dict[str, Tensor]:
        y = self.norm(self.conv(batch["image"]))
        return {"value": y if scale is None else y * scale}


def test_dictionaries_go_in_and_out() -> None:
    model = trained(Structures())
    fused = assert_folds(model, {"image": IMAGE}, example_inputs=({"image": IMAGE},))
    with torch.no_grad():
        assert set(fused({"image": IMAGE})) == {"value"}


def test_code_that_depends_on_none_needs_an_example() -> None:
    with pytest.raises(UnsupportedModelError, match=r"depends on what scale is.*example_inputs"):
        bnfold.fuse(trained(Structures()))


class DataclassOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Output:
        return Output(self.norm(self.conv(x)))


def test_a_dataclass_comes_out() -> None:
    model = trained(DataclassOut())
    with torch.no_grad():
        expected = model(IMAGE).value
        fused = bnfold.fuse(model, example_inputs=IMAGE)
        assert norms(fused) == []
        assert_same([expected], [fused(IMAGE).value])


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, *images: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(image)) for image in images]


def test_any_number_of_arguments() -> None:
    model = trained(Variadic())
    assert_folds(model, IMAGE, example_inputs=(IMAGE,))


# What an example tells


class Cropped(nn.Module):
    """An operator that does not run on symbols, and a reshape that regroups what it is given."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.conv(x), (-1, 0, 0, 0))
        return self.norm(y.reshape(y.shape[0], -1, y.shape[3], self.columns)[:, :6])


def test_a_fold_holds_for_other_sizes_than_those_of_the_example() -> None:
    for columns in (6, 3, 2):
        model = trained(Cropped(columns))
        fused = bnfold.fuse(model, example_inputs=drawn(2, 4, 6, 8))
        for height in (6, 12):
            assert_same(run(model, drawn(2, 4, height, 8)), run(fused, drawn(2, 4, height, 8)))


def test_a_fold_with_an_example_of_equal_sizes_holds_for_others() -> None:
    model = trained(Row(nn.Conv2d(4, 4, 1), lambda x: x.transpose(2, 3), nn.BatchNorm2d(4)))
    fused = assert_folds(model, drawn(4, 4, 4, 4), example_inputs=drawn(4, 4, 4, 4))
    assert_same(run(model, drawn(1, 4, 3, 9)), run(fused, drawn(1, 4, 3, 9)))


def test_a_reshape_that_only_the_sizes_of_the_example_make_plain_stays() -> None:
    model = trained(Row(nn.Conv1d(4, 4, 1), lambda x: x.reshape(-1, 4, 4), nn.BatchNorm1d(4)))
    fused = bnfold.fuse(model, example_inputs=drawn(4, 4, 4))
    for length in (4, 8, 1):
        assert_same(run(model, drawn(4, 4, length)), run(fused, drawn(4, 4, length)))


def test_a_channel_that_the_example_happens_to_have_is_not_taken_for_granted() -> None:
    scale = drawn(1, 4, 1, seed=3)
    model = trained(Row(lambda x: x * scale, nn.Conv1d(4, 4, 1)))
    fused = bnfold.fuse(torch.fx.symbolic_trace(model), example_inputs=drawn(2, 4, 5))
    assert_same(run(model, drawn(2, 1, 5)), run(fused, drawn(2, 1, 5)))


class Inline(nn.Module):
    """A BatchNorm that only other code folds, beside code that computes with sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return y.reshape(y.shape[0], y.shape[2] * 6, -1)


@pytest.mark.parametrize(
    ("model", "prove", "expected"),
    [
        (Lengths(), True, ["dynamic", "dynamic"]),
        (Lengths(), False, ["dynamic", "static"]),
        (Inline(), False, ["dynamic", "dynamic"]),
    ],
)
def test_a_module_is_exported_twice_again_for_its_example_where_that_is_enough(
    model: nn.Module, prove: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exports: list[str] = []
    made = torch.export.export

    def noted(*args: Any, dynamic_shapes: Any, **options: Any) -> Any:
        exports.append("static" if dynamic_shapes is None else "dynamic")
        return made(*args, dynamic_shapes=dynamic_shapes, **options)

    monkeypatch.setattr(torch.export, "export", noted)
    bnfold.fuse(trained(model), example_inputs=IMAGE, prove=prove)
    assert exports == expected


def test_a_size_is_its_number_only_beside_a_static_graph() -> None:
    def source(call: Callable[[Tensor], Tensor], *, is_static: bool) -> Source:
        module, inputs = Row(call), read_inputs((drawn(2, 3, 4),))
        assert inputs is not None
        found = export(module, inputs, is_static=is_static)
        return of_export(found, ProgramStore(found.program), module)

    one = source(lambda x: x.reshape(x.shape[0] * 3, -1)[:4] + 1, is_static=False)
    fixed, cut = lambda x: x.reshape(6, -1)[:4] + 1, lambda x: x.reshape(6, -1)[:, :4][:4] + 1  # all of four columns
    assert is_same(one, source(fixed, is_static=True))
    assert not is_same(one, source(fixed, is_static=False))
    assert is_same(source(cut, is_static=False), source(fixed, is_static=True))
    assert not is_same(source(cut, is_static=False), source(fixed, is_static=False))
    assert not is_same(one, source(lambda x: x.reshape(6, -1)[:3] + 1, is_static=True))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    bnfold.fuse(trained(Cropped(3)), example_inputs=drawn(2, 4, 6, 8))
    assert capfd.readouterr() == ("", "")


def test_the_forward_leaves_no_marks() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.norm(self.conv(x))
            return self.last + torch.ones(6, 1, 1, dtype=x.dtype)

    model = trained(Remembers())
    fused = bnfold.fuse(model)
    assert fused.last is None
    assert set(vars(fused)) == set(vars(model))


class Autocast(nn.Module):
    """A convolution that runs in another type than its weight has, which a trace does not record."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.conv(x)
        return self.norm(y.float())


def test_what_runs_under_autocast_stays() -> None:
    model = trained(Autocast()).float()
    refusal = assert_stays(model, Reason.NOT_LINEAR, IMAGE.float())
    assert "autocast" in refusal.detail
    with torch.autocast("cpu", torch.bfloat16):  # around everything, it is the caller's
        assert isinstance(sole(bnfold.plan(nn.Sequential(model.conv, model.norm))), Fold)


def test_an_export_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    bnfold.fuse(trained(Lengths()), example_inputs=IMAGE[:1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("given", [(IMAGE, IMAGE), {"y": IMAGE}], ids=["too many", "another name"])
def test_example_inputs_that_do_not_fit_are_an_error(given: object) -> None:
    with pytest.raises(UnsupportedModelError, match=r"example_inputs do not fit Net\.forward"):
        bnfold.fuse(net(), example_inputs=given)


# What a trace does not show


class Pair(nn.Module):
    """A convolution and a BatchNorm, called by a function, and what else an example needs."""

    def __init__(self, call: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.call = call
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.extra = nn.Parameter(torch.ones(6, 4, 3, 3))
        self.count = torch.zeros(1)
        self.register_buffer("state", torch.zeros(1))
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def pair(call: Callable[..., Any], **held: Any) -> Any:
    return trained(Pair(call, **held))


def count_up(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.norm(m.conv(x))


def halve(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        for each in m.conv.parameters():
            each.mul_(0.5)
    return m.norm(m.conv(x))


def assign_buffer(m: Any, x: Tensor) -> Tensor:
    m.state = m.state + 1
    return m.norm(m.conv(x))


def assign_data(m: Any, x: Tensor) -> Tensor:
    m.conv.weight.data = m.extra * 2
    return m.norm(m.conv(x))


OUTSIDE: dict[str, Callable[[Any, Tensor], Any]] = {
    "a counter": count_up,
    "a write into parameters": halve,
    "an assigned buffer": assign_buffer,
    "assigned data": assign_data,
    "parameters()": lambda m, x: (m.norm(m.conv(x)), sum(each.pow(2).sum() for each in m.parameters())),
    "named_parameters()": lambda m, x: m.norm(m.conv(x)) * dict(m.named_parameters())["conv.weight"].mean(),
    "_parameters": lambda m, x: m.norm(m.conv(x)) * m.conv._parameters["weight"].mean(),
    "state_dict()": lambda m, x: m.norm(m.conv(x)) * m.state_dict()["conv.weight"].mean(),
    "a vector": lambda m, x: m.norm(m.conv(x)) * nn.utils.parameters_to_vector(m.conv.parameters()).mean(),
    "numbers": lambda m, x: m.norm(m.conv(x)) * next(m.conv.parameters()).flatten().tolist()[0],
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_tensors_reached_past_the_trace_are_an_error_and_the_argument_stays(name: str) -> None:
    model = pair(OUTSIDE[name])
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=r"cannot be traced .*: pass example_inputs"):
        bnfold.fuse(model)
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    assert model.count == 0


def test_what_tells_nothing_of_the_content_of_parameters_folds() -> None:
    assert_folds(pair(lambda m, x: m.norm(m.conv(x.to(next(m.parameters()).dtype)))), IMAGE)


@pytest.mark.parametrize("name", ["parameters()", "_parameters", "state_dict()"])
def test_parameters_read_elsewhere_are_kept_for_that(name: str) -> None:
    assert_folds(pair(OUTSIDE[name]), IMAGE, example_inputs=IMAGE)
    _, outcomes = fuse(pair(OUTSIDE[name]), IMAGE, example_inputs=IMAGE, code="keep")
    assert isinstance(sole(outcomes), Refusal)


def test_an_export_leaves_the_plain_tensors_of_the_argument_alone() -> None:
    model = pair(count_up)
    bnfold.fuse(model, example_inputs=IMAGE)
    assert model.count == 0


class Doubled(nn.Conv2d):
    """A convolution whose weight is a property."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.raw = self._parameters.pop("weight")

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.raw * 2


MADE: dict[str, Callable[[], nn.Module]] = {
    "in the forward": lambda: pair(lambda m, x: m.norm(F.conv2d(x, torch.ones(6, 4, 1, 1, dtype=x.dtype)))),
    "in the forward, of a type": lambda: pair(lambda m, x: m.norm(F.conv2d(x, torch.ones(6, 4, 1, 1).double()))),
    "a plain tensor": lambda: pair(lambda m, x: m.norm(F.conv2d(x, m.plain)), plain=drawn(6, 4, 1, 1)),
    "a property": lambda: pair(lambda m, x: m.norm(m.conv(x)), conv=Doubled(4, 6, 3)),
    "not registered": lambda: pair(lambda m, x: m.norm(m.inner[0](x)), inner=[nn.Conv2d(4, 6, 1).double()]),
}


@pytest.mark.parametrize("name", MADE)
def test_a_weight_that_is_no_parameter_becomes_one(name: str) -> None:
    assert_folds(MADE[name](), IMAGE, example_inputs=IMAGE)
    _, outcomes = fuse(MADE[name](), IMAGE, example_inputs=IMAGE, code="keep")
    assert isinstance(sole(outcomes), Refusal)


@pytest.mark.parametrize("name", ["in the forward", "in the forward, of a type"])
def test_a_program_with_a_weight_made_in_the_forward_folds(name: str) -> None:
    assert_folds(torch.export.export(MADE[name](), (IMAGE,)), IMAGE)


def through_list(m: Any, x: Tensor) -> Tensor:
    if x.shape[0] > 1:
        x = x * 1.0
    for each in m.layers:
        x = each(x)
    return x


def look(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) * (0.5 if isinstance(m.norm, nn.BatchNorm2d) else 1.0)


def look_for_bias(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) * (2.0 if m.conv.bias is not None else 1.0)


def with_references() -> Any:
    model = pair(lambda m, x: m.norm(F.conv2d(x, m.held[0], m.held[1])))
    model.held = [model.conv.weight, model.conv.bias]
    return model


LOOKING: dict[str, Callable[[], Any]] = {
    "a number by a type": lambda: pair(look),
    "a number by a bias": lambda: pair(look_for_bias, conv=nn.Conv2d(4, 6, 3, bias=False)),
    "a list of parameters": with_references,
}


@pytest.mark.parametrize("name", LOOKING)
def test_forward_code_that_looks_at_a_module_or_holds_old_parameters_is_replaced(name: str) -> None:
    assert_folds(LOOKING[name](), IMAGE)
    assert_folds(LOOKING[name](), IMAGE, example_inputs=IMAGE)
    _, outcomes = fuse(LOOKING[name](), IMAGE, code="keep")
    assert isinstance(sole(outcomes), Refusal)


def test_an_output_that_tells_the_type_of_a_module_stays() -> None:
    model = pair(lambda m, x: (m.norm(m.conv(x)), isinstance(m.norm, nn.BatchNorm2d)))
    assert bnfold.fuse(model)(IMAGE)[1] is True


def test_a_batchnorm_in_a_plain_list_folds_in_other_code() -> None:
    model = pair(through_list)
    model.layers = [model.conv, model.norm]
    assert_folds(model, IMAGE, example_inputs=IMAGE)
    _, outcomes = fuse(model, IMAGE, example_inputs=IMAGE, code="keep")
    assert isinstance(sole(outcomes), Refusal)


@pytest.mark.parametrize("default", [None, False, "a", 0, 1.5])
def test_a_flag_that_chooses_the_way_needs_an_example(default: Any) -> None:
    """Folded for its default, the module would be wrong for every other value."""

    class Chooser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, flag: Any = default) -> Tensor:
            y: Tensor = self.conv(x)
            return y if flag in (2, True, "b") else self.bn(y)

    model = Chooser().eval()
    with pytest.raises(UnsupportedModelError, match="flag"):
        bnfold.fuse(model)
    assert bnfold.plan(model, example_inputs=(torch.zeros(1, 3, 8, 8),))


class Scale(nn.Module):
    """Per channel, with an attribute that other code may ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.is_bounded = nn.Parameter(drawn(4, seed=3)), True

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.view(1, -1, 1, 1)


LOOKS_AT_SCALE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "its attribute": lambda s, x: F.relu(s.scale(s.conv(x))) if s.scale.is_bounded else x,
    "its type": lambda s, x: F.relu(s.scale(s.conv(x))) if isinstance(s.scale, Scale) else x,
    "a list that holds it too": lambda s, x: s.held[0](s.conv(x)),
}


@pytest.mark.parametrize("case", ["nothing", *LOOKS_AT_SCALE])
def test_a_module_of_ones_own_keeps_its_class_and_its_attributes(case: str) -> None:

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(4, 4, 3), Scale()
            self.held = [self.scale]

        def forward(self, x: Tensor) -> Tensor:
            if case in LOOKS_AT_SCALE:
                return LOOKS_AT_SCALE[case](self, x)
            y: Tensor = self.scale(self.conv(x))
            return y

    model = trained(Model())
    fused, outcomes = bnfold.fuse(model, example_inputs=(IMAGE,), return_outcomes=True)
    assert outcomes
    assert isinstance(fused.scale, Scale)
    assert fused.scale.is_bounded
    with torch.no_grad():
        assert_same(model(IMAGE), fused(IMAGE))


def test_a_module_with_hooks_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    are_fixed: list[bool] = []
    plain = exporting._export

    def noted(module: nn.Module, inputs: Any, sizes: Any, **options: Any) -> Any:
        are_fixed.append(sizes is None)
        return plain(module, inputs, sizes, **options)

    monkeypatch.setattr(exporting, "_export", noted)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    module[2].register_forward_hook(lambda *_: None)
    fused = bnfold.fuse(module, example_inputs=torch.rand(2, 3, 8, 8), prove=False)
    assert isinstance(fused[1], nn.Identity)
    assert are_fixed.count(False) == 1


def test_a_module_with_hooks_may_pass_a_size_that_nothing_reads() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, height: int) -> Tensor:
            return self.norm(self.conv(x))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x, x.shape[2] // 2)

    module = Outer().eval()
    module.inner.register_forward_hook(lambda *_: None)
    x = torch.rand(2, 3, 8, 8)
    fused = bnfold.fuse(module, example_inputs=x)
    assert isinstance(fused.inner.norm, nn.Identity)
    torch.testing.assert_close(fused(x), module(x))
