"""Certificates on the command line: written with the model or not at all, and checked without running anything."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold import api
from bnfold.errors import NotEquivalentError, OutputError, UnsupportedModelError
from bnfold.proof.checker import Proof
from bnfold.proof.failure import ProofError
from bnfold.proof.models import Files, digest
from bnfold.verification import onnx_proof
from tests.toys.command_line import run
from tests.toys.onnx_graphs import model, node, norm, random, statistics

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, what it folds into, and the certificate."""
    shutil.copy(MODELS / "digits_residual.onnx", tmp_path / "a.onnx")
    done = run(tmp_path, "fuse", "a.onnx", "-o", "b.onnx", "--proof", "p.json", "--no-verify", "--json")
    assert done.returncode == 0, done.stderr
    proof = json.loads(done.stdout)["proof"]
    assert proof["proved"]
    assert proof["folds"] == 8
    assert proof["worst_ulp"] <= 0.5
    return tmp_path


def test_a_certificate_is_checked_and_nothing_is_run(folder: Path) -> None:
    done = run(folder, "verify", "a.onnx", "b.onnx", "--proof", "p.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("proved: 8 folds, 84,624 weights to half an ulp, 0 carriers, 0 merges in ")
    found = json.loads(run(folder, "verify", "a.onnx", "b.onnx", "--proof", "p.json", "--json").stdout)
    assert found["equivalent"]
    assert found["outputs"] == []
    assert found["proof"]["obligations"]["wiring"] == 1


@pytest.mark.parametrize("ending", ["html", "xml", "json"])
def test_a_proof_has_a_report(folder: Path, ending: str) -> None:
    done = run(folder, "verify", "a.onnx", "b.onnx", "--proof", "p.json", "--report", f"r.{ending}")
    assert (done.returncode, done.stderr) == (0, "")
    text = (folder / f"r.{ending}").read_text()
    if ending == "xml":
        assert 'tests="1" failures="0"' in text
        assert 'name="proof"' in text
    else:
        assert "84624" in text


def test_a_model_that_was_changed_since_is_not_the_certificates(folder: Path) -> None:
    proto = onnx.load(folder / "b.onnx")
    tensor = next(each for each in proto.graph.initializer if each.name.endswith("_folded"))
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1).view(np.int32)[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, folder / "c.onnx")
    done = run(folder, "verify", "a.onnx", "c.onnx", "--proof", "p.json")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "bnfold: the certificate is of another result\n"

    document = json.loads((folder / "p.json").read_text())
    document["result"] = digest(Files(proto))
    (folder / "q.json").write_text(json.dumps(document))
    done = run(folder, "verify", "a.onnx", "c.onnx", "--proof", "q.json")
    assert done.returncode == 1
    assert done.stdout.startswith("NOT proved: weights: ")
    assert re.search(r"should be .*, \d\.\d+ ulp away", done.stdout)


@pytest.mark.parametrize("content", ["", "{}", "half"])
def test_what_is_no_certificate_is_one_line(folder: Path, content: str) -> None:
    text = (folder / "p.json").read_text()
    (folder / "q.json").write_text(text[: len(text) // 2] if content == "half" else content)
    done = run(folder, "verify", "a.onnx", "b.onnx", "--proof", "q.json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "not a certificate" in done.stderr


def test_a_certificate_that_is_missing_is_one_line(folder: Path) -> None:
    done = run(folder, "verify", "a.onnx", "b.onnx", "--proof", "nowhere.json")
    assert (done.returncode, done.stderr) == (3, "bnfold: nowhere.json: No such file or directory\n")


def test_what_is_not_proved_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ProofError("weights", "conv", "channel 3 of its bias is 1.0 and should be 2.0, 8 ulp away")
    met = {"wiring": 0, "weights": 0, "carriers": 0, "merges": 0}
    monkeypatch.setattr(onnx_proof, "check_pair", lambda *_: Proof(met, 0, 0, 0.0, (failure,), 0.0))
    with pytest.raises(
        NotEquivalentError, match=r"not proved: weights: 'conv': channel 3 .* 1\.0 .* 2\.0.*report this"
    ):
        api.fuse_file(MODELS / "digits_mlp.onnx", tmp_path / "b.onnx", proof=tmp_path / "p.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.onnx", "b.onnx"])
def test_a_certificate_does_not_take_the_place_of_a_model(name: str, tmp_path: Path) -> None:
    shutil.copy(MODELS / "digits_mlp.onnx", tmp_path / "a.onnx")
    before = (tmp_path / "a.onnx").read_bytes()
    with pytest.raises(OutputError, match="a file of its own"):
        api.fuse_file(tmp_path / "a.onnx", tmp_path / "b.onnx", proof=tmp_path / name, overwrite=True)
    assert (tmp_path / "a.onnx").read_bytes() == before
    assert not (tmp_path / "b.onnx").exists()


def test_a_certificate_is_of_two_files_of_one_kind(tmp_path: Path) -> None:
    api.fuse_file(MODELS / "digits_cnn.onnx", tmp_path / "a.onnx", proof=tmp_path / "p.json", checks="none")
    (tmp_path / "b.pt2").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="two files of one kind"):
        api.prove_files(MODELS / "digits_cnn.onnx", tmp_path / "b.pt2", tmp_path / "p.json")


def test_weights_in_another_file_are_part_of_the_proof(tmp_path: Path) -> None:
    proto = onnx.load(MODELS / "digits_cnn.onnx")
    onnx.save_model(proto, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    api.fuse_file(tmp_path / "a.onnx", tmp_path / "b.onnx", proof=tmp_path / "p.json", checks="none")
    files = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "p.json"
    assert api.prove_files(*files).proof.is_proved
    content = bytearray((tmp_path / "a.data").read_bytes())
    content[-5000] ^= 1
    (tmp_path / "a.data").write_bytes(content)
    with pytest.raises(Exception, match="of another original"):
        api.prove_files(*files)


def test_the_digest_does_not_depend_on_the_name_of_the_data(tmp_path: Path) -> None:
    proto = onnx.load(MODELS / "digits_cnn.onnx")
    digests = set()
    for name in ("one", "other"):
        onnx.save_model(
            onnx.ModelProto.FromString(proto.SerializeToString()),
            tmp_path / f"{name}.onnx",
            save_as_external_data=True,
            location=f"{name}.data",
            size_threshold=0,
        )
        digests.add(digest(Files(onnx.load(tmp_path / f"{name}.onnx", load_external_data=False), tmp_path)))
    assert len(digests) == 1


def conv(dtype: Any, **options: Any) -> onnx.ModelProto:
    constants = {"w": random(3, 4, 3, 3, dtype=dtype), **statistics(3, dtype=dtype)}
    nodes = [node("Conv", "x w", "c"), norm("c", "y", **options.pop("norm", {})), *options.pop("behind", ())]
    return model(nodes, constants, options.pop("shape", (2, 4, 5, 5)), dtype=dtype, **options)


def shapeless() -> onnx.ModelProto:
    proto = conv(np.float32)
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.ClearField("shape")
    return proto


def custom() -> onnx.ModelProto:
    proto = conv(np.float32)
    proto.graph.node.append(onnx.helper.make_node("Plugin", ["y"], ["z"], domain="my.domain"))
    proto.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    proto.graph.output.append(onnx.ValueInfoProto(name="z", type=proto.graph.output[0].type))
    return proto


def drawn() -> onnx.ModelProto:
    proto = conv(np.float32)
    proto.graph.node.append(node("RandomNormalLike", "y", "r"))
    proto.graph.output.append(onnx.ValueInfoProto(name="r", type=proto.graph.output[0].type))
    return proto


def crashing() -> onnx.ModelProto:
    """ONNX Runtime dies of it."""
    proto = conv(np.float32, opset=9)
    proto.graph.node[1].output.extend(["", "", "", ""])
    return proto


HOPELESS = {
    "float64": (lambda: conv(np.float64), "not run: onnxruntime has no kernel for Conv(11) of this type"),
    "bfloat16": (lambda: conv(ml_dtypes.bfloat16), "not run: onnxruntime has no kernel for bfloat16 in Conv"),
    "opset 6": (
        lambda: conv(np.float32, opset=6, ir_version=3, norm={"is_test": 1}),
        "not run: onnxruntime has no kernel for BatchNormalization(6) of this type",
    ),
    "a custom operator": (custom, "not run: onnxruntime does not know the operator my.domain:Plugin"),
    "an input without a shape": (shapeless, "not run: nobody knows the shape of the input 'x'; give --inputs"),
    "random numbers": (drawn, "output 'r' is not compared: the model draws random numbers"),
    "a crash of the runtime": (crashing, "not run: onnxruntime crashed on it (signal 11)"),
}


@pytest.mark.parametrize("case", HOPELESS)
def test_what_no_runtime_can_judge_is_proved(case: str, tmp_path: Path) -> None:
    onnx.save(HOPELESS[case][0](), tmp_path / "a.onnx")
    done = run(tmp_path, "fuse", "a.onnx", "-o", "b.onnx", "--proof", "p.json", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 folded, 0 kept" in done.stdout
    assert "verified: 1 fold proved (111 weights to " in done.stdout
    assert HOPELESS[case][1] in done.stdout
    assert api.prove_files(tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "p.json").proof.is_proved


@pytest.mark.parametrize("option", [["--min-snr", "30"], ["--provider", "cpu"], ["--inputs", "x.npz"], ["--seed", "0"]])
def test_what_says_how_to_run_has_no_place_beside_a_check(option: list[str], folder: Path) -> None:
    done = run(folder, "verify", "a.onnx", "b.onnx", "--proof", "p.json", *option)
    assert done.returncode == 2
    assert f"--proof runs nothing: {option[0]} has no effect beside it" in done.stderr
