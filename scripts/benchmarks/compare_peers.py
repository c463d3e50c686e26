"""Compares bnfold with other ONNX optimisers on the same models, and writes `docs/comparison.md`.

    pip install -e '.[peers,test]' && python scripts/benchmarks/compare_peers.py

Every tool runs in a process of its own with its documented default call. Every result then runs beside the model that
the tool was given. What a tool cannot do (an exception, a signal, a file that does not load) stands in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

ROOT = Path(__file__).parents[2]

from tests.toys.onnx_graphs import model, node, norm, random, statistics  # noqa: E402

MODELS = ROOT / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
ARCHITECTURES = ("resnet50", "densenet121", "inception_v2", "shufflenet")
PAGE = ROOT / "docs" / "comparison.md"
BEGIN, END = "<!-- onnx peers: begin -->", "<!-- onnx peers: end -->"

WRONG = 1e-3
"""Error from which a result is wrong: largest difference over the largest value of an output. Rounding gives 1e-7 to
1e-5 on these models, and the table has each error, so that a reader can draw the line elsewhere."""

SECONDS = 300
"""After which a tool is stopped."""

Feeds = dict[str, np.ndarray]

Ratio = tuple[float, float, float]
"""A median with both ends of its interval."""


# --- the tools: each reads one file and writes another ---------------------------------------------------------------


def _onnxruntime(level: str) -> Callable[[Path, Path], None]:
    def optimise(source: Path, target: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return optimise


def _onnxsim(source: Path, target: Path) -> None:
    import onnxsim

    simplified, is_checked = onnxsim.simplify(onnx.load(source))
    assert is_checked, "its own check failed"
    onnx.save(simplified, target)


def _onnxslim(source: Path, target: Path) -> None:
    import onnxslim

    onnxslim.slim(str(source), str(target))


def _onnxoptimizer(source: Path, target: Path) -> None:
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)


def _onnxscript(source: Path, target: Path) -> None:
    from onnxscript import optimizer, rewriter

    onnx.save(rewriter.rewrite(optimizer.optimize(onnx.load(source))), target)


def _bnfold(verify: bool) -> Callable[[Path, Path], None]:
    def fuse(source: Path, target: Path) -> None:
        from bnfold.api import fuse_file

        fuse_file(source, target, checks="proof" if verify else "none")

    return fuse


TOOLS: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "onnxruntime basic": ("onnxruntime", _onnxruntime("BASIC"), "`optimized_model_filepath`, `ORT_ENABLE_BASIC`"),
    "onnxruntime extended": ("onnxruntime", _onnxruntime("EXTENDED"), "the same, `ORT_ENABLE_EXTENDED`"),
    "onnxruntime all": ("onnxruntime", _onnxruntime("ALL"), "the same, `ORT_ENABLE_ALL`"),
    "onnxsim": ("onnxsim", _onnxsim, "`onnxsim.simplify(model)`"),
    "onnxslim": ("onnxslim", _onnxslim, "`onnxslim.slim(source, target)`"),
    "onnxoptimizer": ("onnxoptimizer", _onnxoptimizer, "`onnxoptimizer.optimize(model)`"),
    "onnxscript": ("onnxscript", _onnxscript, "`rewriter.rewrite(optimizer.optimize(model))`"),
    "bnfold": ("bnfold", _bnfold(True), "`bnfold fuse`, its proof and one run included"),
    "bnfold --no-verify": ("bnfold", _bnfold(False), "`bnfold fuse --no-verify`"),
}
IMPORTS = {"onnxscript": ("onnxscript.optimizer", "onnxscript.rewriter"), "bnfold": ("bnfold.api",)}
"""What is imported before the clock starts, by package; the package itself where it is not here."""


# --- the models ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model in a file, inputs to judge it on, and whether it is worth timing."""

    name: str
    path: Path
    feeds: list[Feeds]
    is_timed: bool


def digits(folder: Path) -> list[Subject]:
    """The repository's models, on held-out images."""
    with np.load(MODELS / "digits_test.npz") as data:
        feeds = [{"image": images} for images in np.array_split(data["image"], 4)]
    return [Subject(path.stem, path, feeds, True) for path in sorted(MODELS.glob("*.onnx"))]


def architectures(folder: Path) -> list[Subject]:
    """The onnx package's architectures, with drawn weights in place of generated ones (which make outputs constant)."""
    subjects = []
    for name in ARCHITECTURES:
        proto = filled(onnx.load(LIGHT / f"light_{name}.onnx"))
        onnx.save(proto, folder / f"{name}.onnx")
        (given,) = proto.graph.input
        shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
        feeds = [{given.name: patches(shape, seed)} for seed in range(3)]
        subjects.append(Subject(name, folder / f"{name}.onnx", feeds, True))
    return subjects


def patches(shape: Sequence[int], seed: int) -> np.ndarray:
    """Images of four flat patches: noise would average out, and every image of it give nearly the same output."""
    height, width = shape[2] // 2, shape[3] // 2
    return np.kron(random(*shape[:2], 2, 2, seed=seed), np.ones((height, width))).astype(np.float32)


def filled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with drawn initializers, and IR version 4, so that no initializer is an input."""
    shapes = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    generated = {
        each.output[0]: shapes[each.input[0]] for each in proto.graph.node if each.op_type == "ConstantOfShape"
    }
    readers = {name: (each, index) for each in proto.graph.node for index, name in enumerate(each.input)}
    generator = np.random.default_rng(0)
    size = 0.6 if any(each.op_type == "Sum" for each in proto.graph.node) else 1.0  # residual branches add up
    for name, shape in generated.items():
        array = _drawn(*readers[name], tuple(map(int, shape)), size, generator).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    nodes = [each for each in proto.graph.node if each.op_type != "ConstantOfShape"]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    read = {name for each in nodes for name in each.input}
    kept = [each for each in proto.graph.initializer if each.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    inputs = [each for each in proto.graph.input if each.name in read - {initial.name for initial in kept}]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = 4
    onnx.checker.check_model(proto)
    return proto


def _drawn(
    reader: onnx.NodeProto, index: int, shape: tuple[int, ...], size: float, generator: np.random.Generator
) -> np.ndarray:
    """Values under which activations neither vanish nor explode; `size` is that of a BatchNorm's scale."""
    noise = generator.standard_normal(shape)
    if reader.op_type == "BatchNormalization":
        return (size + 0.1 * noise, 0.1 * noise, 0.1 * noise, 0.8 + 0.4 * generator.random(shape))[index - 1]
    if index == 1 and len(shape) > 1:
        return noise * np.sqrt(2 / np.prod(shape[1:])) * (0.3 if reader.op_type == "Gemm" else 1)
    is_scale = reader.op_type == "Unsqueeze" and reader.input[0].endswith("_w_0")
    return 1 + 0.1 * noise if is_scale else 0.1 * noise


def traps(folder: Path) -> list[Subject]:
    """Small models on which a careless fold is wrong; most are also in `tests/frontends/onnx/test_onnx_traps.py`."""
    found = []
    for name, proto in _trap_models().items():
        path = folder / f"{name.replace(' ', '_')}.onnx"
        onnx.checker.check_model(proto)
        onnx.save(proto, path)
        shapes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in proto.graph.input}
        feeds = [
            {given: random(*shape, seed=seed, dtype=np.float32) for given, shape in shapes.items()} for seed in range(4)
        ]
        found.append(Subject(name, path, feeds, False))
    return found


def _trap_models() -> dict[str, onnx.ModelProto]:
    square, conv = (2, 4, 6, 6), node("Conv", "x w", "c", pads=[1] * 4)
    kernel = {"w": random(4, 4, 3, 3)}
    one, two = statistics(4, "one_"), statistics(4, "two_")
    two = {name: array + 0.5 for name, array in two.items()}

    def made(
        nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], shape: Sequence[int], **more: Any
    ) -> Any:
        stored = {
            name: each.astype(np.float32) if each.dtype == np.float64 else each for name, each in constants.items()
        }
        return model(nodes, stored, shape, dtype=np.float32, **more)

    return {
        "Conv, then BatchNorm": made([conv, norm("c", "y", "one_")], kernel | one, square),
        "two Convs share a weight": made(
            [conv, norm("c", "y", "one_"), node("Conv", "x w", "d", pads=[1] * 4), norm("d", "z", "two_")],
            kernel | one | two,
            square,
            outputs="y z",
        ),
        "two Convs share a weight, one BatchNorm": made(
            [conv, norm("c", "y", "one_"), node("Conv", "x w", "z", pads=[1] * 4)], kernel | one, square, outputs="y z"
        ),
        "two Convs share a bias": made(
            [node("Conv", "x w b", "c"), norm("c", "y", "one_"), node("Conv", "x w b", "d"), norm("d", "z", "two_")],
            kernel | {"b": random(4)} | one | two,
            square,
            outputs="y z",
        ),
        "BatchNorm whose scale a caller replaces": made(
            [conv, norm("c", "y", "one_")], kernel | one, square, overridable=["one_gamma"]
        ),
        "Conv, Mul along the width, BatchNorm": made(
            [conv, node("Mul", "c k", "m"), norm("m", "y", "one_")], kernel | {"k": random(4)} | one, (2, 4, 4, 4)
        ),
        "Conv, Add along the width, BatchNorm": made(
            [conv, node("Add", "c k", "m"), norm("m", "y", "one_")], kernel | {"k": random(4)} | one, (2, 4, 4, 4)
        ),
        "Conv read by BatchNorm and Relu": made(
            [conv, norm("c", "n", "one_"), node("Relu", "c", "r"), node("Add", "n r", "y")], kernel | one, square
        ),
        "Conv read by two BatchNorms": made(
            [conv, norm("c", "n", "one_"), norm("c", "m", "two_"), node("Add", "n m", "y")], kernel | one | two, square
        ),
        "Conv is an output as well": made([conv, norm("c", "y", "one_")], kernel | one, square, outputs="y c"),
        "BatchNorm, then padded Conv": made(
            [norm("x", "n", "one_"), node("Conv", "n w", "y", pads=[1] * 4)], kernel | one, square
        ),
        "BatchNorm, Pad, Conv": made(
            [norm("x", "n", "one_"), node("Pad", "n p", "q"), node("Conv", "q w", "y")],
            kernel | one | {"p": np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
            square,
        ),
        "ConvTranspose with groups": made(
            [node("ConvTranspose", "x w", "c", group=2), norm("c", "y", "one_")],
            {"w": random(4, 2, 3, 3)} | one,
            square,
        ),
        "ConvTranspose, equal channels": made(
            [node("ConvTranspose", "x w", "c"), norm("c", "y", "one_")], kernel | one, square
        ),
        "Conv with groups": made(
            [node("Conv", "x w", "c", group=2), norm("c", "y", "one_")], {"w": random(4, 2, 3, 3)} | one, square
        ),
        "MatMul, Reshape, BatchNorm": made(
            [node("MatMul", "x w", "m"), node("Reshape", "m s", "r"), norm("r", "y", "one_")],
            {"w": random(4, 4), "s": np.asarray([4, 4, 4], np.int64)} | one,
            (16, 4),
        ),
        "MatMul, Transpose, BatchNorm": made(
            [node("MatMul", "x w", "m"), node("Transpose", "m", "t", perm=[1, 0]), norm("t", "y", "one_")],
            {"w": random(4, 4)} | one,
            (4, 4),
        ),
        "MatMul, Transpose of features to axis 1, BatchNorm": made(
            [node("MatMul", "x w", "m"), node("Transpose", "m", "t", perm=[0, 2, 1]), norm("t", "y", "one_")],
            {"w": random(4, 4)} | one,
            (4, 4, 4),
        ),
        "MatMul, BatchNorm on axis 1": made(
            [node("MatMul", "x w", "m"), norm("m", "y", "one_")], {"w": random(4, 4)} | one, (4, 4, 4)
        ),
        "Gemm with alpha and beta": made(
            [node("Gemm", "x w b", "g", alpha=0.5, beta=2.0, transB=1), norm("g", "y", "one_")],
            {"w": random(4, 4), "b": random(4)} | one,
            (3, 4),
        ),
        "Concat of one Conv with itself": made(
            [conv, node("Concat", "c c", "d", axis=1), norm("d", "y", "one_")], kernel | statistics(8, "one_"), square
        ),
        "Conv, negative scale, MaxPool, BatchNorm": made(
            [conv, node("MaxPool", "c", "p", kernel_shape=[2, 2]), norm("p", "y", "one_")],
            kernel | statistics(4, "one_", sign=-1.0),
            square,
        ),
    }


# --- one tool on one model ------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a tool made of a model."""

    failure: str = ""
    seconds: float = float("nan")
    peak: int = 0
    left: int = 0
    error: float = float("nan")
    ratio: Ratio | None = None
    path: Path = field(default_factory=Path)

    @property
    def is_wrong(self) -> bool:
        """Whether it runs and gives other results."""
        return not self.failure and not self.error < WRONG


def child(*arguments: str) -> tuple[str, str]:
    """A child process of this script: how it failed if it did, and its last line of output."""
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return f"stopped after {SECONDS} s", ""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}", ""
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed without a word"])[-1][:240], ""
    return "", done.stdout.strip().rpartition("\n")[2]


def peak_memory() -> int:
    """Largest resident size of this process, in bytes.

    Linux counts in `ru_maxrss` what the parent held when it forked, so the kernel's own mark is read where there is
    one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def apply(tool: str, subject: Subject, folder: Path, expected: list[np.ndarray]) -> Result:
    """Run a tool, count what is left, and judge what comes out."""
    result = Result(path=folder / f"{subject.path.stem}.{tool.replace(' ', '_')}.onnx")
    result.failure, line = child("--tool", tool, str(subject.path), str(result.path))
    if result.failure:
        return result
    result.seconds, result.peak = json.loads(line)
    result.left = batchnorms(onnx.load(result.path).graph)
    outputs, failure = run(result.path, subject, folder)
    if failure:
        result.failure = f"the result does not run: {failure}"
    else:
        result.error = max(scaled_error(*pair) for pair in zip(expected, outputs, strict=True))
    return result


def batchnorms(graph: onnx.GraphProto) -> int:
    """How many BatchNormalization nodes a graph has, its subgraphs included."""
    inner = [attribute.g for each in graph.node for attribute in each.attribute if attribute.HasField("g")]
    return sum(each.op_type == "BatchNormalization" for each in graph.node) + sum(map(batchnorms, inner))


def run(path: Path, subject: Subject, folder: Path) -> tuple[list[np.ndarray], str]:
    """All outputs on all inputs, by onnxruntime with graph optimisation off, in a process of its own."""
    given, made = folder / "given.npz", folder / "made.npz"
    np.savez(
        given, **{f"{index}:{name}": array for index, feed in enumerate(subject.feeds) for name, array in feed.items()}
    )
    failure, _ = child("--run", str(path), str(given), str(made))
    if failure:
        return [], failure
    with np.load(made) as arrays:
        return [arrays[name] for name in arrays.files], ""


def scaled_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """Largest difference over the largest value; infinite where shapes differ or a value is not finite."""
    if expected.shape != actual.shape or not np.isfinite(actual).all():
        return float("inf")
    difference = float(np.abs(expected.astype(np.float64) - actual).max(initial=0.0))
    return difference / float(np.abs(expected).max(initial=0.0)) if difference else 0.0


# --- time ------------------------------------------------------------------------------------------------------------


def measure(baseline: Path, candidates: dict[str, Path], feed: Feeds, rounds: int) -> dict[str, Ratio]:
    """Steady state at level `all` on one thread, as ratios; the models take turns in a drawn order.

    The baseline runs twice, under two names: the ratio of the two is the noise floor. The clock is that of the thread,
    which does not count what other processes take.
    """
    paths = {"": baseline, "original again": baseline, **candidates}
    generator = np.random.default_rng(0)
    sessions = {name: session(paths[name], "ORT_ENABLE_ALL") for name in generator.permutation(list(paths))}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(rounds + 5):
        for name in generator.permutation(list(paths)):
            start = time.thread_time()
            sessions[name].run(None, feed)
            if turn >= 5:
                times[name].append(time.thread_time() - start)
    return {name: interval(times[name], times[""]) for name in paths if name}


def session(path: Path, level: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def interval(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """The median of paired ratios with its bootstrap 95 % interval."""
    ratios = np.asarray(times) / np.asarray(baseline)
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


# --- the page --------------------------------------------------------------------------------------------------------


def page(
    results: dict[tuple[str, str], Result], subjects: list[Subject], noise: dict[str, Ratio], rounds: int, load: float
) -> str:
    """The section of the page that this script owns."""
    real = [each for each in subjects if each.is_timed]
    tricky = [each for each in subjects if not each.is_timed]
    return "\n\n".join(
        [
            BEGIN,
            f"Made by `python scripts/benchmarks/compare_peers.py --rounds {rounds}` on {processor()}, "
            f"load average {load:.1f} when it began and {os.getloadavg()[0]:.1f} when it ended, {platform.system()}, "
            f"Python {platform.python_version()}; {', '.join(versions())}.",
            table(["tool", "call"], [[tool, call] for tool, (_, _, call) in TOOLS.items()]),
            HOW.format(wrong=f"{WRONG:g}", rounds=rounds),
            "### Summary",
            "BatchNorms left in the real models. Where onnxruntime's `all` leaves fewer, it has written a lone "
            "BatchNormalization as a depthwise convolution.",
            summary(results, real, tricky),
            "### BatchNorms left, and the error",
            "BatchNormalization nodes in the result, and its error.",
            grid(results, real, left),
            "### Traps",
            "Small models on which a careless fold is wrong. A cell says how many BatchNorms are left, or that the "
            "result is **wrong** with its error, or that the tool fails.",
            grid(results, tricky, left),
            "### Latency of the result",
            "Relative to the original, both loaded at level `all`, which optimises both: below 1 is faster; in "
            "brackets the 95 % interval. *Original again* is the original against itself: less than that is noise.",
            grid(results, real, ratio, {each.name: spread(noise[each.name]) for each in real}),
            "### Peak memory of the tool, MB",
            "Of the whole process: interpreter and imports included. How long the tools take is measured in turns, and "
            "stands in [performance](performance.md#the-tool-itself).",
            grid(results, real, lambda result: f"{result.peak / 1e6:.0f}"),
            failures(results),
            END,
        ]
    )


HOW = """The models are those of `models/`, on held-out images, and four architectures that the onnx package ships,
with weights drawn by the script (the shipped ones make every output constant, so that nothing could be wrong). A result
is **wrong** where an output on any of the inputs differs from the original's by more than {wrong} of the output's
largest value. Original and result run in onnxruntime with graph optimisation off, so that nothing but the tool's own
work is judged. Latency: onnxruntime on one CPU thread, {rounds} rounds in which all models take turns in a drawn
order."""


def summary(results: dict[tuple[str, str], Result], real: list[Subject], tricky: list[Subject]) -> str:
    found = sum(batchnorms(onnx.load(each.path, load_external_data=False).graph) for each in real)
    rows = []
    for tool in TOOLS:
        mine = [results[tool, each.name] for each in real]
        hard = [results[tool, each.name] for each in tricky]
        ran = [each for each in mine if not each.failure]
        lost = f" ({len(mine) - len(ran)} not done)" if len(ran) < len(mine) else ""
        rows.append(
            [
                tool,
                f"{sum(each.left for each in ran)} of {found}{lost}",
                f"{sum(each.is_wrong for each in mine)} of {len(mine)}",
                f"{sum(each.is_wrong for each in hard)} of {len(hard)}",
                str(sum(bool(each.failure) for each in mine + hard)),
            ]
        )
    return table(["tool", "BatchNorms left", "real models wrong", "traps wrong", "failures"], rows)


def grid(
    results: dict[tuple[str, str], Result],
    subjects: list[Subject],
    cell: Callable[[Result], str],
    original: dict[str, str] | None = None,
) -> str:
    """A table of models by tools."""
    rows = []
    for each in subjects:
        cells = [results[tool, each.name] for tool in TOOLS]
        first = [each.name] + ([original[each.name]] if original else [])
        rows.append(first + ["fails" if result.failure else cell(result) for result in cells])
    return table(["model", *(["original again"] if original else []), *TOOLS], rows)


def left(result: Result) -> str:
    return f"**wrong** ({result.error:.0e})" if result.is_wrong else f"{result.left} ({result.error:.0e})"


def ratio(result: Result) -> str:
    assert result.ratio
    return spread(result.ratio)


def spread(numbers: Sequence[float]) -> str:
    middle, low, high = numbers
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def failures(results: dict[tuple[str, str], Result]) -> str:
    found = [f"- {tool}, {name}: `{result.failure}`" for (tool, name), result in results.items() if result.failure]
    return "### Failures\n\n" + ("\n".join(found) or "None.")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> list[str]:
    return [f"{name} {version(name)}" for name in dict.fromkeys(["onnx", *(name for name, _, _ in TOOLS.values())])]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores)"


def write(text: str) -> None:
    """Put the section between its markers; what others wrote around it stays."""
    old = PAGE.read_text() if PAGE.exists() else f"# Comparison with other tools\n\n## ONNX\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"{PAGE} has no marker {END}"
    PAGE.write_text(before + text + after)


def compare(rounds: int, only: str) -> None:
    results: dict[tuple[str, str], Result] = {}
    noise: dict[str, Ratio] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects = [*digits(folder), *architectures(folder), *traps(folder)]
        subjects = [each for each in subjects if only in each.name]
        for subject in subjects:
            expected, failure = run(subject.path, subject, folder)
            assert not failure, f"{subject.name}: {failure}"
            for tool in TOOLS:
                result = results[tool, subject.name] = apply(tool, subject, folder, expected)
                said = result.failure or f"{result.left} left, error {result.error:.1e}, {result.seconds:.2f} s"
                print(f"{subject.name}: {tool}: {'WRONG, ' if result.is_wrong else ''}{said}", flush=True)
            if subject.is_timed:
                runs = {tool: results[tool, subject.name] for tool in TOOLS}
                paths = {tool: result.path for tool, result in runs.items() if not result.failure}
                measured = measure(subject.path, paths, subject.feeds[0], rounds)
                noise[subject.name] = measured.pop("original again")
                for tool, found in measured.items():
                    runs[tool].ratio = found
                print(f"{subject.name}: {json.dumps(measured)}", flush=True)
        text = page(results, subjects, noise, rounds, load)
    if only:
        print(text)
    else:
        write(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="of the latency measurement")
    parser.add_argument("--only", default="", help="models whose name holds this; prints, and writes nothing")
    parser.add_argument("--tool", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tool:
        apply_here(arguments.tool[0], Path(arguments.tool[1]), Path(arguments.tool[2]))
    elif arguments.run:
        run_here(*arguments.run)
    else:
        compare(arguments.rounds, arguments.only)


def apply_here(tool: str, source: Path, target: Path) -> None:
    """In the child: apply a tool, and print how many seconds and bytes it took."""
    for name in IMPORTS.get(TOOLS[tool][0], (TOOLS[tool][0],)):
        __import__(name)
    start = time.perf_counter()
    TOOLS[tool][1](source, target)
    print(json.dumps([time.perf_counter() - start, peak_memory()]))


def run_here(path: Path, given: Path, made: Path) -> None:
    """In the child: run a model on all inputs."""
    running = session(path, "ORT_DISABLE_ALL")
    feeds: dict[str, Feeds] = {}
    with np.load(given) as arrays:
        for key in arrays.files:
            index, _, name = key.partition(":")
            feeds.setdefault(index, {})[name] = arrays[key]
    outputs = [array for feed in feeds.values() for array in running.run(None, feed)]
    np.savez(made, *outputs)


if __name__ == "__main__":
    main()
