"""The shell and Python blocks of a page, and running them as a reader would.

- ```console: lines after `$ ` are commands, the lines after a command are what it prints.
- ```shell: commands alone.
- ```python: a program of its own; a ```text block right behind it is what it prints.

A command ends with exit code 0, or with N where it has the comment `# exit code N`. All blocks of a page run in its
order in one folder, where `models` is that of the repository. Numbers with a point or an exponent may be others, and so
may sizes of files and the place of the largest difference, which depend on the machine. `...` stands for anything, and
of `bnfold bench`, whose answer is the machine's, only the exit code counts. `pip install` is not run: the extras that
it names have to exist.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT_CODE = re.compile(r"# exit code (\d+)$")
NUMBER = r"\d[\d,]*"
INEXACT = re.compile(
    rf"{NUMBER}\.\d+(e[-+]?\d+)?|\d+e[-+]?\d+|\d+(?= dB)|{NUMBER}(?= bytes| -> {NUMBER} bytes)"
    r"|(rms|peak) of channel \d+|(?<=, at )\[[\d, ]+\]|(?<=on the input )'\w+'"
)
CHECKER = doctest.OutputChecker()
LENIENT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Step:
    """A command or a program, and what it prints; None where the page does not say."""

    line: int
    is_python: bool
    source: str
    printed: str | None


def languages(text: str) -> list[str]:
    """The language of each block, as the page has it."""
    return [match[1] for match in FENCE.finditer(text)]


def python(text: str) -> list[str]:
    """The Python of a page."""
    return [match[2] for match in FENCE.finditer(text) if match[1] == "python"]


def steps(text: str) -> Iterator[Step]:
    """What is to be run, in the page's order."""
    matches = list(FENCE.finditer(text))
    for match, following in zip_longest(matches, matches[1:]):
        line = text.count("\n", 0, match.start()) + 1
        if match[1] == "python":
            is_printed = following and following[1] == "text" and not text[match.end() : following.start()].strip()
            yield Step(line, True, match[2], following[2] if is_printed else None)
        elif match[1] == "shell":
            for command in match[2].replace("\\\n", " ").splitlines():
                yield Step(line, False, command, None)
        elif match[1] == "console":
            for session in re.split(r"^\$ ", match[2].replace("\\\n", " "), flags=re.MULTILINE)[1:]:
                command, _, printed = session.partition("\n")
                yield Step(line, False, command, printed)


def run(step: Step, folder: Path) -> str:
    """What is wrong with a step: its exit code or what it prints; nothing if it does what the page says."""
    if step.source.startswith("pip install"):
        asked = {extra for extras in re.findall(r"\[([\w,]+)\]", step.source) for extra in extras.split(",")}
        missing = asked - set(PROJECT["optional-dependencies"])
        return f"line {step.line}: no extra {', '.join(missing)}" if missing else ""
    command = [sys.executable, "-c", step.source] if step.is_python else ["bash", "-c", step.source]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    wanted = EXIT_CODE.search(step.source)
    if done.returncode != int(wanted[1] if wanted else 0):
        return f"line {step.line}: {step.source}\nexit code {done.returncode}\n{done.stdout}"
    if step.printed is None or step.source.startswith("bnfold bench"):
        return ""
    want, got = (INEXACT.sub("#", text) for text in (step.printed, done.stdout))
    if CHECKER.check_output(want, got, LENIENT):
        return ""
    return f"line {step.line}: {step.source}\nprints\n{done.stdout}\ninstead of\n{step.printed}"


def environment(folder: Path) -> Mapping[str, str]:
    """The environment of a reader: `bnfold` and `python` are those of this interpreter."""
    shims = folder / ".bin"
    if not shims.exists():
        shims.mkdir()
        for name, call in (("python", ""), ("bnfold", "-m bnfold")):
            (shims / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
            (shims / name).chmod(0o755)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
    }
