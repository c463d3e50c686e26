"""`bench` measures what it says it measures. No test asserts how long anything takes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console

import bnfold
from bnfold import IncomparableError, InvalidModelError, MissingExtraError, UnsupportedModelError
from bnfold.api import fuse_file
from bnfold.bench import comparison, worker
from bnfold.bench.cold import start_cold
from bnfold.bench.fingerprint import fingerprint
from bnfold.bench.models import find_subjects
from bnfold.bench.options import BenchOptions
from bnfold.bench.rounds import ROUNDS_PER_SITTING, Track, take_turns
from bnfold.report import bench_terminal, junit
from bnfold.report.bench_record import record_bench
from bnfold.runtimes import timed_onnx_session
from bnfold.runtimes.setting import Engine, Level, Setting
from bnfold.runtimes.timed_onnx_session import OnnxSession, provider_names
from bnfold.runtimes.timed_session import require
from tests.report.schemas import insist_on_schema
from tests.toys.command_line import run
from tests.toys.onnx_graphs import model, node, norm, random, statistics

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_cnn.onnx"
ON_CPU = Setting("cpu", Level.ALL, 1)
QUICK = {"rounds": comparison.FEWEST_ROUNDS, "threads": 1}


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "fused.onnx"
    fuse_file(DIGITS, path, checks="none")
    return path


@pytest.fixture(scope="module")
def report(fused: Path) -> comparison.BenchReport:
    """Two models at two levels."""
    return bnfold.benchmark([DIGITS, fused], levels=["disabled", "all"], **QUICK)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def record(report: comparison.BenchReport) -> dict[str, Any]:
    made = json.loads(json.dumps(record_bench(report), allow_nan=False))
    insist_on_schema(made)
    return made


def cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# Rounds, with sessions whose time is what they say.


class Spoken:
    """A session that takes as long as it is told, and notes that it ran."""

    details: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, name: int, seconds: float, log: list[tuple[int, int]]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def time(self, index: int) -> float:
        self.log.append((self.name, index))
        return self.seconds


def turns(seconds: list[float], **changes: Any) -> tuple[list[Track], list[tuple[int, int]], list[int]]:
    """The tracks, what ran in which order, and which session was opened when."""
    log: list[tuple[int, int]] = []
    opened: list[int] = []

    def opener(name: int) -> Callable[[], Spoken]:
        def create() -> Spoken:
            opened.append(name)
            return Spoken(name, seconds[name], log)

        return create

    options = {"feeds": 2, "warmup": 0, "sittings": 8, "seed": 0, "is_done": lambda _: False, "advance": lambda _: None}
    tracks = take_turns([opener(name) for name in range(len(seconds))], **(options | changes))
    return tracks, log, opened


def test_each_sitting_has_new_sessions_in_a_drawn_order() -> None:
    _, _, opened = turns([0.1, 0.1, 0.1])
    sittings = [tuple(opened[start : start + 3]) for start in range(0, 24, 3)]
    assert all(sorted(sitting) == [0, 1, 2] for sitting in sittings)
    assert len(set(sittings)) > 1


def test_rounds_are_in_a_drawn_order_and_on_the_same_inputs() -> None:
    _, log, _ = turns([0.1, 0.1, 0.1], sittings=1)
    measured = log[3 * 2 + 3 :]  # behind warming up on both inputs, and behind the run that decides on the turns
    rounds = [measured[start : start + 3] for start in range(0, 3 * ROUNDS_PER_SITTING, 3)]
    assert [{feed for _, feed in each} for each in rounds] == [{0}, {1}, {0}, {1}]
    assert all(sorted(name for name, _ in each) == [0, 1, 2] for each in rounds)
    assert len({tuple(name for name, _ in each) for each in rounds}) > 1


@pytest.mark.parametrize(
    ("seconds", "timed", "untimed"),
    [([1e-6, 1.0], 10, 1), ([0.001, 0.002], 3, 1), ([0.019, 0.021], 1, 1), ([0.021, 0.019], 1, 1), ([0.1, 0.2], 1, 0)],
)
def test_all_contestants_have_turns_of_one_length(seconds: list[float], timed: int, untimed: int) -> None:
    tracks, log, _ = turns(seconds, sittings=1, feeds=1, warmup=0)
    assert {len(turn) for track in tracks for turn in track.turns[0]} == {timed}
    assert len(log) == 2 * (1 + 1 + ROUNDS_PER_SITTING * (timed + untimed))


def test_tracks_hold_what_was_measured() -> None:
    tracks, _, _ = turns([0.1, 0.2], sittings=3)
    assert [track.medians.shape for track in tracks] == [(3, ROUNDS_PER_SITTING)] * 2
    assert [set(track.runs) for track in tracks] == [{0.1}, {0.2}]
    assert [len(track.starts) for track in tracks] == [3, 3]


def test_it_stops_when_told_and_not_before() -> None:
    tracks, _, _ = turns([0.1], sittings=8, is_done=lambda tracks: len(tracks[0].turns) == 5)
    assert len(tracks[0].turns) == 5
    assert len(turns([0.1], sittings=8)[0][0].turns) == 8


# What is measured.


def test_a_record_has_what_the_contract_names(record: dict[str, Any], fused: Path) -> None:
    assert (record["schema"], record["command"], record["baseline"]) == ("bnfold/1", "bench", str(DIGITS))
    entries = record["entries"]
    assert [(entry["model"], entry["provider"], entry["level"]) for entry in entries] == [
        (str(path), "cpu", level) for level in ("disabled", "all") for path in (DIGITS, fused)
    ]
    for entry in entries:
        assert 0 < entry["p50_ms"] == entry["median_ms"] <= entry["p90_ms"] <= entry["p99_ms"]
        assert 0 < entry["ratio_low"] <= entry["ratio"] <= entry["ratio_high"]
        assert 0 < entry["noise_low"] <= 1 <= entry["noise_high"]
        assert 0 < entry["session_ms"] < 60_000
        assert 0 < entry["first_run_ms"] < 60_000
        assert entry["memory_before_bytes"] < entry["peak_bytes"] < 10**9
    assert [entry["verdict"] is None for entry in entries] == [True, False, True, False]
    assert (entries[0]["nodes"], entries[0]["batchnorms"], entries[1]["batchnorms"]) == (33, 4, 0)
    assert entries[0]["file_bytes"] == DIGITS.stat().st_size
    assert {"load_before", "load_after", "cpu", "libraries"} <= set(record["fingerprint"])


def test_figures_follow_from_the_raw_samples(record: dict[str, Any]) -> None:
    for entry, other in zip(record["entries"][::2], record["entries"][1::2], strict=True):
        samples, others = (np.array(each["samples_ms"]) for each in (entry, other))
        assert np.median(samples) == pytest.approx(entry["median_ms"], abs=1e-5)
        ratios = np.median(others, axis=2) / np.median(samples, axis=2)
        assert np.median(ratios) == pytest.approx(other["ratio"], rel=1e-2)  # samples are rounded to the nanosecond


def test_an_input_of_strings_reaches_the_other_process(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.STRING
    graph = onnx.helper.make_graph(
        [node("Identity", "x", "y")], "graph", [info("x", kind, ["N"])], [info("y", kind, ["N"])]
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "s.onnx",
    )
    (subject,) = find_subjects([tmp_path / "s.onnx"], tmp_path)
    assert subject.inputs is not None
    feed = {"x": np.array(["a", "bc"], dtype=object)}
    cold = start_cold(subject, ON_CPU, feed, tmp_path, 1)
    assert cold is not None
    assert len(cold.session_ms) == 1


def test_peaks_of_memory_are_those_of_the_model_alone(tmp_path: Path) -> None:
    """The trap: getrusage gives a child at least the peak of its parent."""
    (subject,) = find_subjects([DIGITS], tmp_path)
    ballast = np.ones(64 << 20)  # 512 MB, in memory
    cold = start_cold(subject, ON_CPU, {"image": np.zeros((1, 1, 8, 8), np.float32)}, tmp_path, 1)
    assert cold is not None
    assert cold.peak_bytes is not None
    assert cold.peak_bytes < 300e6 < ballast.nbytes


def test_large_weights_show_in_the_peak(tmp_path: Path) -> None:
    onnx.save(
        model([node("MatMul", "x w", "y")], {"w": np.ones((4000, 4000), np.float32)}, (1, 4000), dtype=np.float32),
        tmp_path / "large.onnx",
    )
    (subject,) = find_subjects([tmp_path / "large.onnx"], tmp_path)
    cold = start_cold(subject, ON_CPU, {"x": np.ones((1, 4000), np.float32)}, tmp_path, 1)
    assert cold is not None
    assert cold.peak_bytes is not None
    assert cold.memory_before_bytes is not None
    assert cold.peak_bytes - cold.memory_before_bytes > 60e6


def test_the_profile_says_which_provider_ran_a_node() -> None:
    placed = worker._placement(DIGITS, ON_CPU, {"image": np.zeros((1, 1, 8, 8), np.float32)})
    assert list(placed) == ["CPUExecutionProvider"]
    assert any("conv2d" in name for name in placed["CPUExecutionProvider"])


def test_levels_are_those_of_the_runtime() -> None:
    """At `disabled` every node runs; at `all` fewer do."""
    feed = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    counts = [
        len(worker._placement(DIGITS, Setting("cpu", level, 1), feed)["CPUExecutionProvider"])
        for level in (Level.DISABLED, Level.BASIC, Level.ALL)
    ]
    assert counts[0] > counts[1]
    assert counts[0] > counts[2]


def test_the_machine_is_named() -> None:
    machine = fingerprint()
    assert machine["cores"] >= machine["cores_available"] >= 1
    assert machine["libraries"]["onnxruntime"] == onnxruntime.__version__
    assert machine["cpu"]


# What takes part.


def test_models_come_in_every_form(tmp_path: Path, report: comparison.BenchReport) -> None:
    proto = onnx.load(DIGITS)
    subjects = find_subjects([DIGITS, str(DIGITS), proto, bnfold.fuse(DIGITS)], tmp_path)
    assert [subject.batchnorms for subject in subjects] == [4, 4, 4, 0]
    assert subjects[0].sha256 == subjects[1].sha256
    assert [subject.name for subject in subjects[2:]] == ["model 3", "model 4"]


def test_external_data_is_part_of_a_model(tmp_path: Path) -> None:
    for name, scale in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        made = model(
            [node("MatMul", "x w", "y")], {"w": scale * random(64, 64, dtype=np.float32)}, (1, 64), dtype=np.float32
        )
        onnx.save(made, tmp_path / name / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=16)
    one, other = find_subjects([tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"], tmp_path)
    assert one.file_bytes is not None
    assert one.file_bytes > 64 * 64 * 4
    assert one.sha256 != other.sha256


def test_batchnorms_in_functions_are_counted(tmp_path: Path) -> None:
    made = model([norm("x", "y")], statistics(4, dtype=np.float32), (1, 4, 2, 2), dtype=np.float32)
    inner = onnx.helper.make_function(
        "local",
        "F",
        ["a", "s"],
        ["b"],
        [node("BatchNormalization", "a s s s s", "b")],
        [onnx.helper.make_opsetid("", 17)],
    )
    made.functions.append(inner)
    made.opset_import.append(onnx.helper.make_opsetid("local", 1))
    assert find_subjects([made], tmp_path)[0].batchnorms == 2


@pytest.mark.parametrize("thing", [3, None, onnx.TensorProto(), {"a": 1}])
def test_what_is_no_model_is_refused(thing: object) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot read"):
        bnfold.benchmark([DIGITS, thing])


# What cannot be compared.


def test_other_inputs_cannot_be_compared(tmp_path: Path) -> None:
    def save(name: str, shape: tuple[int | str, ...], x: str = "x", output: str = "y") -> Path:
        made = model([node("Relu", "x", "y")], {}, shape, dtype=np.float32)
        made.graph.input[0].name = made.graph.node[0].input[0] = x
        made.graph.output[0].name = made.graph.node[0].output[0] = output
        onnx.save(made, tmp_path / name)
        return tmp_path / name

    first = save("a.onnx", ("N", 3))
    for other in (save("b.onnx", ("N", 4)), save("c.onnx", ("N", 3, 1)), save("d.onnx", ("N", 3), x="z")):
        with pytest.raises(IncomparableError, match="other inputs"):
            bnfold.benchmark([first, other])
    with pytest.raises(IncomparableError, match="other outputs"):
        bnfold.benchmark([first, save("e.onnx", ("N", 3), output="z")])
    same = bnfold.benchmark([first, save("f.onnx", ("batch", 3))], levels=["all"], **QUICK)  # type: ignore[arg-type]
    assert len(same.entries) == 2


def test_inputs_are_given_by_name_or_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((3, 1, 8, 8), np.float32)
    for inputs in ({"image": image}, [image]):
        result = bnfold.benchmark([DIGITS], inputs=inputs, levels=["all"], **QUICK)  # type: ignore[arg-type]
        assert result.inputs == ({"image": "float32[3, 1, 8, 8]"},)
    with pytest.raises(IncomparableError, match="no array for input 'image'"):
        bnfold.benchmark([DIGITS], inputs={"picture": image})
    with pytest.raises(IncomparableError, match="2 arrays for a model of 1 input:"):
        bnfold.benchmark([DIGITS], inputs=[image, image])
    with pytest.raises(IncomparableError, match="cannot run it"):
        bnfold.benchmark([DIGITS], inputs=[image.astype(np.float64)])


def test_a_model_that_crashes_the_runtime_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (subject,) = find_subjects([DIGITS], tmp_path)
    crash = SimpleNamespace(returncode=-11, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: crash)
    with pytest.raises(IncomparableError, match=r"crashed .*signal 11"):
        start_cold(subject, ON_CPU, {"image": np.zeros((1, 1, 8, 8), np.float32)}, tmp_path, 1)


def test_a_model_that_does_not_load_is_an_error(tmp_path: Path) -> None:
    made = onnx.load(DIGITS)
    made.graph.node[-1].op_type = "Nonsense"
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(IncomparableError, match="cannot load it"):
        bnfold.benchmark([tmp_path / "m.onnx"])


# Providers.


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "nonsense"])
def test_a_provider_that_is_not_installed_is_an_error(provider: str) -> None:
    if any(
        provider == name.removesuffix("ExecutionProvider").lower() for name in onnxruntime.get_available_providers()
    ):
        pytest.skip(f"{provider} is installed")
    with pytest.raises(MissingExtraError, match=provider):
        require(Engine.ONNXRUNTIME, provider)
    done = cli("bench", DIGITS, DIGITS, "--provider", provider)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"bnfold: provider '{provider}' is not in the installed onnxruntime")
    assert done.stderr.count("\n") == 1


def test_a_provider_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime leaves out a provider whose libraries are missing, and says so in its log alone."""

    class Silent:
        def __init__(self, *_: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int) -> None:
            assert enable_fallback == 0
            self.asked = [name for name, _ in providers]

        def get_providers(self) -> list[str]:
            return self.asked[-1:]

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", Silent)
    with pytest.raises(MissingExtraError, match="does not start here"):
        OnnxSession(DIGITS, Setting("cuda", Level.ALL, 1), [])


def test_providers_hand_on_in_order_and_state_their_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    assert provider_names("tensorrt") == available
    assert provider_names("cuda") == available[1:]
    assert provider_names("CPU") == available[2:]
    for tf32 in (False, True):
        options = timed_onnx_session._provider_options("CUDAExecutionProvider", Setting("cuda", None, 1, tf32=tf32))
        assert options == {"device_id": "0", "use_tf32": str(int(tf32))}


# The command line.


def test_the_command_writes_one_document_and_nothing_else(fused: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    options = ["--level", "all", "--rounds", "32", "--threads", "1", "--report", target]
    done = cli("bench", DIGITS, fused, *options, "--inputs", MODELS / "digits_test.npz", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert printed == json.loads(target.read_text())
    assert printed["inputs"] == [{"image": "float32[450, 1, 8, 8]"}]
    assert printed["method"]["threads"] == 1


@pytest.mark.parametrize(
    ("asked", "code", "answers"),
    [
        (["--require", "100"], 1, {"not met"}),
        (["--require", "0.01"], 0, {"met"}),
        (["--no-slower"], 0, {"met", "cannot tell"}),
    ],
    ids=["too much", "little", "no slower"],
)
def test_a_gate_is_an_exit_code(asked: list[str], code: int, answers: set[str], tmp_path: Path) -> None:
    options = ["--level", "all", "--threads", "1", "--rounds", "32", "--report", tmp_path / "report.xml", "--json"]
    done = cli("bench", DIGITS, DIGITS, *options, *asked)
    entry = json.loads(done.stdout)["entries"][1]
    assert (done.returncode, done.stderr) == (code, "")
    assert entry["gate"] in answers
    assert entry["visible_change"] > 0
    assert entry["runs_same_kernels"]
    text = (tmp_path / "report.xml").read_text()
    assert ("<failure" in text) == bool(code)
    assert text.count("<skipped") == (entry["gate"] == "cannot tell")


def test_the_seconds_that_are_given_end_a_measurement() -> None:
    report = bnfold.benchmark([DIGITS, DIGITS], levels=["all"], threads=1, rounds=100_000, seconds=1)
    assert comparison.FEWEST_SITTINGS <= len(report.entries[1].track.turns) < 1024
    assert report.passes


def test_the_command_answers_in_words(tmp_path: Path) -> None:
    options = ["--level", "all", "--rounds", "32", "--threads", "1", "--report", tmp_path / "report.xml"]
    done = cli("bench", DIGITS, DIGITS, *options)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "cpu at level all (milliseconds)"
    assert "digits_cnn.onnx #2" in lines[3]
    assert lines[-1].startswith("cpu all: digits_cnn.onnx #2: ")
    assert '<testcase classname="bench/cpu/all"' in (tmp_path / "report.xml").read_text()
    assert cli("bench", DIGITS, DIGITS, *options[:-2], "--quiet").stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument"),
        ([DIGITS, "--rounds", "31"], 2, "Invalid value for '--rounds'"),
        ([DIGITS, "--level", "most"], 2, "Invalid value for '--level'"),
        ([DIGITS, "missing.onnx"], 3, "bnfold: missing.onnx: no such file\n"),
        ([DIGITS, MODELS / "README.md"], 3, "not an ONNX model"),
        ([DIGITS, "--dim", "nonsense=3"], 3, "has no such dimension"),
        ([DIGITS, "--inputs", "missing.npz"], 3, "bnfold: missing.npz: No such file"),
        ([MODELS / "digits_cnn.onnx", MODELS / "digits_autoencoder.onnx"], 3, "have other outputs"),
        ([DIGITS, "--no-slower"], 2, "--require and --no-slower need a second MODEL"),
        ([DIGITS, DIGITS, "--require", "0"], 2, "Invalid value for '--require'"),
        ([DIGITS, DIGITS, "--seconds", "0"], 2, "Invalid value for '--seconds'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str | Path], code: int, message: str, tmp_path: Path) -> None:
    done = run(tmp_path, "bench", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_fewest_rounds_are_those_of_the_command(tmp_path: Path) -> None:
    assert comparison.FEWEST_ROUNDS == 32
    with pytest.raises(ValueError, match="31 rounds"):
        comparison.run([DIGITS], BenchOptions(rounds=31))
    with pytest.raises(InvalidModelError):
        comparison.run([tmp_path / "missing.onnx"], BenchOptions())


def test_a_library_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the working folder')")
    code = (
        "import sys; sys.path = [entry for entry in sys.path if entry]; import bnfold; "
        f"print(len(bnfold.benchmark([{str(DIGITS)!r}], levels=['all'], rounds=32, threads=1).entries))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "1\n", done.stderr


# Renderers.


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_fit_eighty_columns(record: dict[str, Any], terminal: bool) -> None:
    console = Console(width=80, force_terminal=terminal, no_color=True, record=True, file=io.StringIO())
    long = json.loads(json.dumps(record))
    for each in (*long["models"], *long["entries"]):
        each["model"] = "folder/a_rather_long_name_of_a_model_that_somebody_gave_it_v3_final.onnx"
        each["median_ms"] = each["p90_ms"] = each["session_ms"] = 12345.678
    bench_terminal.show(long, console)
    table = console.export_text().splitlines()
    assert all(len(line) <= 80 for line in table if ": " not in line)
    assert any("12,346" in line for line in table)


@pytest.mark.parametrize("width", [44, 60, 80, 120])
def test_no_digit_is_cut_however_narrow_the_terminal(record: dict[str, Any], width: int) -> None:
    console = Console(width=width, force_terminal=True, no_color=True, record=True, file=io.StringIO())
    bench_terminal.show(record, console)
    lines = console.export_text().splitlines()
    heads = next(line for line in lines if "median" in line)
    shown = [column for column in bench_terminal.COLUMNS if column.label in heads]
    assert {"model", "median", "ratio"} <= {column.label for column in shown}
    for entry in record["entries"]:
        row = bench_terminal.Timed(Path(entry["model"]).name, entry)
        assert any(
            all(str(column.cell(row)) in line for column in shown if column.is_number) and len(line) <= width
            for line in lines
        )
    left_out = [column.label for column in bench_terminal.COLUMNS if column not in shown]
    assert not left_out or f"too narrow for: {', '.join(left_out)}" in lines
    assert width < 80 or not left_out


def test_words_say_what_the_record_says(record: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(record))
    changed["entries"][1] |= {"verdict": "faster", "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6}
    changed["entries"][3] |= {"verdict": "no detectable change", "provider": "cuda", "handed_back": ["a", "b"]}
    lines = list(bench_terminal.conclusions(changed))
    assert lines[0] == "cpu disabled: fused.onnx: faster; it takes 0.500 of the time (0.400 to 0.600)"
    assert lines[1] == "cuda all: fused.onnx ran 2 nodes on the CPU"
    assert lines[2].startswith("cuda all: fused.onnx: no detectable change; ratio ")
    assert " % are not visible here" in lines[2]


def test_a_gate_and_its_reason_are_said(record: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(record))
    changed["method"] |= {"require": 1.05, "no_slower": True}
    changed["entries"] = changed["entries"][2:]
    changed["entries"][1] |= {"gate": "cannot tell", "visible_change": 0.021, "runs_same_kernels": True}
    lines = list(bench_terminal.conclusions(changed))[-2:]
    assert lines[0].endswith("; onnxruntime folds 4 BatchNorms itself here, and the two run the same kernels")
    assert lines[1].endswith(
        "at least 1.05 times as fast and not slower: cannot tell: differences under 2.1 % are not visible here"
    )


def test_junit_has_one_case_for_each_entry(record: dict[str, Any]) -> None:
    text = junit.render(record)
    assert text.count("<testcase") == 4
    assert 'failures="0"' in text
