"""Two models agree on nothing: inputs that show nothing are an error, whoever gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.api import fuse_file
from bnfold.errors import IncomparableError, NoEvidenceError
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.equivalence import verify, verify_files
from bnfold.verification.options import CompareOptions
from tests.toys.onnx_graphs import model, node, norm, random, statistics

FLOAT = np.float32


def chain(kernel: np.ndarray[Any, Any], *, batch: int | str = "N") -> onnx.ModelProto:
    """A convolution with a BatchNorm."""
    nodes = [node("Conv", "x w", "c"), norm("c", "y")]
    return model(nodes, {"w": kernel, **statistics(4, dtype=FLOAT)}, (batch, 3, 5, 5), dtype=FLOAT)


RIGHT = random(4, 3, 3, 3, dtype=FLOAT)
WRONG = RIGHT + 1


@pytest.mark.parametrize("kind", ["empty", "nan"])
@pytest.mark.parametrize("others", [0, 1])
def test_a_set_that_shows_nothing_is_an_error_that_names_it(kind: str, others: int) -> None:
    bad = np.zeros((0, 3, 5, 5), FLOAT) if kind == "empty" else np.full((1, 3, 5, 5), np.nan, FLOAT)
    sets = [*[{"x": random(1, 3, 5, 5, dtype=FLOAT)}] * others, {"x": bad}]
    with pytest.raises(NoEvidenceError, match=f"given {others}: .*{'no element' if kind == 'empty' else 'NaN'}"):
        verify(chain(RIGHT), chain(WRONG), inputs=sets)


def test_no_set_at_all_is_an_error() -> None:
    with pytest.raises(NoEvidenceError, match="no inputs are given"):
        verify(chain(RIGHT), chain(WRONG), inputs=[])


def test_a_nan_that_leaves_numbers_is_an_input_like_any_other() -> None:
    feeds = random(2, 3, 5, 5, dtype=FLOAT)
    feeds[0] = np.nan
    assert verify(chain(RIGHT), chain(RIGHT), inputs={"x": feeds}).is_equivalent
    assert not verify(chain(RIGHT), chain(WRONG), inputs={"x": feeds}).is_equivalent


def cached(kernel: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """The same beside a cache that may be empty, and comes out again."""
    made = chain(kernel)
    for values in (made.graph.input, made.graph.output):
        name = "past" if values is made.graph.input else "present"
        values.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["L", 2]))
    made.graph.node.append(node("Identity", "past", "present"))
    return made


def test_an_empty_output_beside_others_is_no_evidence_and_no_failure() -> None:
    feeds = {"x": random(1, 3, 5, 5, dtype=FLOAT), "past": np.zeros((0, 2), FLOAT)}
    verdict = verify(cached(RIGHT), cached(RIGHT), inputs=feeds)
    assert verdict.is_equivalent
    assert any("'present' has no element" in each for each in verdict.findings)
    assert not verify(cached(RIGHT), cached(WRONG), inputs=feeds).is_equivalent


def test_of_an_output_that_is_empty_once_the_other_inputs_tell() -> None:
    first, second = ({"x": random(1, 3, 5, 5, dtype=FLOAT), "past": np.ones((size, 2), FLOAT)} for size in (0, 3))
    other = cached(RIGHT)
    other.graph.node[-1].CopyFrom(node("Neg", "past", "present"))
    assert not verify(cached(RIGHT), other, inputs=[first, second]).is_equivalent
    assert not any("no element" in each for each in verify(cached(RIGHT), other, inputs=[first, second]).findings)


def test_a_model_without_elements_cannot_be_compared() -> None:
    with pytest.raises(NoEvidenceError, match="'y' has no element on any input"):
        verify(chain(RIGHT, batch=0), chain(WRONG, batch=0))


@pytest.mark.parametrize("kind", ["empty", "nan"])
def test_fuse_writes_nothing_where_its_inputs_show_nothing(kind: str, tmp_path: Path) -> None:
    source, output, inputs = tmp_path / "m.onnx", tmp_path / "out.onnx", tmp_path / "x.npz"
    onnx.save(chain(RIGHT), source)
    np.savez(inputs, x=np.zeros((0, 3, 5, 5), FLOAT) if kind == "empty" else np.full((1, 3, 5, 5), np.nan, FLOAT))
    with pytest.raises(NoEvidenceError, match=r"x\.npz"):
        fuse_file(source, output, comparison=CompareOptions(InputOptions((inputs,))))
    assert not output.exists()


def stored(folder: Path, kernel: np.ndarray[Any, Any]) -> Path:
    """A model whose weights are in a file of their own."""
    folder.mkdir()
    onnx.save(chain(kernel), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def test_files_of_the_same_bytes_are_the_same_model_and_not_run(tmp_path: Path) -> None:
    first, second = stored(tmp_path / "a", RIGHT), stored(tmp_path / "b", RIGHT)
    verdict = verify_files(first, second, CompareOptions()).verdict
    assert verdict.is_equivalent
    assert not verdict.samples
    assert verify_files(first, second, CompareOptions(providers=("cpu",))).verdict.samples


def test_files_whose_external_data_differ_are_run(tmp_path: Path) -> None:
    first, second = stored(tmp_path / "a", RIGHT), stored(tmp_path / "b", WRONG)
    assert first.read_bytes() == second.read_bytes()
    assert not verify_files(first, second, CompareOptions()).verdict.is_equivalent


def scattered(*end: onnx.NodeProto) -> onnx.ModelProto:
    """The sine of numbers so large that rounding alone makes others of them."""
    constants = {"w": random(8, 8, dtype=FLOAT), "k": np.array(1e8, FLOAT), "none": np.array(0, FLOAT)}
    nodes = [node("MatMul", "x w", "p"), node("Mul", "p k", "q"), node("Sin", "q", "s"), *end]
    return model(nodes, constants, (4, 8), dtype=FLOAT)


@pytest.mark.parametrize("other", [node("Neg", "s", "y"), node("Mul", "s none", "y")])
def test_what_rounding_scatters_cannot_be_judged(other: onnx.NodeProto) -> None:
    """Its negative and zero agree with it as much as its own rounding does, and all three are zero for zeros."""
    original = scattered(node("Identity", "s", "y"))
    with pytest.raises(IncomparableError, match="'y' cannot be judged"):
        bnfold.verify(original, scattered(other))
    assert bnfold.verify(original, original).is_equivalent


def data_set(folder: Path, made: onnx.ModelProto, **stored: np.ndarray[Any, Any]) -> Path:
    """A folder with an input, and outputs under their names, or under none where that begins with an underscore."""
    folder.mkdir()
    x = random(2, 3, 5, 5, dtype=FLOAT)
    (folder / "input_0.pb").write_bytes(numpy_helper.from_array(x).SerializeToString())
    outputs = stored or {"y": reference_run(made, x)}
    for index, (name, array) in enumerate(outputs.items()):
        tensor = numpy_helper.from_array(array, "" if name.startswith("_") else name)
        (folder / f"output_{index}.pb").write_bytes(tensor.SerializeToString())
    return folder


def reference_run(made: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(onnx.reference.ReferenceEvaluator(made).run(["y"], {"x": x})[0])


def test_stored_outputs_are_those_of_the_reference(tmp_path: Path) -> None:
    place = data_set(tmp_path / "test_data_set_0", chain(RIGHT))
    verdict = verify(chain(RIGHT), chain(RIGHT), inputs=place)
    assert verdict.is_equivalent
    assert any("test_data_set_0: the reference gives the stored outputs" in note for note in verdict.findings)


@pytest.mark.parametrize("name", ["y", "_", "other"])
def test_stored_outputs_of_another_model_are_no_evidence(name: str, tmp_path: Path) -> None:
    x = random(2, 3, 5, 5, dtype=FLOAT)
    place = data_set(tmp_path / "set", chain(RIGHT), **{name: reference_run(chain(WRONG), x)})
    with pytest.raises(IncomparableError, match="set: the reference does not give the stored outputs"):
        verify(chain(RIGHT), chain(RIGHT), inputs=place)


def test_stored_outputs_that_are_less_precise_are_a_note(tmp_path: Path) -> None:
    x = random(2, 3, 5, 5, dtype=FLOAT)
    rounded = np.round(reference_run(chain(RIGHT), x), 1)
    verdict = verify(chain(RIGHT), chain(RIGHT), inputs=data_set(tmp_path / "set", chain(RIGHT), y=rounded))
    assert verdict.is_equivalent
    assert any(note.startswith("set, stored outputs: output 'y' is off by") for note in verdict.findings)


@pytest.mark.parametrize("many", [1, 2])
def test_stored_outputs_that_no_output_has_are_an_error(many: int, tmp_path: Path) -> None:
    right = reference_run(chain(RIGHT), random(2, 3, 5, 5, dtype=FLOAT))
    stored = {"y": right[:1]} if many == 1 else {"y": right, "z": right}
    with pytest.raises(IncomparableError, match="stored output"):
        verify(chain(RIGHT), chain(RIGHT), inputs=data_set(tmp_path / "set", chain(RIGHT), **stored))
