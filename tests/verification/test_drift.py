"""Running statistics beside data: what drifts is told, channel by channel, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bnfold.cli.commands import cli
from bnfold.errors import IncomparableError, NoEvidenceError
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.drift import DriftReport, measure_drift
from tests.report.schemas import insist_on_schema
from tests.report.test_junit import insist_on_junit
from tests.toys.command_line import run
from tests.toys.onnx_graphs import model, node, norm

FLOAT = np.float32

Array = np.ndarray[Any, Any]

MEAN, VARIANCE = np.array([0.5, -2.0, 3.0, 0.0]), np.array([1.0, 0.25, 4.0, 9.0])


def network(path: Path, mean: Array = MEAN, variance: Array = VARIANCE) -> Path:
    """A BatchNorm that reads the input, and another one behind a Relu."""
    constants = {
        **dict(zip(("gamma", "beta", "mean", "var"), (np.ones(4), np.zeros(4), mean, variance), strict=True)),
        **dict(zip(("2gamma", "2beta", "2mean", "2var"), (np.ones(4), np.zeros(4), mean, variance), strict=True)),
    }
    nodes = [norm("x", "b"), node("Relu", "b", "r"), norm("r", "y", "2")]
    stored = {name: array.astype(FLOAT) for name, array in constants.items()}
    onnx.save(model(nodes, stored, ("N", 4, 6, 6), dtype=FLOAT), path)
    return path


def data(path: Path, *, samples: int = 400, shift: float = 0.0, still: int | None = None, name: str = "x") -> Path:
    """As the statistics say, but for one channel, which is so many deviations off, and one that may not vary."""
    shape = (1, 4, 1, 1)
    x = np.random.default_rng(0).standard_normal((samples, 4, 6, 6)) * np.sqrt(VARIANCE.reshape(shape))
    x += MEAN.reshape(shape)
    x[:, 2] += shift * np.sqrt(VARIANCE[2])
    if still is not None:
        x[:, still] = MEAN[still]
    np.savez(path, **{name: x.astype(FLOAT)})
    return path


def first(report: DriftReport) -> tuple[int, float, float]:
    drift = report.drifts[0]
    return drift.farthest, float(drift.shift[drift.farthest]), float(drift.beyond.max())


def measured(folder: Path, **of_data: Any) -> DriftReport:
    return measure_drift(network(folder / "m.onnx"), InputOptions((data(folder / "x.npz", **of_data),)))


def test_data_as_the_statistics_say_do_not_drift(tmp_path: Path) -> None:
    report = measured(tmp_path)
    drift = report.drifts[0]
    assert (report.samples, report.is_untrained, len(report.drifts)) == (400, False, 2)
    assert drift.beyond.max() < 0.02
    assert drift.ratio == pytest.approx(np.ones(4), abs=0.05)
    assert drift.still == []


@pytest.mark.parametrize("shift", [-3.0, 0.5])
def test_a_channel_that_drifts_is_told_in_running_deviations(shift: float, tmp_path: Path) -> None:
    channel, told, beyond = first(measured(tmp_path, shift=shift))
    assert channel == 2
    assert told == pytest.approx(shift, abs=0.05)
    assert beyond == pytest.approx(abs(shift), abs=0.05)


def test_a_channel_that_never_varies_is_told(tmp_path: Path) -> None:
    assert measured(tmp_path, still=3).drifts[0].still == [3]


def test_a_few_samples_may_be_off_by_chance(tmp_path: Path) -> None:
    drift = measured(tmp_path, samples=4).drifts[0]
    assert (drift.chance > 0.05).all()
    alone = measured(tmp_path, samples=1).drifts[0]
    assert np.isnan(alone.chance).all()


def test_sets_of_data_are_one(tmp_path: Path) -> None:
    with np.load(data(tmp_path / "x.npz", shift=0.5)) as stored:
        parts = np.split(stored["x"], [100, 250])
    whole = measured(tmp_path, shift=0.5)
    split = measure_drift(tmp_path / "m.onnx", InputOptions(given=tuple({"x": part} for part in parts)))
    for one, other in zip(whole.drifts, split.drifts, strict=True):
        for name in ("shift", "chance", "ratio"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-6)


def test_a_new_model_is_told(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", np.zeros(4), np.ones(4))
    assert measure_drift(path, InputOptions((data(tmp_path / "x.npz"),))).is_untrained


def test_a_program_is_measured_like_a_model(tmp_path: Path) -> None:
    module = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    for batchnorm in (module[0], module[2]):
        batchnorm.running_mean.copy_(torch.from_numpy(MEAN))
        batchnorm.running_var.copy_(torch.from_numpy(VARIANCE))
    x = torch.zeros(2, 4, 6, 6)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "m.pt2")
    given = data(tmp_path / "p.npz", shift=0.5, name="input")
    found = measure_drift(tmp_path / "m.pt2", InputOptions((given,)))
    wanted = measured(tmp_path, shift=0.5)
    assert len(found.drifts) == 2
    for one, other in zip(found.drifts, wanted.drifts, strict=True):
        assert one.shift == pytest.approx(other.shift, abs=1e-4)
        assert one.ratio == pytest.approx(other.ratio, rel=1e-4)


def test_without_data_nothing_is_known(tmp_path: Path) -> None:
    with pytest.raises(NoEvidenceError, match="no inputs are given"):
        measure_drift(network(tmp_path / "m.onnx"), InputOptions())
    with pytest.raises(IncomparableError, match="no array for input 'x'"):
        measure_drift(tmp_path / "m.onnx", InputOptions((data(tmp_path / "x.npz", name="other"),)))


@pytest.mark.parametrize(("shift", "drifts"), [(0.0, False), (0.5, True)])
def test_the_gate_is_an_exit_code_and_in_every_record(shift: float, drifts: bool, tmp_path: Path) -> None:
    source, inputs = str(network(tmp_path / "m.onnx")), str(data(tmp_path / "x.npz", shift=shift))
    reports = {ending: tmp_path / f"r.{ending}" for ending in ("json", "xml", "html")}
    asked = [argument for path in reports.values() for argument in ("--report", path)]
    command = ["inspect", source, "--inputs", inputs, "--fail-on-drift"]
    assert run(tmp_path, *command, "99").returncode == 0
    done = run(tmp_path, *command, "0.3", "--json", *asked)
    assert done.returncode == 1  # of the second one, in any case
    first_alone = json.loads(done.stdout)["drift"]["batchnorms"][0]
    assert (abs(first_alone["shift"]) > 0.3) == drifts
    texts = {ending: path.read_text(encoding="utf-8") for ending, path in reports.items()}
    insist_on_schema(json.loads(texts["json"]))
    suite = insist_on_junit(texts["xml"])
    case = next(each for each in suite.iter("testcase") if each.attrib["classname"].endswith("/data"))
    assert (case.find("failure") is not None) == drifts
    assert 'id="data"' in texts["html"]


def test_a_batchnorm_that_cannot_be_told_of_is_counted(tmp_path: Path) -> None:
    made = onnx.load(network(tmp_path / "m.onnx"))
    made.graph.node[-1].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    made.graph.node[-1].output.extend(["new_mean", "new_var"])
    onnx.save(made, tmp_path / "m.onnx")
    report = measure_drift(tmp_path / "m.onnx", InputOptions((data(tmp_path / "x.npz"),)))
    assert (len(report.drifts), report.left_out) == (1, 1)


def test_data_that_are_no_numbers_tell_nothing(tmp_path: Path) -> None:
    x = np.zeros((2, 4, 6, 6), FLOAT)
    x[0, 1] = np.nan
    with pytest.raises(NoEvidenceError, match="reads NaN"):
        measure_drift(network(tmp_path / "m.onnx"), InputOptions(given=({"x": x},)))


def test_a_fold_tells_of_its_inputs_too(tmp_path: Path) -> None:
    source, inputs, report = network(tmp_path / "m.onnx"), data(tmp_path / "x.npz", shift=0.5), tmp_path / "r.html"
    command = ["fuse", str(source), "-o", str(tmp_path / "f.onnx"), "--inputs", str(inputs), "--json"]
    done = CliRunner().invoke(cli, [*command, "--report", str(report)])
    record = json.loads(done.stdout)
    insist_on_schema(record)
    assert done.exit_code == 0
    assert record["drift"]["largest"] > 0.3
    assert 'id="data"' in report.read_text(encoding="utf-8")


def test_a_fold_of_what_cannot_run_says_so_in_a_line(tmp_path: Path) -> None:
    made = onnx.load(network(tmp_path / "m.onnx"))
    made.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    made.graph.node[0].input[0] = "z"
    made.graph.node.insert(0, onnx.helper.make_node("Mystery", ["x"], ["z"], domain="nobody.knows"))
    onnx.save(made, tmp_path / "m.onnx")
    data(tmp_path / "x.npz")
    command = ["fuse", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "f.onnx"), "--inputs", str(tmp_path / "x.npz")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0
    assert done.stderr.startswith("bnfold: running statistics not compared with the inputs: ")
