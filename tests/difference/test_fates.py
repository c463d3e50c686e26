"""Where each BatchNorm went, for pairs of models with a known truth, however the second one names its parts."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold import api
from bnfold.difference.compare import Difference
from bnfold.difference.trace import Way
from tests.difference.pairs import NAMINGS, PAIRS, K, affine, conv, drop_names, folded_into_another, made, rows
from tests.toys.onnx_graphs import node, norm, statistics


def difference(one: Any, other: Any) -> Difference:
    return api.diff(one, other)


def told(found: Difference, titles: dict[str, str] | None = None) -> dict[str, tuple[str, frozenset[str]]]:
    """What a comparison says of each BatchNorm, by the names of outputs before they were renamed."""
    back = {new: old for old, new in (titles or {}).items()}
    trace = found.trace
    return {
        trace.one.title(fate.batchnorm.outputs[0]): (
            str(fate.way),
            frozenset(back.get(title, title) for title in (trace.other.title(item.outputs[0]) for item in fate.into)),
        )
        for fate in found.fates
    }


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("name", PAIRS)
def test_each_batchnorm_is_named_correctly(name: str, naming: str) -> None:
    pair = PAIRS[name]()
    titles = NAMINGS[naming](pair.other)
    found = told(difference(pair.one, pair.other), titles)
    assert found == pair.truth


def test_there_are_enough_pairs() -> None:
    assert len(PAIRS) * len(NAMINGS) >= 60


def twice() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """One kernel and one BatchNorm, twice: nothing but names tells the two apart."""
    constants = {"w": K} | statistics(4)
    scale, shift = affine(constants)
    folded = {"w": K * rows(scale, K), "b": shift}
    nodes = [
        conv("x", "w", "c"),
        norm("c", "m"),
        conv("x", "w", "e"),
        norm("e", "n"),
        node("Relu", "m", "r"),
        node("Sigmoid", "n", "s"),
        node("Add", "r s", "y"),
    ]
    after = [
        conv("x", "w", "c", "b"),
        conv("x", "w", "e", "b"),
        node("Relu", "c", "r"),
        node("Sigmoid", "e", "s"),
        node("Add", "r s", "y"),
    ]
    return made(nodes, constants), made(after, folded)


def test_equal_kernels_with_equal_batchnorms_are_told_to_be_ambiguous() -> None:
    one, other = twice()
    assert not any(fate.others for fate in difference(one, other).fates)
    titles = drop_names(other)
    found = difference(one, other)
    assert {fate.way for fate in found.fates} == {Way.FOLDED}
    both = {titles["c"], titles["e"]}
    for fate in found.fates:
        assert {found.trace.other.title(item.outputs[0]) for item in (*fate.into, *fate.others)} == both
        assert "nothing tells them apart" in fate.detail


@pytest.mark.parametrize("name", PAIRS)
def test_a_model_and_itself_are_identical(name: str) -> None:
    one = PAIRS[name]().one
    found = difference(one, one)
    assert found.is_empty
    assert found.is_related
    assert all(fate.way in (Way.KEPT, Way.UNREAD) for fate in found.fates)


def test_a_branch_that_reads_another_value_is_a_change() -> None:
    pair = folded_into_another()
    found = difference(pair.one, pair.other)
    assert [sentence.split()[1] for sentence in found.outputs] == ["'y'", "'z'"]
    assert not found.is_empty


def test_a_constant_that_no_initializer_holds_is_compared() -> None:
    """A model with other numbers in a Constant node is not identical."""
    models = []
    for last in (1.0, np.nextafter(np.float32(1), np.float32(2))):
        value = onnx.numpy_helper.from_array(np.array([[2, last]], np.float32), "value")
        nodes = [node("Constant", "", "k", value=value), node("MatMul", "x k", "m"), node("Relu", "m", "y")]
        models.append(made(nodes, {}, (3, 1)))
    assert difference(models[0], models[0]).is_empty
    assert not difference(*models).is_empty


def test_operands_that_change_places_are_a_change() -> None:
    one = made([node("Relu", "x", "a"), node("Sigmoid", "x", "b"), node("Sub", "a b", "y")], {})
    other = made([node("Relu", "x", "a"), node("Sigmoid", "x", "b"), node("Sub", "b a", "y")], {})
    (change,) = difference(one, other).changed
    assert change.item.name == "Sub_y"


def test_unrelated_models_are_told_to_be() -> None:
    constants = {"v": np.flip(K) + 1.0}
    one = PAIRS["upstream"]().one
    other = made([conv("x", "v", "k"), node("Sigmoid", "k", "y")], constants)
    drop_names(other)
    found = difference(one, other)
    assert not found.is_related
    assert [fate.way for fate in found.fates] == [Way.UNKNOWN]


def test_a_factor_that_one_channel_does_not_have_is_no_fold() -> None:
    pair = PAIRS["upstream"]()
    weight = next(each for each in pair.other.graph.initializer if each.name == "w")
    kernel = onnx.numpy_helper.to_array(weight).copy()
    kernel[2, 1, 0, 0] *= 1.001
    weight.CopyFrom(onnx.numpy_helper.from_array(kernel, "w"))
    assert [fate.way for fate in difference(pair.one, pair.other).fates] == [Way.UNKNOWN]


def test_attributes_and_weights_that_changed_are_told() -> None:
    one = PAIRS["upstream"]().one
    other = onnx.ModelProto()
    other.CopyFrom(one)
    other.graph.node[0].attribute[0].ints[:] = [2, 2, 2, 2]
    bias = next(each for each in other.graph.initializer if each.name == "b")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * np.float32(2), "b"))
    found = difference(one, other)
    (change,) = found.changed
    assert change.item.name == "Conv_c"
    assert change.sentences == ("pads: (1, 1, 1, 1) became (2, 2, 2, 2)",)
    (weight,) = found.weights
    assert (weight.name, weight.largest) == ("b", 1.0)


def test_a_default_that_is_written_down_is_no_change() -> None:
    one = PAIRS["upstream"]().one
    other = onnx.ModelProto()
    other.CopyFrom(one)
    other.graph.node[0].attribute.append(onnx.helper.make_attribute("auto_pad", "NOTSET"))
    other.graph.node[0].attribute.append(onnx.helper.make_attribute("group", 1))
    other.graph.node[1].attribute.append(onnx.helper.make_attribute("epsilon", 1e-5))
    assert difference(one, other).is_empty


def test_what_bnfold_says_of_a_batchnorm_that_stays() -> None:
    pair = PAIRS["three_layers"]()
    found = difference(pair.one, pair.other)
    (said,) = found.said.values()
    assert isinstance(said, bnfold.Fold)
    assert said.into == ("Conv_c2",)


def test_thousands_of_readers_of_one_value_take_no_longer_than_so_many_nodes() -> None:
    """Without names each reader looks for its like among all the others."""
    seconds = []
    for count in (1000, 4000):
        nodes = [node("Relu", "x", "r")]
        nodes += [node("Clip" if index % 2 else "Elu", "r", f"v{index}") for index in range(count)]
        nodes.append(node("Sum", " ".join(f"v{index}" for index in range(count)), "y"))
        one, other = made(nodes, {}), made(nodes, {})
        drop_names(other)
        start = time.process_time()
        found = difference(one, other)
        seconds.append(time.process_time() - start)
        assert not found.gone
    assert seconds[1] < 12 * seconds[0]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A saved program, and the same network as an ONNX model with its BatchNorms folded."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    norms = [torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)]
    for batchnorm in norms:
        batchnorm.running_mean.normal_()
        batchnorm.running_var.uniform_(0.5, 1.5)
        torch.nn.init.normal_(batchnorm.weight)
    parts = [torch.nn.Conv2d(3, 4, 3), norms[0], torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), norms[1], torch.nn.ReLU()]
    network = torch.nn.Sequential(*parts).eval()
    folder = tmp_path_factory.mktemp("program")
    x = torch.zeros(1, 3, 8, 8)
    with warnings.catch_warnings(action="ignore"):  # the exporter's, about its own code
        torch.export.save(torch.export.export(network, (x,)), folder / "net.pt2")
        torch.onnx.export(network, (x,), folder / "net.onnx", dynamo=False)
    return folder / "net.pt2", folder / "net.onnx"


def test_a_program_beside_an_onnx_model(program: tuple[Path, Path]) -> None:
    """Torch's exporter folds both; names mean nothing between the two kinds."""
    one, other = program
    found = difference(one, other)
    assert [(fate.way, fate.direction) for fate in found.fates] == [(Way.FOLDED, "upstream")] * 2
    assert [fate.into[0].operator for fate in found.fates] == ["Conv", "Conv"]
    assert found.fates[0].into != found.fates[1].into
    assert found.is_related


def test_a_program_beside_its_fused_form(program: tuple[Path, Path]) -> None:
    one = program[0]
    found = difference(one, bnfold.fuse(one))
    assert [fate.way for fate in found.fates] == [Way.FOLDED, Way.FOLDED]
    assert [item.name for fate in found.fates for item in fate.into] == ["0", "3"]
