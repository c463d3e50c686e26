"""Kills `bnfold fuse` at random moments while it writes, and says what is left of OUT each time.

    python scripts/benchmarks/kill_test.py [--kills N] [--megabytes N] [--folder FOLDER] [--seed N]

In turn with SIGKILL and SIGTERM, and in turn onto no OUT and onto an old one. OUT, which is a model and its external
data, has to be absent, old or complete, byte for byte; after SIGTERM no temporary file may be there, and after the next
run none of any kill. Exits 1 where something else was found.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 1024
KERNEL = CHANNELS * CHANNELS * 4


def write_model(path: Path, megabytes: int, seed: int) -> None:
    """Convolutions of 4 MiB with a BatchNorm each, in external data."""
    generator = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    tensors: list[TensorProto] = []
    count = max(1, -(-megabytes * 1_000_000 // KERNEL))
    with path.with_name(f"{path.name}.bin").open("wb") as file:
        for index in range(count):
            weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[CHANNELS, CHANNELS, 1, 1])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f"{path.name}.bin"), ("offset", file.tell()), ("length", KERNEL)):
                weight.external_data.add(key=key, value=str(value))
            file.write(generator.standard_normal(KERNEL // 4, dtype=np.float32).tobytes())
            vectors = [generator.random(CHANNELS).astype(np.float32) + 0.5 for _ in range(4)]
            names = [f"p{index}_{number}" for number in range(4)]
            nodes += [
                helper.make_node("Conv", [f"v{index}", weight.name], [f"c{index}"]),
                helper.make_node("BatchNormalization", [f"c{index}", *names], [f"n{index}"]),
                helper.make_node("Relu", [f"n{index}"], [f"v{index + 1}"]),
            ]
            tensors += [weight, *map(numpy_helper.from_array, vectors, names)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CHANNELS, "H", "W"])
        for name in ("v0", f"v{count}")
    ]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())


def digest(path: Path) -> str | None:
    """A hash of a model's file and of every file that it refers to; None where there is no model.

    Raises:
        OSError: a file that it refers to is missing.
        google.protobuf.message.DecodeError: it is no model.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    found = hashlib.sha256(content)
    proto = onnx.ModelProto.FromString(content)
    locations = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    for location in sorted(locations):
        with (path.parent / location).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


@dataclass
class Target:
    """A folder in which a model is folded onto an OUT, again and again."""

    folder: Path

    @property
    def output(self) -> Path:
        """OUT."""
        return self.folder / "out.onnx"

    def start(self, source: Path) -> subprocess.Popen[bytes]:
        """Begin a run."""
        command = [sys.executable, "-m", "bnfold", "fuse", source, "-o", self.output]
        return subprocess.Popen([*command, "--no-verify", "--overwrite", "-q"], stdout=subprocess.DEVNULL)

    def finish(self, source: Path) -> str:
        """A run that nobody disturbs; gives what OUT is then."""
        if self.start(source).wait():
            raise RuntimeError(f"{source}: cannot be folded")
        found = digest(self.output)
        assert found is not None
        return found

    def wait_for_writing(self, process: subprocess.Popen[bytes]) -> None:
        """Until the run has a temporary folder that was not there before, or has ended."""
        before = self.temporaries
        while process.poll() is None and not self.temporaries - before:
            time.sleep(0.001)

    @property
    def temporaries(self) -> set[str]:
        """Names of temporary folders."""
        return {each.name for each in self.folder.glob(".out.onnx.*")}

    @property
    def names(self) -> set[str]:
        """Names of everything that belongs to OUT."""
        return {each.name for each in self.folder.glob("out.onnx*")} | self.temporaries

    def clear(self) -> None:
        """Remove OUT and its data, but nothing temporary."""
        for each in self.folder.glob("out.onnx*"):
            each.unlink()


def measure_writing(target: Target, source: Path) -> float:
    """Seconds from the temporary folder to the end of a run."""
    process = target.start(source)
    target.wait_for_writing(process)
    start = time.perf_counter()
    process.wait()
    return time.perf_counter() - start


def kill_again_and_again(folder: Path, kills: int, megabytes: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Kill that often.

    Returns:
        How often each signal left what, and what was wrong.
    """
    target, generator = Target(folder), random.Random(seed)
    sources = [folder / "old.onnx", folder / "new.onnx"]
    for number, source in enumerate(sources):
        write_model(source, megabytes, number)
    old, new = (target.finish(source) for source in sources)
    seconds = measure_writing(target, sources[1])
    found: Counter[str] = Counter()
    wrong: list[str] = []
    for kill in range(kills):
        number = (signal.SIGKILL, signal.SIGTERM)[kill % 2]
        before = None
        target.clear()
        if kill // 2 % 2:
            before = target.finish(sources[0])
        stale = target.temporaries
        process = target.start(sources[1])
        target.wait_for_writing(process)
        moment = generator.uniform(0, 1.1 * seconds)
        time.sleep(moment)
        process.send_signal(number)
        process.wait()
        try:
            after = digest(target.output)
        except Exception as error:  # whatever it is, OUT is torn
            wrong.append(f"kill {kill} ({number.name} after {moment:.3f} s): OUT is torn: {error}")
            continue
        state = {None: "absent", old: "old", new: "complete"}.get(after, "torn")
        found[f"{number.name} {'onto an old OUT' if before else 'onto no OUT'}: {state}"] += 1
        if after not in (before, new):
            wrong.append(f"kill {kill} ({number.name} after {moment:.3f} s): OUT is {state}")
        if number == signal.SIGTERM and target.temporaries - stale:
            wrong.append(f"kill {kill}: SIGTERM left {sorted(target.temporaries - stale)}")
    target.finish(sources[1])
    if len(target.names) != 2:
        wrong.append(f"the next run left {sorted(target.names)}")
    return found, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=300, help="of the model that is written")
    parser.add_argument("--folder", type=Path, help="on the disk to test; a temporary folder by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found, wrong = kill_again_and_again(Path(folder), options.kills, options.megabytes, options.seed)
    for what, count in sorted(found.items()):
        print(f"{count:4d}  {what}")
    for each in wrong:
        print(each)
    print(f"{options.kills} kills, {len(wrong)} of them wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
