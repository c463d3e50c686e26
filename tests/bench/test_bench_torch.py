"""`bench` of PyTorch models."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnfold
from bnfold import IncomparableError, MissingExtraError, UnsupportedModelError
from tests.report.schemas import insist_on_schema

torch = pytest.importorskip("torch")

from bnfold.bench import comparison  # noqa: E402
from bnfold.bench.models import find_subjects  # noqa: E402
from bnfold.bench.options import BenchOptions  # noqa: E402
from bnfold.report.bench_record import record_bench  # noqa: E402
from bnfold.runtimes import timed_torch_session  # noqa: E402
from bnfold.runtimes.setting import Setting  # noqa: E402

QUICK: dict[str, Any] = {"rounds": 32, "threads": 1}
ON_CPU = Setting("cpu", None, 1)

READS_FILES = importlib.util.find_spec("bnfold.frontends.torch") and importlib.util.find_spec(
    "bnfold.frontends.torch.files.programs"
)


def network() -> Any:
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))


class Named(torch.nn.Module):  # type: ignore[misc]
    """A module with two inputs, one of them by keyword."""

    def forward(self, x: Any, *, y: Any) -> Any:
        return x - y


def program(*, batch: Any = None) -> Any:
    shapes = ({0: batch},) if batch else None
    return torch.export.export(network().eval(), (torch.ones(2, 3, 8, 8),), dynamic_shapes=shapes)


def test_modules_are_timed_and_stay_as_they_are() -> None:
    module = network().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = bnfold.benchmark([module, module], inputs=[torch.randn(2, 3, 8, 8)], **QUICK)
    first, second = report.entries
    assert (first.verdict, first.subject.batchnorms, first.cold) == (None, 2, None)
    assert second.verdict is not None
    assert first.details["engine"] == "torch eager"
    assert first.setting.level is None
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_sessions_share_no_memory() -> None:
    module = network()
    feed = {"#0": np.zeros((2, 3, 8, 8), np.float32)}
    sessions = [timed_torch_session.TorchSession(module, ON_CPU, [feed]) for _ in range(2)]
    places = [{each.data_ptr() for each in session._module.parameters()} for session in sessions]
    assert places[0].isdisjoint(places[1])
    assert places[0].isdisjoint({each.data_ptr() for each in module.parameters()})


def test_a_module_is_called_by_position_or_by_name() -> None:
    module, (x, y) = Named(), np.arange(6, dtype=np.float32).reshape(2, 3)
    assert timed_torch_session.TorchSession(module, ON_CPU, [{"x": x, "y": y}])._calls[0][1].keys() == {"x", "y"}
    with pytest.raises(IncomparableError, match="PyTorch cannot run it"):
        timed_torch_session.TorchSession(module, ON_CPU, [{"#0": x, "#1": y}]).time(0)


def test_a_program_is_called_as_it_was_exported(tmp_path: Path) -> None:
    exported = torch.export.export(Named(), (torch.ones(3),), {"y": torch.ones(3)})
    (subject,) = find_subjects([exported], tmp_path)
    assert subject.inputs is not None
    assert [declared.name for declared in subject.inputs] == ["x", "y"]
    session = timed_torch_session.TorchSession(
        exported, ON_CPU, [{"x": np.ones(3, np.float32), "y": np.ones(3, np.float32)}]
    )
    assert session.time(0) > 0


def test_programs_say_what_they_read_and_hold(tmp_path: Path) -> None:
    (subject,) = find_subjects([program(batch=torch.export.Dim("N", min=1, max=64))], tmp_path)
    assert subject.inputs is not None
    assert subject.outputs is not None
    (declared,) = subject.inputs
    assert (declared.dtype, declared.shape[1:], type(declared.shape[0])) == (np.float32, (3, 8, 8), str)
    assert (subject.batchnorms, len(subject.outputs)) == (2, 1)
    assert subject.file_bytes is not None
    assert subject.nodes == 5


def test_modules_need_inputs() -> None:
    with pytest.raises(UnsupportedModelError, match="pass its inputs"):
        bnfold.benchmark([network()])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_device_that_is_not_there_is_an_error(provider: str) -> None:
    with pytest.raises(MissingExtraError, match=provider):
        bnfold.benchmark([network()], inputs=[np.zeros((2, 3, 8, 8), np.float32)], providers=[provider])


@pytest.mark.filterwarnings("error")
def test_settings_of_the_process_come_back() -> None:
    def state() -> tuple[Any, ...]:
        return torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = state()
    with timed_torch_session.configured(Setting("cpu", None, before[0] + 1, tf32=True)):
        assert state() == (before[0] + 1, "high", True)
    assert state() == before


@pytest.mark.skipif(not READS_FILES, reason="the PyTorch front end is not here")
def test_files_of_both_engines_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(program(), path)
    options = BenchOptions(rounds=comparison.FEWEST_ROUNDS, threads=1, starts=1)
    record = json.loads(json.dumps(record_bench(comparison.run([path, path], options))))
    insist_on_schema(record)
    entries = record["entries"]
    assert [entry["level"] for entry in entries] == [None, None]
    assert all(entry["session_ms"] > 0 and entry["peak_bytes"] > 0 and entry["batchnorms"] == 2 for entry in entries)
