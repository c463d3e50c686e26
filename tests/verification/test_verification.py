"""The verification notices what it must, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import IncomparableError, InvalidModelError
from bnfold.runtimes import onnx_runtime
from bnfold.verification import metrics, noise, onnx_weights, truth
from bnfold.verification.observe import Observation
from tests.toys.onnx_graphs import model, node, norm, random, statistics

Array = np.ndarray


def network(**changes: Array) -> onnx.ModelProto:
    """Two convolutions, each with a BatchNorm, and a head with two outputs."""
    constants = {
        "w": random(8, 3, 3, 3, seed=1),
        "b": random(8, seed=1),
        **statistics(8, "n_"),
        "v": random(8, 8, 3, 3, seed=2) / 8,
        **statistics(8, "m_"),
        "u": random(8, 10, seed=3),
    } | changes
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        norm("c", "n", "n_"),
        node("Relu", "n", "r"),
        node("Conv", "r v", "d", pads=[1, 1, 1, 1]),
        norm("d", "m", "m_"),
        node("Relu", "m", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f u", "logits"),
        node("ArgMax", "logits", "label", axis=1),
    ]
    typed = {name: np.asarray(array, np.float32) for name, array in constants.items()}
    made = model(nodes, typed, ("N", 3, "H", "W"), outputs="logits", dtype=np.float32)
    made.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, ("N", 1)))
    return made


def only_the_label(proto: onnx.ModelProto) -> onnx.ModelProto:
    del proto.graph.output[0]
    return proto


def save(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def test_a_model_equals_itself() -> None:
    verdict = bnfold.verify(network(), network())
    assert verdict.is_equivalent
    assert verdict.worst.error == 0


def test_a_fused_model_is_equivalent_inside_as_well() -> None:
    verdict = bnfold.verify(network(), bnfold.fuse(network()))
    assert verdict.is_equivalent
    assert [each.name for each in verdict.values] == ["n", "r", "m", "s", "p", "f"]
    assert 0 < verdict.worst.error < verdict.worst.budget < 1e-4


@pytest.mark.parametrize("seed", range(5))
def test_weights_one_unit_apart_are_equivalent(seed: int) -> None:
    def moved(array: Array) -> Array:
        signs = np.random.default_rng(seed).integers(0, 2, array.shape) * 2 - 1
        return np.nextafter(array.astype(np.float32), np.float32(np.inf) * signs)

    other = network(w=moved(random(8, 3, 3, 3, seed=1)), v=moved(random(8, 8, 3, 3, seed=2) / 8))
    assert bnfold.verify(network(), other, seed=seed).is_equivalent


@pytest.mark.parametrize("fault", [1e-4, -0.5, np.nan, np.inf])
def test_one_wrong_weight_is_seen(fault: float) -> None:
    kernel = random(8, 8, 3, 3, seed=2) / 8
    kernel[3, 2, 1, 1] += fault
    verdict = bnfold.verify(network(), network(v=kernel))
    assert not verdict.is_equivalent
    assert verdict.first_divergence is not None
    assert (verdict.first_divergence.name, verdict.first_divergence.channel) == ("d", 3)
    assert verdict.first_divergence.node == "Conv_d"


def test_a_fault_that_argmax_hides_is_seen_inside() -> None:
    verdict = bnfold.verify(only_the_label(network()), only_the_label(network(b=random(8, seed=1) + 1e-4)))
    assert verdict.outputs[0].is_equivalent
    assert not verdict.is_equivalent
    assert bnfold.verify(
        only_the_label(network()), only_the_label(network(b=random(8, seed=1) + 1e-4)), outputs_only=True
    ).is_equivalent


def test_nowhere_finite_is_no_pass() -> None:
    broken = network(v=np.full((8, 8, 3, 3), np.nan))
    verdict = bnfold.verify(broken, broken)
    assert not verdict.is_equivalent
    assert "void" in verdict.worst.reason


def test_nan_at_the_same_place_is_reported() -> None:
    kernel = random(8, 10, seed=3)
    kernel[:, 4] = np.nan
    verdict = bnfold.verify(network(u=kernel), bnfold.fuse(network(u=kernel)))
    assert verdict.outputs[0].is_equivalent
    assert verdict.outputs[0].observation.counts.reference > 0


def test_a_lost_nan_is_a_difference() -> None:
    kernel = random(8, 10, seed=3)
    kernel[:, 4] = np.nan
    assert not bnfold.verify(network(u=kernel), network()).is_equivalent


def test_an_overflow_of_the_reference_on_a_drawn_extreme_is_left_out() -> None:
    def half(scale: float) -> onnx.ModelProto:
        nodes = [node("Conv", "x w", "c"), norm("c", "n"), node("Relu", "n", "y")]
        constants = {"w": scale * random(4, 3, 3, 3), **statistics(4)}
        typed = {name: np.asarray(array, np.float16) for name, array in constants.items()}
        return model(nodes, typed, (2, 3, 8, 8), dtype=np.float16)

    verdict = bnfold.verify(half(300.0), bnfold.fuse(half(300.0)))
    assert verdict.is_equivalent
    assert any("overflows on the input 'large'" in finding for finding in verdict.findings)


def test_a_budget_is_no_constant() -> None:
    """A last layer that cancels what comes before is noisier, by itself."""
    cancelling = np.concatenate([random(4, 10, seed=3), -random(4, 10, seed=3)])
    same = {"v": np.concatenate([random(4, 8, 3, 3, seed=2)] * 2) / 8}
    same |= {f"m_{name}": np.concatenate([array[:4]] * 2) for name, array in statistics(8).items()}
    calm, noisy = network(), network(u=cancelling + 1e-4, **same)
    budgets = [bnfold.verify(each, bnfold.fuse(each)).outputs[0].budget for each in (calm, noisy)]
    assert budgets[1] > 100 * budgets[0]


def test_a_jump_within_reach_of_rounding_is_no_difference() -> None:
    """Exactly half a step, up to rounding: which integer it becomes is a matter of luck, in both models alike."""
    nodes = [node("Conv", "x w", "c"), norm("c", "n"), node("Round", "n", "y")]
    parameters = {"gamma": [1.0] * 4, "beta": [0.5] * 4, "mean": [0.3] * 4, "var": [1.0] * 4}
    constants = {"w": np.zeros((4, 3, 1, 1)), **{name: np.array(value) for name, value in parameters.items()}}
    constants["w"][:, :, 0, 0] = 0.1
    constants["beta"] = 0.5 - (0.3 - constants["mean"]) / np.sqrt(1 + 1e-5)
    made = model(nodes, {k: np.float32(v) for k, v in constants.items()}, (2, 3, 8, 8), dtype=np.float32)
    ones = [{"x": np.ones((2, 3, 8, 8), np.float32)}]
    assert bnfold.verify(made, bnfold.fuse(made), ones).is_equivalent


def test_a_name_that_moved_to_a_later_value_is_no_difference() -> None:
    """Other tools let the fused convolution keep the convolution's own name."""
    fused = bnfold.fuse(network())
    for each in fused.graph.node:
        for names in (each.input, each.output):
            names[:] = ["d" if name == "m" else name for name in names]
    verdict = bnfold.verify(network(), fused)
    assert verdict.is_equivalent
    assert any("'d' holds what 'm' held" in finding for finding in verdict.findings)


def test_a_skipped_batchnorm_is_no_renaming() -> None:
    skipped = network()
    for each in skipped.graph.node:
        each.input[:] = ["d" if name == "m" else name for name in each.input]
        each.output[:] = ["unused" if name == "m" else name for name in each.output]
    assert not bnfold.verify(network(), skipped).is_equivalent


def test_the_truth_settles_what_the_reference_gets_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float32 sum of 2^24 and then ones never moves; one that begins with the ones is right."""

    def total(first: int, **attributes: int) -> onnx.ModelProto:
        nodes = [node("CumSum", "x axis", "s", **attributes), node("Gather", "s first", "y", axis=1)]
        return model(nodes, {"axis": np.array(1), "first": np.array([first])}, (1, 200), dtype=np.float32)

    reference, candidate = total(199), total(0, reverse=1)
    ones = np.ones((200, 1))
    ones[0] = 2.0**24
    feeds = [{"x": ones.T.astype(np.float32)}]
    verdict = bnfold.verify(reference, candidate, feeds, outputs_only=True)
    assert verdict.is_equivalent
    assert any("as near to the float64 result" in finding for finding in verdict.findings)
    monkeypatch.setattr(truth, "SECONDS", -1.0)
    assert not bnfold.verify(reference, candidate, feeds, outputs_only=True).is_equivalent


def with_constants_as_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The weights of the convolutions in `Constant` nodes, as several exporters write them."""
    weights = [each for each in proto.graph.initializer if each.name in ("w", "v", "u")]
    for each in weights:
        proto.graph.initializer.remove(each)
    made = [helper.make_node("Constant", [], [each.name], value=each) for each in weights]
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*made, *nodes])
    return proto


def test_constants_that_nodes_make_are_weights_too() -> None:
    """Their rounding is noise like any other's."""
    proto = with_constants_as_nodes(network())
    assert set(onnx_weights.weights(onnx_weights.with_initializers(proto).graph)) == set(
        onnx_weights.weights(network().graph)
    )
    assert bnfold.verify(proto, bnfold.fuse(network())).is_equivalent


def test_what_decides_about_a_size_is_no_weight() -> None:
    """Scales that are put together from two constants, as an exporter writes them."""
    nodes = [
        node("Concat", "ones twos", "scales", axis=0),
        node("Mul", "x k", "c"),
        node("Resize", "c _ scales", "r", mode="nearest"),
        node("Add", "r r", "y"),
    ]
    numbers = {"ones": np.ones(2), "twos": np.full(2, 2.0), "k": random(3, 1, 1)}
    made = model(
        nodes, {name: each.astype(np.float32) for name, each in numbers.items()}, (1, 3, 4, 4), dtype=np.float32
    )
    assert onnx_weights.weights(made.graph) == ["k"]


def test_a_disturbance_moves_channels_together_too() -> None:
    """Independent moves of a thousand weights would cancel in the mean, to a twentieth of a unit."""
    weights = np.full((64, 1000), 1.5, np.float32)
    moved = onnx_weights.Disturbance(0)(weights, 0)
    steps = (moved.astype(np.float64) - weights) / np.spacing(np.float32(1.5))
    assert np.abs(steps).max() <= 5
    assert (steps != steps[0, 0]).mean() > 0.5
    assert np.sqrt(np.mean(steps.mean(axis=1) ** 2)) > 0.5


@pytest.mark.parametrize("value", [0.0, 1e-45, 3.4e38, np.inf, np.nan])
def test_what_is_no_ordinary_number_is_not_moved(value: float) -> None:
    """It is looked for in each draw, unless it is known that there is none."""
    weights = random(3, 40_000, dtype=np.float32)
    assert onnx_weights.may_all_move(weights)
    draw = onnx_weights.Disturbance(0)
    np.testing.assert_array_equal(draw(weights, 0, is_whole=True), draw(weights, 0))
    weights[2, 39_999] = value
    assert not onnx_weights.may_all_move(weights)
    np.testing.assert_array_equal(draw(weights, 0)[2, 39_999], weights[2, 39_999])


@pytest.mark.parametrize("value", [0.1, 0.7, 1.9])
def test_weights_that_are_all_alike_are_no_fault(value: float) -> None:
    """They round alike, so that errors add up instead of cancelling."""
    alike = {
        name: np.full_like(random(*shape), value) for name, shape in {"w": (8, 3, 3, 3), "v": (8, 8, 3, 3)}.items()
    }
    norms = {name: np.full(8, 0.7) for name in ("n_gamma", "n_beta", "n_mean", "n_var")}
    proto = network(**alike, **{name: norms.get(name, array) for name, array in statistics(8, "n_").items()})
    assert bnfold.verify(proto, bnfold.fuse(proto)).is_equivalent


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("block", [7, 1 << 17])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_an_extent_is_what_its_formulas_say(
    dtype: str, block: int, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the blocks, and where the squares leave the type's range."""
    monkeypatch.setattr(noise, "BLOCK", block)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    size = size if kind.itemsize > 2 or dtype == "bfloat16" else np.sqrt(np.sqrt(np.sqrt(size)))
    for shape in ((), (5,), (2, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 4, 4), (2, 4, 4, 4), (0, 3, 4), (2, 3, 0, 4)):
        array, other = (np.asarray(size * random(*shape, seed=seed)).astype(kind) for seed in (1, 2))
        wide = array.astype(np.float64) - other
        found = noise.measure(array, other)
        channels = [wide.reshape(1, -1)] if len(shape) < 2 else [wide, *np.moveaxis(wide, 1, 0)]
        if wide.size and (len(shape) == 3 or shape in ((2, 3, 4, 5), (2, 4, 4, 4))):  # not (2, 3, 4, 4), an image
            channels += list(np.moveaxis(wide, -1, 0))
        if wide.size:
            assert found.is_finite
            np.testing.assert_allclose(found.peak, [np.abs(each).max() for each in channels], 1e-6)
            np.testing.assert_allclose(found.rms, [np.sqrt(np.mean(each**2)) for each in channels], 1e-5)
            means = [np.mean(each) for each in channels]
            np.testing.assert_allclose(found.mean[1:], means[1:], 1e-5, 1e-5 * size)
        else:
            assert not found.rms.any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_counts_as_zero_in_an_extent(wrong: float) -> None:
    array, zeroed = random(2, 3, 40), random(2, 3, 40)
    array[1, 2, 7], zeroed[1, 2, 7] = wrong, 0.0
    found, expected = noise.measure(array.astype(np.float32)), noise.measure(zeroed.astype(np.float32))
    assert not found.is_finite
    np.testing.assert_allclose(found.rms, expected.rms, 1e-6)
    huge = np.array([[3e38, 1.0]], np.float32)
    assert noise.measure(huge, -huge).is_finite
    assert noise.measure(huge, -huge).peak[0] == pytest.approx(6e38)


def test_a_bfloat16_result_is_judged_where_the_reference_overflows() -> None:
    """numpy's finfo raises on bfloat16, which ended the whole comparison."""
    exact = np.array([1.0, 2.0])
    expected, near, far = (np.array([one, 2.0], ml_dtypes.bfloat16) for one in (np.inf, 1.0, 1.5))
    failing = Observation(noise.Judgement(1.0, 0.0, 2.0, "peak"), metrics.Counts(0, 2), reason="it differs")
    assert truth._is_as_near(exact, expected, near, failing)
    assert not truth._is_as_near(exact, expected, far, failing)


def test_weights_in_bfloat16_are_run_and_disturbed() -> None:
    """They are run in float32, from weights of a type that numpy does not know."""

    def scaled(factor: float) -> onnx.ModelProto:
        weights = (random(8, 5) * factor).astype(ml_dtypes.bfloat16)
        proto = model([node("Cast", "w", "wide", to=1), node("MatMul", "x wide", "y")], {}, (2, 8), dtype=np.float32)
        proto.graph.initializer.append(
            helper.make_tensor("w", TensorProto.BFLOAT16, weights.shape, weights.tobytes(), raw=True)
        )
        return proto

    assert bnfold.verify(scaled(1), scaled(1)).is_equivalent
    assert not bnfold.verify(scaled(1), scaled(1.1)).is_equivalent


def test_an_input_may_be_a_single_number() -> None:
    proto = model([node("Mul", "x k", "y")], {"k": random(3)}, ())
    assert bnfold.verify(proto, proto).is_equivalent


@pytest.mark.parametrize("size", [1e200, 1e-160])
def test_what_is_beyond_squares_is_no_pass(size: float) -> None:
    """A sum of squares would be infinite, or nothing."""

    def scaled(factor: float) -> onnx.ModelProto:
        return model([node("MatMul", "x w", "y")], {"w": random(8, 5) * size * factor}, (4, 8))

    assert bnfold.verify(scaled(1), scaled(1)).is_equivalent
    assert not bnfold.verify(scaled(1), scaled(1.3)).is_equivalent


def test_a_shape_that_a_body_casts_is_no_weight() -> None:
    """Moved by a unit, 4.0 would be cast to 3."""
    end = helper.make_tensor_value_info("r", TensorProto.FLOAT, ["A", "B"])
    nodes = [node("Cast", "sizes", "cast", to=TensorProto.INT64), node("Reshape", "x cast", "r")]
    body = helper.make_graph(nodes, "body", [], [end])
    constants = {"sizes": np.array([4, 6]), "w": random(6, 3)}
    made = {name: each.astype(np.float32) for name, each in constants.items()}
    proto = model([node("MatMul", "x w", "y")], made, (1, 4, 6), dtype=np.float32)
    proto.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, [1]))
    proto.graph.node[0].input[0] = "z"
    proto.graph.node.insert(0, helper.make_node("If", ["yes"], ["z"], then_branch=body, else_branch=body))
    assert onnx_weights.weights(proto.graph) == ["w"]


def test_external_data_of_a_model_in_memory_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    with pytest.raises(InvalidModelError, match="external data of 'w'"):
        bnfold.verify(proto, proto)


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """In float16."""
    for each in proto.graph.initializer:
        if each.data_type == TensorProto.FLOAT:
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each).astype(np.float16), each.name))
    for each in (*proto.graph.input, *proto.graph.output):
        if each.type.tensor_type.elem_type == TensorProto.FLOAT:
            each.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


def test_float16_hides_no_fault_that_is_larger_than_the_rounding_of_its_weights() -> None:
    """Rounding after each operator is much larger than what one wrong weight does."""
    proto = halved(network())
    assert bnfold.verify(proto, bnfold.fuse(proto)).is_equivalent
    weight = next(each for each in proto.graph.initializer if each.name == "w")
    wrong = numpy_helper.to_array(weight).copy()
    wrong[5, 1, 0, 0] *= 1.05
    faulty = onnx.ModelProto()
    faulty.CopyFrom(proto)
    next(each for each in faulty.graph.initializer if each.name == "w").CopyFrom(numpy_helper.from_array(wrong, "w"))
    verdict = bnfold.verify(proto, faulty)
    assert not verdict.is_equivalent
    assert verdict.worst.sample.endswith("in float32")


def test_the_truth_on_one_input_clears_no_other() -> None:
    """Each sum is right for one width alone, and both inputs are called normal."""

    def means(first: str, second: str) -> onnx.ModelProto:
        nodes = [
            node("ReduceSum", "x axis", "total"),
            node("Mul", "total weights", "s"),
            node("Shape", "x", "size", start=1),
            node("Cast", "size", "width", to=TensorProto.FLOAT),
            node("Div", f"s {first}", "y"),
            node("Div", f"s {second}", "z"),
        ]
        numbers = {
            "axis": np.array([1]),
            "weights": random(4).astype(np.float32),
            "at_32": np.float32([32]),
            "at_33": np.float32([33]),
        }
        return model(nodes, numbers, ("N", "W"), outputs="y z", dtype=np.float32)

    verdict = bnfold.verify(means("width", "width"), means("at_32", "at_33"), effort="fast", outputs_only=True)
    assert {sample.feeds["x"].shape[1] for sample in verdict.samples} == {32, 33}
    assert [each.is_equivalent for each in verdict.outputs if not each.is_deployed] == [False, False]
    assert not any("float64" in finding for finding in verdict.findings)


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "f"


def swap_outputs(proto: onnx.ModelProto) -> None:
    first = proto.graph.output[0]
    second = proto.graph.output[1]
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(first)
    first.CopyFrom(second)
    second.CopyFrom(kept)


def rename_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "z"
    proto.graph.node[0].input[0] = "z"


def change_rank(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 1


def change_size(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


@pytest.mark.parametrize("change", [rename_output, swap_outputs, rename_input, change_rank, change_size])
def test_another_interface_cannot_be_compared(change: Callable[[onnx.ModelProto], None]) -> None:
    other = network()
    change(other)
    with pytest.raises(IncomparableError, match=r"other (in|out)puts"):
        bnfold.verify(network(), other)


def test_a_fixed_tolerance_judges_outputs_alone() -> None:
    other = network(b=random(8, seed=1) + 1e-4)
    assert bnfold.verify(network(), other, atol=1e-2).is_equivalent
    assert not bnfold.verify(network(), other, atol=1e-7).is_equivalent
    assert bnfold.verify(network(), other, rtol=1e-7, atol=1e-2).values == ()


def test_inputs_are_found_in_every_form(tmp_path: Path) -> None:
    path = save(network(), tmp_path / "model.onnx")
    x = random(5, 3, 8, 8, dtype=np.float32)
    np.savez(tmp_path / "inputs.npz", x=x, label=np.arange(5))
    for folder in ("npy", "pb", "sets/test_data_set_0", "sets/test_data_set_1"):
        (tmp_path / folder).mkdir(parents=True)
    np.save(tmp_path / "npy" / "x.npy", x)
    for folder in ("pb", "sets/test_data_set_0", "sets/test_data_set_1"):
        (tmp_path / folder / "input_0.pb").write_bytes(numpy_helper.from_array(x).SerializeToString())
    for name, count in {"inputs.npz": 1, "npy": 1, "pb": 1, "sets": 2}.items():
        verdict = bnfold.verify(path, path, tmp_path / name)
        assert verdict.is_equivalent
        assert len(verdict.samples) == count
    assert bnfold.verify(path, path, {"x": x}).samples[0].shapes == {"x": [5, 3, 8, 8]}


def test_inputs_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(IncomparableError, match="the model wants"):
        bnfold.verify(network(), network(), {"x": random(5, 4, 8, 8, dtype=np.float32)})


def test_drawn_inputs_expose_faults() -> None:
    samples = {each.label.split("(")[0]: each.feeds["x"] for each in bnfold.verify(network(), network()).samples}
    kinds = {"normal", "normal, N=3", "uniform", "zeros", "ones", "impulses", "channels", "large", "far "}
    assert set(samples) == kinds
    assert not samples["zeros"].any()
    assert (samples["ones"] == 1).all()
    assert samples["impulses"].sum() == 3 * 9
    assert [np.flatnonzero(each.any(axis=(1, 2))).tolist() for each in samples["channels"]] == [[2], [0]]
    assert np.abs(samples["large"]).max() > 100
    assert np.abs(samples["far "]).max() > 1e9


def test_dynamic_dimensions_are_tried_at_two_sizes() -> None:
    shapes = [each.shapes["x"] for each in bnfold.verify(network(), network()).samples[:2]]
    assert shapes == [[2, 3, 32, 32], [1, 3, 33, 33]]
    shapes = [each.shapes["x"] for each in bnfold.verify(network(), network(), dims={"N": 4, "H": 9}).samples[:2]]
    assert shapes == [[4, 3, 9, 32], [4, 3, 9, 33]]


def test_a_size_that_the_model_does_not_take_is_not_tried() -> None:
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Reshape", "c shape", "y")]
    constants = {"w": random(4, 3, 3, 3, dtype=np.float32), "shape": np.array([-1, 4 * 64 * 64])}
    made = model(nodes, constants, ("N", 3, "H", "W"), dtype=np.float32)
    verdict = bnfold.verify(made, made)
    assert verdict.samples[0].shapes == {"x": [2, 3, 64, 64]}
    assert any("does not run with" in finding for finding in verdict.findings)


def test_integer_inputs_stay_below_the_length_of_their_table() -> None:
    nodes = [node("Gather", "table x", "g"), node("MatMul", "g w", "y")]
    constants = {"table": random(50, 8, dtype=np.float32), "w": random(8, 8, dtype=np.float32)}
    made = model(nodes, constants, (4, 16), dtype=np.float32)
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    x = bnfold.verify(made, made).samples[0].feeds["x"]
    assert 2 < x.max() < 50


def test_an_unknown_provider_is_an_error_and_no_fallback() -> None:
    for provider in ("cuda", "abacus"):
        with pytest.raises(IncomparableError, match=f"provider '{provider}'"):
            bnfold.verify(network(), network(), providers=[provider])


def test_what_the_runtime_changes_by_itself_is_a_finding() -> None:
    """ONNX Runtime folds this BatchNorm along the wrong axis at its default level."""
    nodes = [node("MatMul", "x w", "p"), node("Transpose", "p", "t", perm=[1, 0]), norm("t", "y")]
    constants = {"w": random(6, 6), **statistics(6)}
    made = model(nodes, {k: np.asarray(v, np.float32) for k, v in constants.items()}, (6, 6), dtype=np.float32)
    verdict = bnfold.verify(made, made)
    assert verdict.is_equivalent
    assert any("the runtime by itself changes 'y'" in finding for finding in verdict.findings)
    assert not bnfold.verify(made, made, providers=["cpu"]).is_equivalent


def test_what_a_provider_does_by_default_is_shown_and_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnx_runtime.STRICT, "cpu", onnx_runtime.Strictness("fewer bits", {}))
    verdict = bnfold.verify(network(), bnfold.fuse(network()), providers=["cpu"])
    assert verdict.is_equivalent
    notes = [each for each in verdict.findings if each.startswith("with fewer bits, the default of cpu, 'logits'")]
    assert len(notes) == 1
    assert "no more than rounding" in notes[0]


def test_assert_equivalent_reads_well() -> None:
    with pytest.raises(AssertionError) as raised:
        bnfold.testing.assert_equivalent(network(), network(b=random(8, seed=1) + 1e-3))
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("not equivalent:")
    assert lines[1] == "  starts at c (node Conv_c, channel 7)" or "starts at c (node Conv_c" in lines[1]
    assert "times what rounding explains" in lines[3]
    assert bnfold.testing.assert_equivalent(network(), bnfold.fuse(network())).is_equivalent


def test_every_effort_agrees() -> None:
    counts: list[Any] = []
    for effort in ("fast", "standard", "thorough"):
        verdict = bnfold.verify(network(), bnfold.fuse(network()), effort=effort)
        assert verdict.is_equivalent
        assert not bnfold.verify(network(), network(b=random(8, seed=1) + 1e-3), effort=effort).is_equivalent
        counts.append(len(verdict.samples))
    assert counts == [2, 10, 16]
