"""A front end is a package and a row in the door: shown by one for models that are texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.algebra.affine import Affine
from bnfold.algebra.linear import Linear
from bnfold.algebra.rounding import Rounding
from bnfold.frontends import door
from bnfold.frontends.door import Entry, find_entry
from bnfold.frontends.protocol import Cautions, OpenOptions, Replan, Size, Written
from bnfold.graph.ops import ChannelAffine, Op
from bnfold.graph.outcome import Outcome
from bnfold.graph.protocol import Constant


@dataclass
class Recipe:
    """A toy model: operators in a row, "conv" and "norm", of 2 channels."""

    steps: list[str]
    written: list[str] = field(default_factory=list)


class Row:
    """A recipe as a graph: nodes are positions, and so are the values that they make; -1 is the input."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._gone: set[int] = set()

    def nodes(self) -> Iterator[int]:
        return iter([node for node in range(len(self._recipe.steps)) if node not in self._gone])

    def op(self, node: int) -> Op:
        if self._recipe.steps[node] == "conv":
            return Linear(1, 2, 2, 1, 1)
        return ChannelAffine(Affine.from_batchnorm([1, 2], [3, 4], [0, 0], [1, 1], 0.0), is_batchnorm=True)

    def name(self, node: int) -> str:
        return f"{self._recipe.steps[node]}{node}"

    def scope(self, node: int) -> str:
        return "main"

    def inputs(self, node: int) -> Sequence[int]:
        return [node - 1]

    def outputs(self, node: int) -> Sequence[int]:
        return [node]

    def producer(self, value: int) -> int | None:
        return None if value < 0 else value

    def uses(self, value: int) -> Sequence[tuple[int | None, int]]:
        last = value == len(self._recipe.steps) - 1
        return [(None, -1)] if last else [(value + 1, 0)]

    def is_measured(self, value: int) -> bool:
        return False

    def elements(self, value: int) -> int | None:
        return None

    def constants(self, node: int) -> tuple[Sequence[Constant], Sequence[Constant]]:
        return (), ()

    def makes_bias(self, node: int, absorbed: Linear) -> bool:
        return True

    def round(self, node: int, absorbed: Linear | Affine) -> Rounding:
        return Rounding(0.0)

    def signature(self, node: int) -> None:
        return None

    def write(self, node: int, absorbed: Linear | Affine, twins: Sequence[int] = ()) -> None:
        assert isinstance(absorbed, Linear)
        assert absorbed.after is not None
        self._recipe.written.append(f"{self.name(node)} takes {absorbed.after.scale} and {absorbed.after.shift}")

    def bypass(self, node: int, *, keep_output_name: bool, index: int = 0) -> None:
        self._gone.add(node)

    def renew(self, value: int) -> None:
        pass

    def join(self, host: int, source: int, root: int) -> None:
        raise AssertionError("nothing merges")

    def remove(self, node: int) -> None:
        raise AssertionError("nothing merges")


class OpenRecipe:
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.graph = Row(recipe)

    def measure(self) -> Size:
        return Size(len(list(self.graph.nodes())), 0)

    @property
    def files(self) -> Sequence[Path]:
        return ()

    def learn(self, outcomes: Sequence[Outcome], replan: Replan) -> bool:
        return False

    def explain(self, outcomes: Sequence[Outcome], replan: Replan) -> tuple[Outcome, ...]:
        return tuple(outcomes)

    def warn(self, *, has_learnt: bool) -> Cautions:
        return ()

    def finish(self) -> Recipe:
        return Recipe([self._recipe.steps[node] for node in self.graph.nodes()], self._recipe.written)

    def save(self, path: Path) -> Written:
        path.write_text(" ".join(self.finish().steps))
        return Written(path)


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front end for recipes, and its row."""
    front_end = ModuleType("recipes")
    front_end.__dict__["is_model"] = lambda model: isinstance(model, Recipe)

    def open_model(model: Any, options: OpenOptions) -> OpenRecipe:
        return OpenRecipe(Recipe(Path(model).read_text().split()) if isinstance(model, Path) else model)

    front_end.__dict__["open_model"] = open_model
    monkeypatch.setitem(sys.modules, "recipes", front_end)
    entry = Entry("recipes", "recipes", ".recipe", "recipes", "recipes")
    monkeypatch.setattr(door, "ENTRIES", [entry, *door.ENTRIES])


@pytest.mark.usefixtures("recipes")
def test_a_third_front_end_is_a_package_and_a_row(tmp_path: Path) -> None:
    model = Recipe(["conv", "norm", "conv"])
    fused, outcomes = bnfold.fuse(model, return_outcomes=True)  # type: ignore[call-overload]
    assert fused == Recipe(["conv", "conv"], [f"conv0 takes {np.array([1.0, 2.0])} and {np.array([3.0, 4.0])}"])
    assert [(each.batchnorm, each.into) for each in outcomes] == [("norm1", ("conv0",))]
    path = tmp_path / "model.recipe"
    path.write_text("conv norm")
    result = bnfold.api.fuse_file(path, tmp_path / "fused.recipe", checks="none")
    assert (tmp_path / "fused.recipe").read_text() == "conv"
    assert (result.before.nodes, result.after and result.after.nodes) == (2, 1)


def test_what_no_row_claims_is_unsupported() -> None:
    with pytest.raises(bnfold.UnsupportedModelError, match=r"builtins\.int"):
        find_entry(3)


def test_each_model_has_one_row() -> None:
    assert find_entry("model.pt2").package.endswith("torch")
    assert find_entry(Path("model")).package.endswith("onnx")
    assert find_entry(onnx.ModelProto()).package.endswith("onnx")
