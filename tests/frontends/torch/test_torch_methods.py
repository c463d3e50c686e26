"""Methods of a class beside its forward: what they give back is kept, or an outcome says that it is not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

import bnfold
from bnfold import Fold, UnsupportedModelError
from tests.toys.torch_models import assert_same, fuse, of_batchnorms, run, trained
from tests.toys.torch_networks import IMAGE

OPTIONS = pytest.mark.parametrize("options", [{}, {"example_inputs": IMAGE}], ids=["traced", "exported"])


class Features(nn.Module):
    """As of timm: features end in a BatchNorm, which the head could absorb."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.act = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True))
        self.norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.stem(x)))
        x = F.gelu(x) + self.block(x)
        made: Tensor = self.norm(x)
        return made

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else F.relu(self.head(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def features(self, x: Tensor) -> Tensor:
        return self.forward_features(x)


class Intermediates(Features):
    """With a method that forward does not call."""

    def forward_intermediates(self, x: Tensor, norm: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        found = {"stem": (x := self.act(self.bn(self.stem(x))))}
        x = F.gelu(x) + self.block(x)
        found["block"] = x.permute(0, 2, 3, 1)
        return self.norm(x) if norm else x, found


def names(outcomes: Any, kind: type) -> list[str]:
    return [each.batchnorm for each in of_batchnorms(outcomes) if isinstance(each, kind)]


@OPTIONS
def test_what_forward_features_gives_back_is_kept(options: dict[str, Any]) -> None:
    model = trained(Features())
    fused, outcomes = fuse(model, IMAGE, **options)
    assert names(outcomes, Fold) == ["bn"]
    assert_same(*(run(each.forward_features, IMAGE) for each in (model, fused)))


@OPTIONS
def test_preserving_forward_alone_folds_across_the_others(options: dict[str, Any]) -> None:
    model = trained(Features())
    fused, outcomes = fuse(model, IMAGE, preserve=("forward",), **options)
    assert names(outcomes, Fold) == ["bn", "norm"]
    assert not torch.allclose(model.forward_features(IMAGE), fused.forward_features(IMAGE))


def test_what_a_method_gives_back_that_forward_does_not_call_is_kept() -> None:
    model = trained(Intermediates())
    fused, outcomes = fuse(model, IMAGE, example_inputs=IMAGE)
    assert names(outcomes, Fold) == ["bn"]
    for method in ("forward_features", "forward_intermediates"):
        assert_same(*(run(getattr(each, method), IMAGE) for each in (model, fused)))


def test_a_block_with_two_names_keeps_the_methods() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).relu()  # type: ignore[no-any-return]

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = Block()

        def forward_features(self, x: Tensor) -> Tensor:
            return self.first(x)  # type: ignore[no-any-return]

        def forward(self, x: Tensor) -> Tensor:
            return self.second(x).relu()  # type: ignore[no-any-return]

    model = trained(Twice())
    fused = bnfold.fuse(model, example_inputs=IMAGE)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in fused.modules())
    assert_same(run(model, IMAGE), run(fused, IMAGE))
    assert_same(run(model.forward_features, IMAGE), run(fused.forward_features, IMAGE))


def test_a_method_costs_no_second_computation() -> None:
    """Nothing is called twice in the graph, so that nothing is a second use."""
    plain, more = trained(Features()), trained(Intermediates())
    more.load_state_dict(plain.state_dict())
    counts = []
    for model in (plain, more):
        fused, outcomes = fuse(model, IMAGE, example_inputs=IMAGE)
        assert names(outcomes, Fold) == ["bn"]
        assert type(fused) is type(model)
        counts.append(sum(each.numel() for each in fused.parameters()))
    assert counts[0] == counts[1]


@OPTIONS
def test_any_method_can_be_preserved(options: dict[str, Any]) -> None:
    class Encoder(Features):
        def encode(self, x: Tensor) -> Tensor:
            return super().forward_features(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.forward_head(self.encode(x))

    model = trained(Encoder())
    for preserve, folded in ((("encode",), ["bn"]), (("forward",), ["bn", "norm"])):
        _, outcomes = fuse(model, IMAGE, preserve=preserve, **options)
        assert names(outcomes, Fold) == folded


def test_a_method_that_is_not_there_or_computes_something_else_is_an_error() -> None:
    class Odd(Features):
        def encode(self, x: Tensor) -> Tensor:
            return self.stem(x + 1)

    for name, text in (("gone", "no method 'gone'"), ("encode", "encode cannot be preserved")):
        with pytest.raises(UnsupportedModelError, match=text):
            bnfold.fuse(trained(Odd()), example_inputs=IMAGE, preserve=(name,))


class Broken(Features):
    """Methods that cannot be kept do not keep anything from folding, nor raise."""

    def forward_other(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(self.stem(x) * 2)
        return made

    def forward_wrong(self, x: Tensor) -> Tensor:
        raise ValueError("not like that")

    def forward_writing(self, x: Tensor) -> Tensor:
        made: Tensor = self.stem(x)
        return made.mul_(2)

    def forward_more(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_a_method_that_cannot_be_captured_is_left_out() -> None:
    model = trained(Broken())
    fused, outcomes = fuse(model, IMAGE, example_inputs=IMAGE)
    assert names(outcomes, Fold) == ["bn"]
    assert_same(*(run(each.forward_features, IMAGE) for each in (model, fused)))


def test_methods_that_cannot_be_kept_cost_one_more_export_with_sizes_that_are_symbols(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    symbolic: list[bool] = []
    made = torch.export.export

    def noted(*args: Any, dynamic_shapes: Any, **options: Any) -> Any:
        symbolic.append(dynamic_shapes is not None)
        return made(*args, dynamic_shapes=dynamic_shapes, **options)

    monkeypatch.setattr(torch.export, "export", noted)
    bnfold.plan(trained(Broken()), example_inputs=IMAGE)
    assert symbolic.count(True) == 2


class Functional(Features):
    """Its forward has to change."""

    def forward_features(self, x: Tensor) -> Tensor:
        bn = self.bn
        x = F.batch_norm(self.stem(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        made: Tensor = self.norm(F.gelu(x))
        return made


def test_a_method_that_other_code_does_not_call_says_so() -> None:
    """It is never wrong without a word."""
    model = trained(Functional())
    fused, outcomes = bnfold.fuse(model, example_inputs=IMAGE, return_outcomes=True)
    assert names(outcomes, Fold) == ["bn"]
    assert_same(run(model, IMAGE), run(fused, IMAGE))
    for made in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        with pytest.raises(RuntimeError, match="forward_features: bnfold gave forward other code"):
            made.forward_features(IMAGE)


class Distilled(Features):
    """Two heads that become one, beside features that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        return self.head(x) + self.other(x)

    def forward_features(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(self.block(self.bn(self.stem(x))))
        return made


def test_a_method_beside_other_code_is_kept_where_it_does_the_same() -> None:
    model = trained(Distilled())
    fused, _ = bnfold.fuse(model, example_inputs=IMAGE, return_outcomes=True)
    assert fused.head.weight.shape == model.head.weight.shape
    assert type(fused) is not Distilled  # the heads became one
    assert_same(run(model, IMAGE), run(fused, IMAGE))
    assert_same(*(run(each.forward_features, IMAGE) for each in (model, fused)))


def test_a_tensor_that_forward_writes_over_is_no_result_to_keep() -> None:
    """A replay must not take what is there now for what was there then."""

    class Over(Features):
        def forward_features(self, x: Tensor) -> Tensor:
            made: Tensor = self.norm(self.stem(x))
            return made

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.forward_features(x)))

        def forward_norm(self, x: Tensor) -> Tensor:
            made: Tensor = self.norm(self.stem(x))
            return made

    model = trained(Over())
    fused, _ = fuse(model, IMAGE, example_inputs=IMAGE)
    assert_same(*(run(each.forward_features, IMAGE) for each in (model, fused)))


@OPTIONS
def test_a_fold_says_which_submodules_give_back_something_else(options: dict[str, Any]) -> None:
    model = trained(Features())
    crossed = {each.batchnorm: each.crosses for each in bnfold.plan(model, preserve=("forward",), **options)}  # type: ignore[union-attr]
    assert crossed == {"bn": ("stem",), "norm": ("norm",)}
    row = trained(nn.Sequential(nn.Sequential(nn.Conv2d(4, 6, 3), nn.AvgPool2d(2)), nn.BatchNorm2d(6)))
    (outcome,) = bnfold.plan(row, **options)
    assert isinstance(outcome, Fold)
    assert outcome.crosses == ("0", "0.0", "0.1")
