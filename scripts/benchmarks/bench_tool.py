"""Measures the tool itself and prints Markdown tables: size, start-up, peers, and growth with the number of nodes.

    python scripts/benchmarks/bench_tool.py [--folder FOLDER] [--only large|start|peers|resnet|nodes|diff] [--rounds N]
        [--docs PAGE]

Every row is a ratio of two things that were measured alternately in one run, whole processes each; times are the
median of the rounds, memory is the largest resident set of the process. The peers are used where they are installed
(`pip install onnxsim onnxslim onnxoptimizer`). Needs 9 GB on the disk for the large models. With `--docs`, the tables
replace those of the last run on a page, between the two marks that name this script.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TENSOR = 1 << 28
"""Bytes of a large kernel."""

PAUSE = 5.0
"""Seconds before each run with large files."""

MARKS = "<!-- tool: start -->", "<!-- tool: end -->"
MIB = 1 << 20
PYTHON = sys.executable
BNFOLD = [PYTHON, "-m", "bnfold"]


@dataclass(frozen=True)
class Cost:
    """Of one process: its time, its largest resident set, and the time of processors, which load changes less."""

    seconds: float
    peak: int
    work: float


def measure(*command: str | Path) -> Cost:
    """Run a command and say what it took.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([str(each) for each in command], stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{command}: {output.read().decode(errors='replace')[-2000:]}")
    return Cost(seconds, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)


def alternate(rounds: int, *, pause: float = 0.0, **runs: Callable[[], Cost]) -> dict[str, Cost]:
    """The median cost of each, in rounds of random order, so that what else the machine does hits all alike.

    With a pause before each, none waits for what the one before left unwritten, and none profits from memory that it
    freed: a virtual machine hands that back within seconds, and getting it again takes longer than to fill it.
    """
    found: dict[str, list[Cost]] = {name: [] for name in runs}
    generator = random.Random(0)
    for _ in range(rounds):
        for name, run in generator.sample(sorted(runs.items()), len(runs)):
            if pause:
                os.sync()
                time.sleep(pause)
            found[name].append(run())
    return {
        name: Cost(
            median(each.seconds for each in costs),
            max(each.peak for each in costs),
            median(each.work for each in costs),
        )
        for name, costs in found.items()
    }


def batchnorm(data: str, out: str, channels: int) -> tuple[onnx.NodeProto, list[TensorProto]]:
    """A BatchNormalization with its parameters."""
    generator = np.random.default_rng(channels)
    vectors = {name: generator.random(channels).astype(np.float32) + 0.5 for name in ("gamma", "beta", "mean", "var")}
    names = [f"{out}_{name}" for name in vectors]
    made = helper.make_node("BatchNormalization", [data, *names], [out], name=f"norm_{out}")
    return made, [numpy_helper.from_array(array, name) for name, array in zip(names, vectors.values(), strict=True)]


def model(nodes: list[onnx.NodeProto], tensors: list[TensorProto], channels: int, out: str) -> onnx.ModelProto:
    """A model from `x` to `out`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, "H", "W"]) for name in ("x", out)]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def large(folder: Path, count: int) -> Path:
    """`count` convolutions of `TENSOR` bytes with a BatchNorm each, in external data."""
    path, channels = folder / f"large{count}.onnx", int((TENSOR / 4) ** 0.5)
    data, nodes, tensors = path.with_name(f"{path.name}.data"), [], []
    generator = np.random.default_rng(0)
    with data.open("wb") as file:
        for index in range(count):
            weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[channels, channels, 1, 1])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", TENSOR)):
                weight.external_data.add(key=key, value=str(value))
            for _ in range(16):
                file.write(generator.standard_normal(TENSOR // 64, dtype=np.float32).tobytes())
            norm, parameters = batchnorm(f"c{index}", f"n{index}", channels)
            before = f"v{index}" if index else "x"
            nodes += [
                helper.make_node("Conv", [before, weight.name], [f"c{index}"], name=f"conv{index}"),
                norm,
                helper.make_node("Relu", [f"n{index}"], [f"v{index + 1}"], name=f"relu{index}"),
            ]
            tensors += [weight, *parameters]
    path.write_bytes(model(nodes, tensors, channels, f"v{count}").SerializeToString())
    return path


def made(make: Callable[..., Path], *arguments: object) -> Path:
    """What `make` gives, in a process of its own: a child's peak is never below what its parent held when it began."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(make, *arguments).result()


def fuse(source: Path, *options: str) -> Callable[[], Cost]:
    output = source.with_name("out.onnx")

    def run() -> Cost:
        try:
            return measure(*BNFOLD, "fuse", source, "-o", output, "--no-verify", "--overwrite", "-q", *options)
        finally:
            for each in source.parent.glob("out.onnx*"):
                each.unlink()

    return run


def copy(source: Path, *, is_flushed: bool) -> Callable[[], Cost]:
    target = source.with_name("copy")
    flushed = ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh"]

    def run() -> Cost:
        try:
            return measure(*(flushed if is_flushed else ["cp"]), f"{source}.data", target)
        finally:
            target.unlink()

    return run


def compare_large(folder: Path, rounds: int) -> None:
    print("\n### Ten and five convolutions of 268 MB, external data\n")
    ten, five = made(large, folder, 10), made(large, folder, 5)
    copies = {"cp": copy(ten, is_flushed=False), "flushed": copy(ten, is_flushed=True)}
    found = alternate(rounds, pause=PAUSE, **copies, ten=fuse(ten), five=fuse(five))
    print("| | seconds | peak MB |\n|---|---:|---:|")
    for name, what in (
        ("cp", "`cp` of the data of ten"),
        ("flushed", "`cp` and `sync` of it, which `bnfold fuse` does as well"),
        ("ten", "`bnfold fuse`, ten"),
        ("five", "`bnfold fuse`, five"),
    ):
        print(f"| {what} | {found[name].seconds:.2f} | {found[name].peak / MIB:.0f} |")
    bound = 2.5 * TENSOR + 200 * MIB
    print(f"\n- time over `cp`: {found['ten'].seconds / found['cp'].seconds:.2f} (wanted: at most 2)")
    print(f"- time over `cp` and `sync`: {found['ten'].seconds / found['flushed'].seconds:.2f}")
    print(f"- peak over 2.5 tensors and 200 MiB: {found['ten'].peak / bound:.2f} (at most 1)")
    print(f"- peak of ten over peak of five: {found['ten'].peak / found['five'].peak:.2f} (0.9 to 1.1)")
    for each in folder.glob("large*"):
        each.unlink()


def compare_start(rounds: int) -> None:
    print("\n### Start-up\n")
    found = alternate(
        max(rounds, 9),
        base=lambda: measure(PYTHON, "-c", "import click, rich"),
        help=lambda: measure(*BNFOLD, "--help"),
        package=lambda: measure(PYTHON, "-c", "import bnfold"),
    )
    print("| | seconds | over `import click, rich` |\n|---|---:|---:|")
    for name, what in (("base", "import click, rich"), ("help", "bnfold --help"), ("package", "import bnfold")):
        print(f"| `{what}` | {found[name].seconds:.3f} | {found[name].seconds / found['base'].seconds:.2f} |")


DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits_cnn.onnx"


def compare_tiny(folder: Path, rounds: int) -> None:
    """Print what `fuse` takes for a tiny model, proof and run included, beside importing what it stands on."""
    print("\n### A tiny model: `bnfold fuse models/digits_cnn.onnx`, which proves the result and runs it once\n")
    output = folder / "digits.onnx"
    fused = [*BNFOLD, "fuse", DIGITS, "-o", output, "--overwrite", "-q"]
    found = alternate(
        max(rounds, 9),
        base=lambda: measure(PYTHON, "-c", "import numpy, onnx_ir, onnxruntime"),
        fuse=lambda: measure(*fused),
        quick=lambda: measure(*fused, "--no-verify"),
    )
    names = {"base": "import numpy, onnx_ir, onnxruntime", "fuse": "bnfold fuse", "quick": "bnfold fuse --no-verify"}
    print("| | seconds | over the imports |\n|---|---:|---:|")
    for name, what in names.items():
        print(f"| `{what}` | {found[name].seconds:.3f} | {found[name].seconds / found['base'].seconds:.2f} |")


STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))
"""Of ResNet-50: the inner and the outer channels, and how many blocks."""


def resnet(folder: Path) -> Path:
    """ResNet-50 with random weights, its BatchNorms where they are: He and others, 2015, table 1."""
    nodes: list[onnx.NodeProto] = []
    tensors: list[TensorProto] = []
    generator = np.random.default_rng(0)

    def conv(data: str, out: str, channels: tuple[int, int], taps: int, stride: int = 1) -> str:
        weight = generator.standard_normal((channels[1], channels[0], taps, taps), dtype=np.float32) / 16
        window = {"pads": [taps // 2] * 4, "strides": [stride] * 2}
        norm, parameters = batchnorm(f"{out}_c", out, channels[1])
        nodes.extend([helper.make_node("Conv", [data, f"{out}_w"], [f"{out}_c"], f"conv_{out}", **window), norm])
        tensors.extend([numpy_helper.from_array(weight, f"{out}_w"), *parameters])
        return out

    def relu(data: str) -> str:
        nodes.append(helper.make_node("Relu", [data], [f"{data}_r"], f"relu_{data}"))
        return f"{data}_r"

    value = relu(conv("x", "stem", (3, 64), 7, 2))
    nodes.append(
        helper.make_node("MaxPool", [value], ["pool"], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    )
    value, width = "pool", 64
    for stage, (inner, outer, blocks) in enumerate(STAGES):
        for block in range(blocks):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            first = relu(conv(value, f"{name}_1", (width, inner), 1))
            second = relu(conv(first, f"{name}_2", (inner, inner), 3, stride))
            third = conv(second, f"{name}_3", (inner, outer), 1)
            skip = value if block else conv(value, f"{name}_d", (width, outer), 1, stride)
            nodes.append(helper.make_node("Add", [third, skip], [name], f"add_{name}"))
            value, width = relu(name), outer
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["mean"], "mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], "flat"))
    nodes.append(helper.make_node("Gemm", ["flat", "fc_w"], ["y"], "fc"))
    tensors.append(numpy_helper.from_array(generator.standard_normal((2048, 1000), dtype=np.float32), "fc_w"))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000]),
    ]
    graph = helper.make_graph(nodes, "resnet50", ends[:1], ends[1:], tensors)
    path = folder / "resnet50.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return path


COPY = "import sys, onnx_ir; onnx_ir.save(onnx_ir.load(sys.argv[1]), sys.argv[2])"


def compare_resnet(folder: Path, rounds: int) -> None:
    """Print what `fuse` takes for ResNet-50 beside reading it and writing it by onnx-ir."""
    source = made(resnet, folder)
    print(f"\n### ResNet-50, {source.stat().st_size / 1e6:.0f} MB in one file: `bnfold fuse --no-verify`\n")
    runs = {"copy": lambda: measure(PYTHON, "-c", COPY, source, folder / "copy.onnx"), "fuse": fuse(source)}
    found = alternate(max(rounds, 5), **runs)
    names = {"copy": "`onnx_ir.load` and `onnx_ir.save`", "fuse": "`bnfold fuse --no-verify`"}
    print("| | seconds | over onnx-ir | peak MB |\n|---|---:|---:|---:|")
    for name, what in names.items():
        cost = found[name]
        ratio = cost.seconds / found["copy"].seconds
        print(f"| {what} | {cost.seconds:.2f} | {ratio:.2f} | {cost.peak / MIB:.0f} |")
    for each in (source, folder / "copy.onnx"):
        each.unlink()


def convolutional(folder: Path) -> Path:
    """A residual-like network of about 100 MB in one file."""
    nodes, tensors = [], []
    before, channels = "x", 512
    generator = np.random.default_rng(0)
    for index in range(11):
        weight = generator.standard_normal((channels, channels, 3, 3), dtype=np.float32) / 48
        norm, parameters = batchnorm(f"c{index}", f"n{index}", channels)
        nodes += [
            helper.make_node("Conv", [before, f"w{index}"], [f"c{index}"], name=f"conv{index}", pads=[1, 1, 1, 1]),
            norm,
            helper.make_node("Relu", [f"n{index}"], [f"v{index}"], name=f"relu{index}"),
        ]
        tensors += [numpy_helper.from_array(weight, f"w{index}"), *parameters]
        before = f"v{index}"
    path = folder / "convolutional.onnx"
    path.write_bytes(model(nodes, tensors, channels, before).SerializeToString())
    return path


PEERS = {
    "onnxsim": "import onnx, onnxsim; m, ok = onnxsim.simplify(onnx.load({0!r})); assert ok; onnx.save(m, {1!r})",
    "onnxslim": "import onnxslim; onnxslim.slim({0!r}, {1!r})",
    "onnxoptimizer": (
        "import onnx, onnxoptimizer; onnx.save(onnxoptimizer.optimize(onnx.load({0!r}), ['fuse_bn_into_conv']), {1!r})"
    ),
}


def compare_peers(folder: Path, rounds: int) -> None:
    source = made(convolutional, folder)
    print(f"\n### A convolutional model of {source.stat().st_size / 1e6:.0f} MB in one file\n")
    runs = {"bnfold": fuse(source)}
    for name, code in PEERS.items():
        if importlib.util.find_spec(name) is None:
            print(f"({name} is not installed)\n")
            continue
        script = code.format(str(source), str(folder / "peer.onnx"))
        runs[name] = lambda script=script: measure(PYTHON, "-c", script)
    found = alternate(rounds, **runs)
    print("| | seconds | bnfold over it | peak MB | bnfold over it |\n|---|---:|---:|---:|---:|")
    ours = found["bnfold"]
    for name, cost in found.items():
        ratios = f"{ours.seconds / cost.seconds:.2f} | {cost.peak / MIB:.0f} | {ours.peak / cost.peak:.2f}"
        print(f"| {name} | {cost.seconds:.2f} | {ratios} |")


def chain(folder: Path, count: int) -> Path:
    """Convolution, BatchNorm, Relu, again and again; about `count` nodes."""
    nodes, tensors, before = [], [], "x"
    for index in range(count // 3):
        weight = np.full((4, 4, 1, 1), 0.25, np.float32)
        norm, parameters = batchnorm(f"c{index}", f"n{index}", 4)
        nodes += [
            helper.make_node("Conv", [before, f"w{index}"], [f"c{index}"], name=f"conv{index}"),
            norm,
            helper.make_node("Relu", [f"n{index}"], [f"v{index}"], name=f"relu{index}"),
        ]
        tensors += [numpy_helper.from_array(weight, f"w{index}"), *parameters]
        before = f"v{index}"
    path = folder / f"chain{count}.onnx"
    path.write_bytes(model(nodes, tensors, 4, before).SerializeToString())
    return path


def plain(folder: Path, count: int) -> Path:
    """A chain of `count` operators without parameters."""
    names = ["x", *(f"v{index}" for index in range(count))]
    operators = ("Relu", "Sigmoid", "Tanh", "Neg")
    nodes = [helper.make_node(operators[k % 4], [names[k]], [names[k + 1]], name=f"n{k}") for k in range(count)]
    path = folder / f"plain{count}.onnx"
    path.write_bytes(model(nodes, [], 4, names[-1]).SerializeToString())
    return path


def convolution(data: str, out: str, channels: tuple[int, int], taps: int = 1) -> tuple[onnx.NodeProto, TensorProto]:
    """A Conv from one number of channels to another, with its weight."""
    weight = np.full((channels[1], channels[0], taps, taps), 0.25, np.float32)
    pads = [taps // 2] * 4
    made = helper.make_node("Conv", [data, f"{out}_w"], [out], name=f"conv_{out}", pads=pads)
    return made, numpy_helper.from_array(weight, f"{out}_w")


def concats(folder: Path, count: int) -> Path:
    """About `count` BatchNorms: one behind each of 64 branches of a Concat and one behind it, again and again."""
    nodes, tensors, before = [], [], "x"
    for block in range(count // 65):
        parts = [f"b{block}_{branch}" for branch in range(64)]
        for part in parts:
            conv, weight = convolution(before, f"{part}_c", (64, 1))
            norm, parameters = batchnorm(f"{part}_c", part, 1)
            nodes += [conv, norm]
            tensors += [weight, *parameters]
        norm, parameters = batchnorm(f"c{block}", f"n{block}", 64)
        nodes += [
            helper.make_node("Concat", parts, [f"c{block}"], name=f"concat{block}", axis=1),
            norm,
            helper.make_node("Relu", [f"n{block}"], [f"v{block}"], name=f"relu{block}"),
        ]
        tensors += parameters
        before = f"v{block}"
    path = folder / f"concats{count}.onnx"
    path.write_bytes(model(nodes, tensors, 64, before).SerializeToString())
    return path


def merges(folder: Path, count: int) -> Path:
    """`count` sums of two convolutions of one value, each of which becomes one convolution."""
    nodes, tensors, before = [], [], "x"
    for block in range(count):
        for out, taps in ((f"l{block}", 3), (f"s{block}", 1)):
            conv, weight = convolution(before, out, (4, 4), taps)
            nodes.append(conv)
            tensors.append(weight)
        nodes += [
            helper.make_node("Add", [f"l{block}", f"s{block}"], [f"a{block}"], name=f"add{block}"),
            helper.make_node("Relu", [f"a{block}"], [f"v{block}"], name=f"relu{block}"),
        ]
        before = f"v{block}"
    path = folder / f"merges{count}.onnx"
    path.write_bytes(model(nodes, tensors, 4, before).SerializeToString())
    return path


DEPTH = 10
"""How deep the bodies are nested. A protobuf cannot nest them much deeper."""


def subgraphs(folder: Path, count: int) -> Path:
    """`count` bodies of If, nested `DEPTH` deep, with a Conv and a BatchNorm in each."""
    nodes, tensors, before = [], [numpy_helper.from_array(np.asarray(True), "yes")], "x"

    def body(data: str, name: str, depth: int) -> onnx.GraphProto:
        conv, weight = convolution(data, f"{name}_c", (4, 4))
        norm, parameters = batchnorm(f"{name}_c", f"{name}_n", 4)
        inner, out = [conv, norm], f"{name}_n"
        if depth > 1:
            out = f"{name}_o"
            inside = [body(f"{name}_n", f"{name}_i", depth - 1), constant(f"{name}_n", f"{name}_e")]
            inner.append(
                helper.make_node("If", ["yes"], [out], f"if_{name}", then_branch=inside[0], else_branch=inside[1])
            )
        return helper.make_graph(inner, name, [], [onnx.ValueInfoProto(name=out)], [weight, *parameters])

    def constant(data: str, name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Identity", [data], [name])], name, [], [onnx.ValueInfoProto(name=name)]
        )

    for block in range(count // DEPTH):
        branches = body(before, f"t{block}", DEPTH), constant(before, f"e{block}")
        made = helper.make_node(
            "If", ["yes"], [f"v{block}"], f"if{block}", then_branch=branches[0], else_branch=branches[1]
        )
        nodes.append(made)
        before = f"v{block}"
    path = folder / f"subgraphs{count}.onnx"
    path.write_bytes(model(nodes, tensors, 4, before).SerializeToString())
    return path


def functions(folder: Path, count: int) -> Path:
    """`count` functions, each a Conv and a BatchNorm, and each called once."""
    nodes, bodies, before = [], [], "x"
    opsets = [helper.make_opsetid("", 17)]
    for index in range(count):
        conv, weight = convolution("a", "c", (4, 4))
        norm, parameters = batchnorm("c", "y", 4)
        constants = [helper.make_node("Constant", [], [each.name], value=each) for each in (weight, *parameters)]
        bodies.append(helper.make_function("local", f"f{index}", ["a"], ["y"], [*constants, conv, norm], opsets))
        nodes.append(helper.make_node(f"f{index}", [before], [f"v{index}"], f"call{index}", domain="local"))
        before = f"v{index}"
    proto = model(nodes, [], 4, before)
    proto.functions.extend(bodies)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    path = folder / f"functions{count}.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


LOAD = "import sys, onnx_ir; model = onnx_ir.load(sys.argv[1]); print(sum(1 for node in model.graph))"

GROWTH: tuple[tuple[str, Callable[[Path, int], Path], tuple[int, ...]], ...] = (
    ("nodes in a chain of Conv, BatchNormalization, Relu", chain, (1_000, 10_000, 100_000, 300_000)),
    ("nodes in a chain of operators without parameters", plain, (10_000, 100_000)),
    ("BatchNorms on Concats of 64 branches, and on the branches", concats, (2_000, 20_000)),
    ("merges of two convolutions", merges, (500, 5_000)),
    (f"bodies of If, {DEPTH} deep", subgraphs, (20, 200)),
    ("functions", functions, (500, 5_000)),
)


def compare_nodes(folder: Path, rounds: int) -> None:
    """Print what `inspect` takes beside reading the same file, without what both take for a model of three nodes."""
    print("\n### Growth: `bnfold inspect` beside `onnx_ir.load` and one walk over the nodes\n")
    print("The times are those of processors. The last column is the time for each, without start-up, over that of the")
    print("line before.\n")
    print("| | seconds | over `onnx_ir` | peak MB | over `onnx_ir` | each over the line before |")
    print("|---|---:|---:|---:|---:|---:|")
    idle = measure(*BNFOLD, "inspect", made(chain, folder, 3), "-q").work
    for what, make, counts in GROWTH:
        before: float | None = None
        for count in counts:
            path = made(make, folder, count)
            found = alternate(
                rounds if count <= 10_000 else 1,
                ours=lambda path=path: measure(*BNFOLD, "inspect", path, "-q"),
                load=lambda path=path: measure(PYTHON, "-c", LOAD, path),
            )
            path.unlink()
            ours, load = found["ours"], found["load"]
            each = (ours.work - idle) / count
            growth = "" if before is None else f"{each / before:.2f}"
            before = each
            times = f"{ours.work:.2f} | {ours.work / load.work:.2f}"
            print(f"| {count:,} {what} | {times} | {ours.peak / MIB:.0f} | {ours.peak / load.peak:.2f} | {growth} |")


def compare_diff(folder: Path, rounds: int) -> None:
    """Print what `diff` takes of a chain and what `fuse` makes of it, beside `inspect` of the chain."""
    print("\n### `bnfold diff` beside `bnfold inspect`: a chain of Conv, BatchNormalization, Relu, and it fused\n")
    print("The times are those of processors.\n")
    print("| nodes | `inspect`, seconds | `diff`, seconds | over `inspect` | peak MB | over `inspect` |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in (10_000, 100_000):
        path, output = made(chain, folder, count), folder / "fused.onnx"
        measure(*BNFOLD, "fuse", path, "-o", output, "--no-verify", "--overwrite", "-q")
        found = alternate(
            rounds if count <= 10_000 else 1,
            inspect=lambda path=path: measure(*BNFOLD, "inspect", path, "-q"),
            diff=lambda path=path, output=output: measure(*BNFOLD, "diff", path, output, "-q"),
        )
        inspect, diff = found["inspect"], found["diff"]
        times = f"{inspect.work:.2f} | {diff.work:.2f} | {diff.work / inspect.work:.2f}"
        print(f"| {count:,} | {times} | {diff.peak / MIB:.0f} | {diff.peak / inspect.peak:.2f} |")
        for each in (path, output):
            each.unlink()


def describe() -> None:
    """What the numbers were taken on."""
    names = ["bnfold", "onnx", "onnx-ir", "numpy", *PEERS]
    known = [name for name in names if importlib.util.find_spec(name.replace("-", "_")) is not None]
    versions = ", ".join(f"{name} {version(name)}" for name in known)
    print(f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()};")
    print(f"{versions}.")
    print(f"Load of the machine at the start: {os.getloadavg()[0]:.1f}.")


def write(page: Path, tables: str) -> None:
    """Put the tables on a page, in the place of the last ones."""
    begin, end = MARKS
    old = page.read_text() if page.exists() else f"# Performance\n\n{begin}\n{end}\n"
    if begin not in old:
        old += f"\n{begin}\n{end}\n"
    head, rest = old.split(begin)
    page.write_text(f"{head}{begin}\n{tables.strip()}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the models are made; a temporary folder by default")
    parser.add_argument("--only", choices=["large", "start", "peers", "resnet", "nodes", "diff"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="a Markdown page for the tables")
    options = parser.parse_args()
    tables = io.StringIO()
    with redirect_stdout(tables):
        run(options)
    print(tables.getvalue())
    if options.docs is not None:
        write(options.docs, tables.getvalue())


def run(options: argparse.Namespace) -> None:
    """The measurements that were asked for."""
    command = f"python scripts/benchmarks/bench_tool.py --rounds {options.rounds} --docs docs/performance.md"
    print(f"## The tool itself\n\n`{command}` wrote this section. ", end="")
    describe()
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="bench-"))
    try:
        if options.only in (None, "start"):
            compare_start(options.rounds)
            compare_tiny(folder, options.rounds)
        if options.only in (None, "peers"):
            compare_peers(folder, options.rounds)
        if options.only in (None, "resnet"):
            compare_resnet(folder, options.rounds)
        if options.only in (None, "nodes"):
            compare_nodes(folder, options.rounds)
        if options.only in (None, "diff"):
            compare_diff(folder, options.rounds)
        if options.only in (None, "large"):
            compare_large(folder, options.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
