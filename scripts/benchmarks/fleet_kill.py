"""Kills workers and the client of a fleet at random moments, starts it again, and says what became of every model.

    python scripts/benchmarks/fleet_kill.py [--models N] [--restarts N] [--seed N] [--folder FOLDER]

Some of the models are broken, one crashes its runtime, one hangs, one is larger than the memory of a worker and one
asks its runtime for more. The client is killed with SIGKILL and started again that often, and a worker every few
seconds meanwhile; then it may finish. In the end the ledger has to have one line for each model with the right
outcome, the exit code has to be 3, and every output has to be whole, the same as `bnfold fuse` makes it, with nothing
else beside it. A model whose line said that it is done must have kept that line. Exits 1 where it is otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bnfold import api  # noqa: E402
from bnfold.fleet.ledger import NAME, read_lines  # noqa: E402
from tests.proof.test_proof_files import crashing  # noqa: E402
from tests.toys.fleets import greedy, hanging, save_external, small  # noqa: E402

MEMORY = 1_500_000_000

COMMAND = (
    *(sys.executable, "-m", "bnfold", "fleet", "fuse", "models", "--out", "out", "--workers", "2", "--memory", "1.5GB"),
    *("--verify", "full", "--fast", "--timeout", "60", "--max-seconds", "20", "-q"),
)

SPECIAL = {
    "crash.onnx": "crashed running it",
    "hang.onnx": "took more than 20 seconds",
    "greedy.onnx": "took more memory than a worker has",
    "vast.onnx": "needs about 6.27 GB of memory",
}
"""Models that cannot end well, and why."""


def write_models(folder: Path, count: int) -> dict[str, str]:
    """Write that many models; gives why each of those that cannot end well does not."""
    bad = {f"models/{name}": why for name, why in SPECIAL.items()}
    (folder / "models").mkdir()
    onnx.save(crashing(), folder / "models/crash.onnx")
    onnx.save(hanging(), folder / "models/hang.onnx")
    onnx.save(greedy(), folder / "models/greedy.onnx")
    with (folder / "models/vast.onnx").open("wb") as file:
        file.truncate(MEMORY)
    for number in range(count - len(SPECIAL)):
        path = folder / "models" / "abc"[number % 3] / f"m{number}.onnx"
        path.parent.mkdir(exist_ok=True)
        if number % 50 == 17:
            path.write_bytes(b"no model")
            bad[str(path.relative_to(folder))] = "not an ONNX model"
        elif number % 5 == 3:
            save_external(path, number)
        else:
            onnx.save(small(number, kept=number % 3 == 0), path)
    return bad


@dataclass
class Run:
    """A fleet that is disturbed.

    Attributes:
        folder: where it runs.
        generator: decides the moments.
        deaths: how often a worker was killed.
        wrong: what was wrong.
    """

    folder: Path
    generator: random.Random
    deaths: int = 0
    wrong: list[str] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Begin a run of the client."""
        return subprocess.Popen(COMMAND, cwd=self.folder, stdout=subprocess.DEVNULL)

    def disturb(self, client: subprocess.Popen[bytes], seconds: float) -> None:
        """Kill a worker now and then, for so many seconds or until the client ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and client.poll() is None:
            time.sleep(self.generator.uniform(2.0, 10.0))
            workers = [pid for pid in children(client.pid) if "spawn_main" in command_of(pid)]
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.generator.choice(workers), signal.SIGKILL)
                    self.deaths += 1

    def done(self) -> dict[str, str]:
        """The models whose line says that they are done, and when that was."""
        ledger = self.folder / "out" / NAME
        lines = read_lines(ledger) if ledger.exists() else ()
        return {line["source"]: line["finished"] for line in lines if not line["exit_code"]}


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def command_of(pid: int) -> str:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def check(folder: Path, bad: dict[str, str], count: int) -> list[str]:
    """What is wrong at the end."""
    wrong: list[str] = []
    text = (folder / "out" / NAME).read_text().splitlines()
    lines: dict[str, dict[str, Any]] = {line["source"]: line for line in map(json.loads, text)}
    if len(text) != count or len(lines) != count:
        wrong.append(f"{len(text)} lines about {len(lines)} models, not {count}")
    expected = {NAME}
    for source, line in lines.items():
        why = bad.get(source)
        message = line["record"].get("error", {}).get("message", "")
        if why is not None:
            if line["exit_code"] != 3 or why not in message:
                wrong.append(f"{source}: exit code {line['exit_code']}, {message!r}, where {why!r} was to be")
            continue
        if line["exit_code"]:
            wrong.append(f"{source}: exit code {line['exit_code']}, {message!r}")
            continue
        wrong += differences(folder, source, line)
        expected |= {str(Path(name).relative_to("out")) for name in line["files"] if name.startswith("out/")}
    there = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*") if path.is_file()}
    wrong += [f"out/{name}: nobody knows it" for name in sorted(there - expected)]
    return wrong + [f"out/{name}: is missing" for name in sorted(expected - there)]


def differences(folder: Path, source: str, line: dict[str, Any]) -> list[str]:
    """How an output and what the single command makes of its source differ."""
    alone = folder / "alone" / Path(line["output"]).name
    alone.parent.mkdir(exist_ok=True)
    api.fuse_file(folder / source, alone, checks="none", overwrite=True)
    if alone.read_bytes() != (folder / line["output"]).read_bytes():
        return [f"{line['output']}: is not what the single command writes"]
    api.inspect_file(folder / line["output"])  # its external data is there, and has the sizes that it says
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on the disk to test; a temporary folder by default")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        run = Run(Path(name), random.Random(options.seed))
        bad = write_models(run.folder, options.models)
        for restart in range(options.restarts):
            before = run.done()
            client = run.start()
            run.disturb(client, run.generator.uniform(2.0, 30.0))
            is_killed = client.poll() is None
            client.kill()
            client.wait()
            after = run.done()
            print(f"restart {restart}: {len(after)} done, {run.deaths} workers killed{'' if is_killed else '; ended'}")
            run.wrong += [f"{source}: done twice" for source in before if after.get(source) != before[source]]
        before = run.done()
        client = run.start()
        run.disturb(client, 30.0)
        code = client.wait()
        run.wrong += [f"{source}: done twice" for source in before if run.done().get(source) != before[source]]
        if code != 3:
            run.wrong.append(f"exit code {code}")
        wrong = run.wrong + check(run.folder, bad, options.models)
        ends = Counter(line["exit_code"] for line in read_lines(run.folder / "out" / NAME))
    for each in wrong:
        print(each)
    print(f"{options.models} models, {options.restarts} restarts, {run.deaths} workers killed, exit codes {dict(ends)}")
    print(f"{len(wrong)} wrong, {time.monotonic() - began:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
