"""Attestations: in-toto statements that others read and sign, written with the model or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from google.protobuf import json_format
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from bnfold.api import files
from bnfold.errors import NotEquivalentError, OutputError, OutputExistsError
from bnfold.frontends.onnx.files import publishing
from bnfold.proof.checker import Proof
from bnfold.proof.failure import ProofError
from bnfold.verification import attestation, onnx_proof
from tests.toys.onnx_graphs import model, node, norm, random, statistics

MODELS = Path(__file__).parents[2] / "models"

SCHEMA = json.loads(Path(attestation.__file__).with_name("attestation.schema.json").read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path) -> dict[str, Any]:
    """A statement that in-toto takes, and that is what the schema says."""
    text = path.read_text()
    statement = Statement.copy_from_pb(json_format.Parse(text, StatementMessage()))
    statement.validate()
    document: dict[str, Any] = json.loads(text)
    jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
    for each in document["predicate"]["original"]:
        ResourceDescriptor(each["name"], digest=each["digest"]).validate()
    return document


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(MODELS / "digits_cnn.onnx", tmp_path / "a.onnx")
    return tmp_path


def test_a_statement_says_what_was_made_of_what_and_how(folder: Path) -> None:
    command = ["fuse", "a.onnx", "-o", "b.onnx", "--attest", "b.json", "--skip", "no*", "--only", "*_1__0", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", *command, "--no-merge"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = read(folder / "b.json")
    assert document["subject"] == [{"name": "b.onnx", "digest": {"sha256": sha256(folder / "b.onnx")}}]
    predicate = document["predicate"]
    assert predicate["original"] == [{"name": "a.onnx", "digest": {"sha256": sha256(folder / "a.onnx")}}]
    options = {"only": ["*_1__0"], "skip": ["no*"], "merge": False, "lower": None, "verify": "proof"}
    assert predicate["options"] == options
    assert predicate["outcomes"] == {"found": 4, "folded": 0, "kept": {"skipped": 4}, "affines": 0, "merges": 0}
    assert predicate["proof"]["identical"]
    assert predicate["verdict"] == "proved"


@pytest.mark.parametrize(
    ("checks", "verdict"), [("proof", "proved"), ("full", "proved"), ("none", "proved")], ids=lambda each: each
)
def test_the_verdict_rests_on_a_proof(checks: str, verdict: str, folder: Path) -> None:
    files.fuse_file(folder / "a.onnx", folder / "b.onnx", checks=checks, attestation=folder / "b.json")
    predicate = read(folder / "b.json")["predicate"]
    assert predicate["verdict"] == verdict
    assert predicate["proof"]["weights"] == 27_920
    assert (predicate["run"] is None) == (checks != "proof")
    assert (predicate["comparison"] is None) == (checks != "full")


def test_external_data_is_a_subject_and_an_original_of_its_own(tmp_path: Path) -> None:
    constants = {"w": random(16, 4, 3, 3, dtype=np.float32), **statistics(16, dtype=np.float32)}
    proto = model([node("Conv", "x w", "c"), norm("c", "y")], constants, (1, 4, 8, 8), dtype=np.float32)
    onnx.save(proto, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=1024)
    files.fuse_file(tmp_path / "a.onnx", tmp_path / "b.onnx", attestation=tmp_path / "b.json")
    document = read(tmp_path / "b.json")
    for described in (document["subject"], document["predicate"]["original"]):
        assert len(described) == 2
        assert all(each["digest"]["sha256"] == sha256(tmp_path / each["name"]) for each in described)


def test_a_program_is_attested_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 4, 4),)), tmp_path / "a.pt2")
    files.fuse_file(tmp_path / "a.pt2", tmp_path / "b.pt2", attestation=tmp_path / "b.json")
    predicate = read(tmp_path / "b.json")["predicate"]
    assert (predicate["proof"]["proved"], predicate["proof"]["folds"], predicate["verdict"]) == (True, 1, "proved")
    assert predicate["original"] == [{"name": "a.pt2", "digest": {"sha256": sha256(tmp_path / "a.pt2")}}]


def test_nothing_is_attested_of_what_is_not_proved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ProofError("weights", "conv", "it is wrong")
    failed = Proof({"wiring": 0, "weights": 0, "carriers": 0, "merges": 0}, 0, 0, 0.0, (failure,), 0.0)
    monkeypatch.setattr(onnx_proof, "check_pair", lambda *_: failed)
    with pytest.raises(NotEquivalentError):
        files.fuse_file(folder / "a.onnx", folder / "b.onnx", attestation=folder / "b.json")
    assert [each.name for each in folder.iterdir()] == ["a.onnx"]


def test_a_statement_appears_with_the_model_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "b.json").write_text("old")
    with pytest.raises(OutputExistsError):
        files.fuse_file(folder / "a.onnx", folder / "b.onnx", attestation=folder / "b.json")

    def fail(*_: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(files, "publish", fail)
    beside = {"attestation": folder / "b.json", "proof": folder / "p.json"}
    with pytest.raises(OutputError, match="full"):
        files.fuse_file(folder / "a.onnx", folder / "b.onnx", overwrite=True, **beside)
    assert sorted(each.name for each in folder.iterdir()) == ["a.onnx", "b.json"]
    assert (folder / "b.json").read_text() == "old"


def test_of_two_texts_neither_appears_where_one_cannot(tmp_path: Path) -> None:
    texts = {tmp_path / "a": "one", tmp_path / "nowhere" / "b": "two"}
    with pytest.raises(OutputError), publishing.beside(texts):
        raise AssertionError("never done")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.onnx", "b.onnx", "p.json"])
def test_a_statement_needs_a_file_of_its_own(name: str, folder: Path) -> None:
    with pytest.raises(OutputError, match="a file of its own"):
        files.fuse_file(
            folder / "a.onnx", folder / "b.onnx", overwrite=True, proof=folder / "p.json", attestation=folder / name
        )
    assert [each.name for each in folder.iterdir()] == ["a.onnx"]


def test_a_model_that_changes_meanwhile_is_not_attested(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prove = onnx_proof.OnnxProver.prove_file

    def prove_slowly(*arguments: Any) -> Proof:
        (folder / "a.onnx").write_bytes((MODELS / "digits_mlp.onnx").read_bytes())
        return prove(*arguments)

    monkeypatch.setattr(onnx_proof.OnnxProver, "prove_file", prove_slowly)
    with pytest.raises(OutputError, match="changed while it was read"):
        files.fuse_file(folder / "a.onnx", folder / "b.onnx", checks="none", attestation=folder / "b.json")
    assert [each.name for each in folder.iterdir()] == ["a.onnx"]
