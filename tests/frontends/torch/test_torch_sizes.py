"""A folded module at other sizes than those of the example does what the original does, or says that it does not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, fx, nn

import bnfold
from bnfold import Fold, Merge
from tests.toys.torch_models import assert_same, drawn, trained

SIZES = [(2, 4, 16, 16), (1, 4, 16, 16), (3, 4, 15, 14), (3, 4, 17, 18), (1, 4, 12, 6), (2, 4, 8, 16), (4, 4, 7, 5)]

EXAMPLES = [drawn(*size) for size in SIZES]


class Two(nn.Module):
    """Two convolutions and two BatchNorms, called by a function."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.next, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)

    def functional(self, y: Tensor) -> Tensor:
        """A BatchNorm that folds into other code alone."""
        norm = self.norm
        return F.batch_norm(self.conv(y), norm.running_mean, norm.running_var, norm.weight, norm.bias)


class Around(nn.Module):
    """A module whose code decides by the sizes that another one gives it."""

    def __init__(self, inner: nn.Module, *outer: nn.Module) -> None:
        super().__init__()
        self.outer, self.inner = nn.Sequential(*outer), inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.outer(x))
        return y


def branch(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if x.shape[0] > 1:
        y = m.next(y)
    return m.last(y)


def loop(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    for _ in range(x.shape[0] - 1):
        y = m.next(y)
    return m.last(y)


def both_in_a_loop(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    for _ in range(x.shape[0]):
        y = m.last(m.next(y))
    return m.norm(y)


def entries(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    for _ in x:
        y = m.next(y)
    return m.last(y)


def parts(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    for _ in x.split(1):
        y = m.next(y)
    return m.last(y)


def length(m: Any, x: Tensor) -> Tensor:
    return m.last(m.next(m.conv(x)) if len(x) > 1 else m.conv(x))


def number(m: Any, x: Tensor) -> Tensor:
    y = m.functional(x)
    return m.last(m.next(y.relu() if x.numel() > 1000 else y))


def odd(m: Any, x: Tensor) -> Tensor:
    y = m.functional(x)
    return m.last(m.next(y.relu() if x.shape[2] % 2 else y))


def square(m: Any, x: Tensor) -> Tensor:
    y = m.functional(x)
    return m.last(m.next(y.relu() if x.shape[2] == x.shape[3] else y))


def quotient(m: Any, x: Tensor) -> Tensor:
    y = m.functional(x)
    half = (x.shape[2] - 1) // 2 + 1
    quarter = (half - 1) // 2 + 1
    return m.last(m.next(y.relu() if quarter % 2 else y))


def none_of_it(m: Any, x: Tensor) -> Tensor:
    y = m.functional(x)
    return m.last(m.next(y.relu() if x.shape[3] // 7 // 2 == 0 else y))


def caught(m: Any, x: Tensor) -> Tensor:
    try:
        torch._assert(x.shape[2] % 2 == 0, "an even size")
        y = m.norm(m.conv(x))
    except AssertionError:
        y = m.conv(x)
    return m.last(m.next(y))


def twice(m: Any, x: Tensor) -> Tensor:
    y = m.next(m.conv(x))
    return m.last(m.next(y)) if x.shape[3] > 15 else m.last(y)


def high(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if x.shape[2] > 7:
        y = m.next(y)
    return m.last(y)


class Reaching(nn.Module):
    """A module that calls a part of another one past it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.inner[1](x) if x.shape[0] > 2 else x)
        return y


DECIDING = {
    "a branch": Two(branch),
    "a loop": Two(loop),
    "a loop over both": Two(both_in_a_loop),
    "a loop over a tensor": Two(entries),
    "a loop over parts": Two(parts),
    "a length": Two(length),
    "a number of entries": Two(number),
    "an odd size": Two(odd),
    "two sizes alike": Two(square),
    "a quotient of a quotient": Two(quotient),
    "a quotient that may be 0": Two(none_of_it),
    "a failed assertion that is caught": Two(caught),
    "a call that is made again": Two(twice),
    "a part that is called by itself": Reaching(),
    "an inner module": Around(Two(odd), nn.MaxPool2d(2)),
    "an inner module behind strides": Around(Two(odd), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)),
    "an inner module that is kept behind strides": Around(Two(high), nn.Conv2d(4, 4, 3, 2, 1)),
    "an inner module with a fold around it": Around(Two(branch), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
}


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
@pytest.mark.parametrize("name", DECIDING)
def test_code_that_decides_by_a_size_is_never_wrong_at_another(name: str, size: tuple[int, ...]) -> None:
    model, example = trained(copy.deepcopy(DECIDING[name])), drawn(*size)
    fused, outcomes = bnfold.fuse(model, example_inputs=example, return_outcomes=True)
    assert any(isinstance(each, Fold) for each in outcomes)
    refused = 0
    with torch.no_grad():
        assert_same([model(example)], [fused(example)])
        for other in EXAMPLES:
            try:
                made = fused(other)
            except AssertionError as error:
                refused += "generated the forward of" in str(error)
            else:
                assert_same([model(other)], [made])
    assert 0 < refused < len(SIZES)


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
@pytest.mark.parametrize("name", DECIDING)
def test_code_that_is_kept_does_what_it_did_at_all_sizes(name: str, size: tuple[int, ...]) -> None:
    model = trained(copy.deepcopy(DECIDING[name]))
    fused = bnfold.fuse(model, example_inputs=drawn(*size), code="keep")
    with torch.no_grad():
        for other in EXAMPLES:
            assert_same([model(other)], [fused(other)])


def padded(m: Any, x: Tensor) -> Tensor:
    down, right = -x.shape[2] % 3, -x.shape[3] % 3
    if down > 0 or right > 0:
        x = F.pad(x, (0, right, 0, down))
    return m.last(m.next(m.norm(m.conv(x)).relu()))


def asserted(m: Any, x: Tensor) -> Tensor:
    assert x.shape[2] == 16, "images of 16 rows"
    y: Tensor = m.last(m.next(m.norm(m.conv(x)).relu()))
    return y


def squeezed(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.last(m.next(m.functional(x).relu()))
    return y.mean((2, 3), keepdim=True).squeeze(-1).squeeze(2)


def unfolded(m: Any, x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    y = F.pad(m.functional(x), (0, -width % 4, 0, -height % 4))
    y = y.unflatten(2, (-1, 4)).unflatten(4, (-1, 4)).sum((3, 5)).reshape(count, channels, -1, 1)
    z: Tensor = m.last(m.next(y))
    return z


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
@pytest.mark.parametrize("call", [padded, asserted, squeezed, unfolded])
def test_decisions_that_no_fold_depends_on_change_nothing(call: Callable[..., Tensor], size: tuple[int, ...]) -> None:
    model = trained(Two(call))
    fused, outcomes = bnfold.fuse(model, example_inputs=drawn(*size), return_outcomes=True)
    assert [type(each) for each in outcomes] == [Fold, Fold]
    assert (type(fused) is Two) == (call in (padded, asserted))
    with torch.no_grad():
        for other in EXAMPLES:
            if call is not asserted or other.shape[2] == 16:
                assert_same([model(other)], [fused(other)])


def test_what_is_skipped_is_skipped_at_the_other_sizes_as_well() -> None:
    model = trained(Two(padded))
    fused, outcomes = bnfold.fuse(model, example_inputs=drawn(*SIZES[0]), skip=("norm",), return_outcomes=True)
    assert [type(each) is Fold for each in outcomes] == [False, True]
    assert type(fused) is Two


def huge(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    if x.shape[2] * x.shape[3] > 10**9:
        y = y.relu()
    z: Tensor = m.last(m.next(y))
    return z


def test_sizes_are_tried_that_no_memory_holds() -> None:
    model = trained(Two(huge))
    fused, outcomes = bnfold.fuse(model, example_inputs=drawn(*SIZES[0]), return_outcomes=True)
    assert all(isinstance(each, Fold | Merge) for each in outcomes)
    with torch.no_grad():
        assert_same([model(EXAMPLES[2])], [fused(EXAMPLES[2])])
        blank = torch.empty(1, 4, 40000, 40000, dtype=torch.float64, device="meta")
        assert copy.deepcopy(model).to("meta")(blank).shape == blank.shape
        with pytest.raises(AssertionError, match="generated the forward of Two"):
            fused.to("meta")(blank)


def unless(is_other: Callable[[Tensor], bool]) -> Callable[..., Tensor]:
    """Another way for tall images alone that are not something else."""

    def call(m: Any, x: Tensor) -> Tensor:
        is_so = bool(is_other(x))
        y = m.conv(x)
        if x.shape[2] > 16 and not is_so:
            y = y.relu()
        z: Tensor = m.norm(y)
        return z

    return call


taller = unless(lambda x: x.shape[2] > 24)
upright = unless(lambda x: x.shape[3] > 16)
few = unless(lambda x: x.shape[0] > 2)


def oblong(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if x.shape[2] != x.shape[3]:
        y = y.relu()
    z: Tensor = m.norm(y)
    return z


def faint(m: Any, x: Tensor) -> Tensor:
    """Of which the outputs are nearly the same, whatever folds."""
    return x + 1e-6 * upright(m, x).tanh()


@pytest.mark.parametrize(
    "call", [taller, upright, few, oblong, faint], ids=["taller", "upright", "few", "oblong", "faint"]
)
def test_decisions_are_tried_apart(call: Callable[..., Tensor]) -> None:
    model = trained(Two(call))
    fused = bnfold.fuse(model, example_inputs=drawn(*SIZES[0]))
    with torch.no_grad():
        assert_same([model(EXAMPLES[0])], [fused(EXAMPLES[0])])
        with pytest.raises(AssertionError, match="generated the forward of Two"):
            fused(drawn(2, 4, 20, 16))


class Flagged(Two):
    """Another way by an argument that is no tensor."""

    def forward(self, x: Tensor, is_active: bool = False, times: int = 1) -> Tensor:  # type: ignore[override]
        y = self.conv(x)
        if is_active or times > 1:
            y = y.relu()
        z: Tensor = self.norm(y)
        return z


class Placed(Two):
    """What does not run on any data."""

    def forward(self, x: Tensor, place: Tensor) -> Tensor:  # type: ignore[override]
        return upright(self, x).tanh() + self.next.weight[(10 * place).long()].sum()


def test_code_that_runs_on_some_data_alone_is_tried() -> None:
    model, place = trained(Placed(upright)), torch.full((64,), 0.3)
    fused = bnfold.fuse(model, example_inputs=(drawn(*SIZES[0]), place))
    with torch.no_grad(), pytest.raises(AssertionError, match="generated the forward of Placed"):
        fused(drawn(2, 4, 20, 16), place)


def test_other_values_of_arguments_are_tried() -> None:
    model, example = trained(Flagged(upright)), drawn(*SIZES[0])
    fused = bnfold.fuse(model, example_inputs=example)
    kept = bnfold.fuse(model, example_inputs=example, code="keep")
    with torch.no_grad():
        assert_same([model(example)], [fused(example)])
        for arguments in ({"is_active": True}, {"times": 2}):
            assert_same([model(example, **arguments)], [kept(example, **arguments)])
            with pytest.raises(ValueError, match="generated the forward of Flagged"):
                fused(example, **arguments)


def test_code_that_checks_its_sizes_is_code_like_any_other() -> None:
    model, example = trained(Two(odd)), drawn(*SIZES[0])
    fused = bnfold.fuse(model, example_inputs=example)
    size = torch.export.Dim.AUTO
    program = torch.export.export(fused, (example,), dynamic_shapes=({0: size, 2: size, 3: size},))
    made: list[Any] = [fused, program.module(), fx.symbolic_trace(fused), copy.deepcopy(fused)]
    made.append(pickle.loads(pickle.dumps(fused)))
    made.append(torch.compile(fused, backend="eager", dynamic=True))
    with torch.no_grad():
        for each in made:
            assert_same([model(drawn(3, 4, 6, 5))], [each(drawn(3, 4, 6, 5))])
        with pytest.raises(AssertionError, match="generated the forward of Two"):
            fx.symbolic_trace(fused)(drawn(3, 4, 5, 5))


MADE_OF_SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda y: torch.zeros(*y.shape, dtype=y.dtype),
    "ones": lambda y: torch.ones(y.shape[0], 1, 1, 1, dtype=y.dtype),
    "arange": lambda y: torch.arange(y.shape[3], dtype=y.dtype),
    "full": lambda y: torch.full((y.shape[0], 4, 1, 1), 0.5, dtype=y.dtype),
}


@pytest.mark.parametrize("name", MADE_OF_SIZES)
def test_a_tensor_made_of_sizes_can_absorb_nothing(name: str) -> None:
    """It is no constant, and no node of the view either: what goes upstream ends there."""
    module = trained(Two(lambda own, x: own.last(own.next(own.norm(own.conv(x) + MADE_OF_SIZES[name](x))))))
    fused, outcomes = bnfold.fuse(module, example_inputs=(EXAMPLES[0],), return_outcomes=True)
    assert all(isinstance(outcome, Fold) for outcome in outcomes)  # the first one downstream
    for example in EXAMPLES:
        assert_same([module(example)], [fused(example)])
