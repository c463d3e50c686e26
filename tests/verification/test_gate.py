"""Gates for lossy conversions: what they let pass, what they do not, and what they say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

import bnfold
from bnfold import IncomparableError
from bnfold.cli.commands import cli
from tests.toys.onnx_graphs import model, node, random

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_cnn.onnx"
FLOAT = np.float32


def images(count: int = 64) -> dict[str, np.ndarray]:
    with np.load(MODELS / "digits_test.npz") as data:
        return {"image": data["image"][:count]}


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """One batch of images."""

    def __init__(self) -> None:
        self._left = iter([images()])

    def get_next(self) -> Any:
        return next(self._left, None)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What onnxruntime makes of a model: in float16, with its inputs and outputs or without, and in 8 bits."""
    folder = tmp_path_factory.mktemp("converted")
    bare = onnx.load(DIGITS)
    del bare.graph.value_info[:]  # of a fixed size, which the quantiser trips over
    onnx.save(bare, folder / "bare.onnx")
    paths = {name: folder / f"{name}.onnx" for name in ("half", "half inside", "static", "dynamic")}
    onnx.save(convert_float_to_float16(onnx.load(DIGITS)), paths["half"])
    onnx.save(convert_float_to_float16(onnx.load(DIGITS), keep_io_types=True), paths["half inside"])
    quantize_static(folder / "bare.onnx", paths["static"], Calibration(), quant_format=QuantFormat.QDQ)
    quantize_dynamic(folder / "bare.onnx", paths["dynamic"])
    return paths


KINDS = {
    "half": "the candidate is float16",
    "half inside": "the candidate is float16",
    "static": "weights and activations quantised to 8 bits",
    "dynamic": "weights and activations quantised to 8 bits",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_conversion_passes_its_gate_and_says_what_it_is_without(name: str, converted: dict[str, Path]) -> None:
    path = converted[name]
    verdict = bnfold.verify(DIGITS, path, images(), min_snr=25, min_argmax=0.95)
    assert verdict.is_equivalent, bnfold.testing.explain(verdict)
    assert verdict.values == ()
    judged = bnfold.verify(DIGITS, path, images())
    assert not judged.is_equivalent
    assert judged.findings[-1].startswith(f"{KINDS[name]}: ")
    strict = bnfold.verify(DIGITS, path, images(), min_snr=90)
    assert not strict.is_equivalent
    assert "dB, less than 90 dB" in strict.worst.reason


@pytest.mark.parametrize("name", KINDS)
def test_what_would_pass_passes(name: str, converted: dict[str, Path]) -> None:
    said = bnfold.verify(DIGITS, converted[name], images()).findings[-1]
    for options in said.rpartition("; ")[2].removesuffix(" would pass").split(", or "):
        words = options.split()
        asked = {word.removeprefix("--").replace("-", "_"): float(words[words.index(word) + 1]) for word in words[::2]}
        assert bnfold.verify(DIGITS, converted[name], images(), **asked).is_equivalent, options
        asked = {key: value / 2 if key == "atol" else value + 1 for key, value in asked.items() if key != "min_argmax"}
        assert not bnfold.verify(DIGITS, converted[name], images(), **asked).is_equivalent, options


def test_another_type_outside_is_a_difference_of_the_interface(converted: dict[str, Path]) -> None:
    verdict = bnfold.verify(DIGITS, converted["half"], images(), samples=1)
    assert verdict.interface == (
        "input 'image' was float32 and is float16",
        "output 'logits' was float32 and is float16",
    )
    gated = bnfold.verify(DIGITS, converted["half"], images(), min_snr=40)
    assert gated.interface == ()
    assert "output 'logits' was float32 and is float16: it is cast" in gated.findings


def line(*nodes: onnx.NodeProto, outputs: str = "y", **constants: np.ndarray) -> onnx.ModelProto:
    return model([*nodes], constants, (4, 8), outputs=outputs, dtype=FLOAT)


def times(factor: float, *, offset: float = 0.0) -> onnx.ModelProto:
    nodes = [node("Mul", "x factor", "z"), node("Add", "z offset", "y")]
    return line(*nodes, factor=np.full(8, factor, FLOAT), offset=np.full(8, offset, FLOAT))


def test_the_ratio_is_over_all_inputs_together() -> None:
    loud, soft = np.full((4, 8), 100, FLOAT), np.zeros((4, 8), FLOAT)
    off = times(1, offset=1)
    assert bnfold.verify(times(1), off, [{"x": loud}], min_snr=40).is_equivalent
    both = bnfold.verify(times(1), off, [{"x": loud}, {"x": soft}], min_snr=36.5)
    assert both.outputs[0].observation.snr_db == pytest.approx(20 * np.log10(100 / 2**0.5))
    assert both.is_equivalent
    assert not bnfold.verify(times(1), off, [{"x": loud}, {"x": soft}], min_snr=37.5).is_equivalent


def test_every_output_has_to_pass() -> None:
    def two(factor: float) -> onnx.ModelProto:
        nodes = [node("Mul", "x factor", "y"), node("Relu", "x", "z")]
        return line(*nodes, outputs="z y", factor=np.full(8, factor, FLOAT))

    verdict = bnfold.verify(two(1), two(1.1), min_snr=25)
    assert [output.is_equivalent for output in verdict.outputs if not output.is_deployed] == [True, False]
    assert not verdict.is_equivalent


@pytest.mark.parametrize("asked", [{"min_snr": 10.0}, {"min_argmax": 0.5}, {"min_snr": 10.0, "min_argmax": 0.5}])
def test_zeros_are_no_evidence(asked: dict[str, float]) -> None:
    with pytest.raises(IncomparableError, match="'y' cannot be judged: both are zero"):
        bnfold.verify(times(0), times(0, offset=-0.0), **asked)
    assert bnfold.verify(times(0), times(0, offset=-0.0), atol=1e-3).is_equivalent


def test_something_in_place_of_zeros_is_a_difference() -> None:
    verdict = bnfold.verify(times(0), times(0, offset=1e-6), min_snr=10)
    assert "-inf dB" in verdict.worst.reason


def test_no_classes_are_no_argmax() -> None:
    def column(scale: float) -> onnx.ModelProto:
        return line(node("MatMul", "x w", "y"), w=(scale * random(8, 1)).astype(FLOAT))

    with pytest.raises(IncomparableError, match="no classes"):
        bnfold.verify(column(1), column(1.01), min_argmax=0.9)
    assert bnfold.verify(column(1), column(1.01), min_argmax=0.9, min_snr=30).is_equivalent


def label(*, offset: float = 0.0) -> onnx.ModelProto:
    offsets = np.zeros(8, FLOAT)
    offsets[3] = offset
    made = line(node("Add", "x offset", "z"), node("ArgMax", "z", "y", axis=1), offset=offsets)
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return made


def test_integers_are_labels() -> None:
    x = np.eye(8, dtype=FLOAT)[:4]
    assert bnfold.verify(label(), label(offset=0.5), {"x": x}, min_snr=10).is_equivalent
    one = np.concatenate([x[:3], np.eye(8, dtype=FLOAT)[3:4] / 4])
    one[3, 5] = 0.5
    verdict = bnfold.verify(label(), label(offset=0.5), {"x": one}, min_snr=10)
    assert verdict.worst.reason == "1 of 4 elements is unequal"
    assert bnfold.verify(label(), label(offset=0.5), {"x": one}, min_argmax=0.75).is_equivalent
    assert not bnfold.verify(label(), label(offset=0.5), {"x": one}, min_argmax=0.76).is_equivalent


def test_numbers_that_overflow_pass_no_gate() -> None:
    half = onnx.ModelProto()
    half.CopyFrom(times(1e5))
    for info in (*half.graph.input, *half.graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    with np.errstate(over="ignore"):
        for tensor in half.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    verdict = bnfold.verify(times(1e5), half, min_snr=1, atol=1e9)
    assert "infinite where the reference has numbers" in verdict.worst.reason
    assert "no tolerance would pass" in verdict.findings[-1]


def test_a_conversion_that_fails_everywhere_is_offered_no_tolerance() -> None:
    verdict = bnfold.verify(times(1), times(-1), min_snr=30)
    assert "that is another model" in verdict.findings[-1]


def test_weights_that_are_rounded_are_told() -> None:
    weight = random(8, 8).astype(FLOAT)
    exact, rounded = (
        line(node("MatMul", "x w", "y"), w=each) for each in (weight, weight.astype(ml_dtypes.bfloat16).astype(FLOAT))
    )
    assert bnfold.verify(exact, rounded).findings[-1].startswith("weights rounded to bfloat16: ")


def renamed(made: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    for info in (*copy.graph.input, *copy.graph.output):
        info.name = names.get(info.name, info.name)
    for each in copy.graph.node:
        each.input[:] = [names.get(name, name) for name in each.input]
        each.output[:] = [names.get(name, name) for name in each.output]
    return copy


def test_renamed_interfaces_are_paired() -> None:
    other = renamed(times(1.01), x="input", y="output")
    with pytest.raises(IncomparableError, match=r"other inputs.*--map OLD=NEW"):
        bnfold.verify(times(1), other)
    gated = bnfold.verify(times(1), other, min_snr=30)
    assert gated.is_equivalent
    assert "input 'x' is compared with 'input'" in gated.findings
    assert bnfold.verify(times(1), renamed(times(1), x="input", y="output"), allow_interface=True).is_equivalent
    assert bnfold.verify(times(1), renamed(times(1), x="i", y="o"), renamed={"x": "i", "y": "o"}).is_equivalent
    with pytest.raises(IncomparableError, match="has no input or output 'z'"):
        bnfold.verify(times(1), other, renamed={"x": "z"})


def test_names_in_another_order_are_paired_only_by_hand() -> None:
    def two(first: str, second: str) -> onnx.ModelProto:
        nodes = [node("Relu", "x", "a"), node("Neg", "x", "b"), node("Identity", "a", first)]
        return line(*nodes, node("Identity", "b", second), outputs="p q")

    assert bnfold.verify(two("p", "q"), two("p", "q"), min_snr=30).is_equivalent
    assert not bnfold.verify(two("p", "q"), two("q", "p"), min_snr=30).is_equivalent
    assert bnfold.verify(two("p", "q"), two("q", "p"), min_snr=30, renamed={"p": "q", "q": "p"}).is_equivalent
    swapped = two("p", "q")
    swapped.graph.output.append(swapped.graph.output[0])
    del swapped.graph.output[0]
    with pytest.raises(IncomparableError, match="other outputs"):
        bnfold.verify(two("p", "q"), swapped, min_snr=30)


def test_nodes_in_any_order_are_sorted(tmp_path: Path) -> None:
    backwards = times(2, offset=1)
    nodes = list(backwards.graph.node)
    del backwards.graph.node[:]
    backwards.graph.node.extend(reversed(nodes))
    verdict = bnfold.verify(times(2, offset=1), backwards)
    assert verdict.is_equivalent
    assert "the nodes of the candidate are not in order: they were sorted" in verdict.findings
    onnx.save(backwards, tmp_path / "backwards.onnx")
    assert bnfold.verify(times(2, offset=1), tmp_path / "backwards.onnx").is_equivalent
    assert list(backwards.graph.node) == nodes[::-1]


def test_a_body_reads_what_a_later_node_makes() -> None:
    then = helper.make_graph([node("Add", "x later", "t")], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([node("Identity", "x", "e")], "else", [], [onnx.ValueInfoProto(name="e")])
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)
    nodes = [node("Mul", "x factor", "later"), choice]
    constants = {"yes": np.array(True), "factor": np.full(8, 2, FLOAT)}
    straight, backwards = line(*nodes, **constants), line(*nodes[::-1], **constants)
    assert bnfold.verify(straight, backwards).is_equivalent


def test_a_cycle_is_no_order(tmp_path: Path) -> None:
    onnx.save(line(node("Add", "x b", "a"), node("Add", "a a", "b"), node("Relu", "b", "y")), tmp_path / "cycle.onnx")
    with pytest.raises(bnfold.InvalidModelError, match="which nothing before it makes"):
        bnfold.verify(times(1), tmp_path / "cycle.onnx")


def test_the_command_line_and_its_records(tmp_path: Path, converted: dict[str, Path]) -> None:
    np.savez(tmp_path / "inputs.npz", **images())  # type: ignore[arg-type]
    arguments = ["verify", str(DIGITS), str(converted["static"]), "--inputs", str(tmp_path / "inputs.npz")]
    run = CliRunner().invoke(cli, [*arguments, "--min-snr", "25", "--min-argmax", "0.9", "--json"])
    assert run.exit_code == 0, run.output
    record = json.loads(run.stdout)
    assert record["gate"] == {"min_snr": 25, "min_argmax": 0.9, "atol": None, "rtol": None}
    assert record["outputs"][0]["budget"] is None
    red = CliRunner().invoke(cli, [*arguments, "--min-snr", "80", "--report", str(tmp_path / "gate.xml")])
    assert red.exit_code == 1
    assert "NOT within --min-snr 80" in red.output
    assert "weights and activations quantised to 8 bits: " in (tmp_path / "gate.xml").read_text()


@pytest.mark.parametrize("wrong", ["--map x", "--map =y", "--map x=", "--map x=y --map x=z", "--min-argmax 2"])
def test_wrong_use_of_a_gate(wrong: str) -> None:
    assert CliRunner().invoke(cli, ["verify", "a.onnx", "b.onnx", *wrong.split()]).exit_code == 2
