"""Builds the wheel and the sdist, and tries both as strangers get them: python scripts/tools/check_release.py.

Needs `pip install '.[release]'` and an index. Each trial is an environment of its own in which the wheel is installed,
asked for its version and its help, and folds `models/digits_cnn.onnx`; an extra is also used for what it is for.
`--quick` builds and looks at what is inside, and installs nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "digits_cnn.onnx"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION: str = PROJECT["version"]

PYTHONS = ("3.11", "3.12", "3.13")

USES = {
    "": [],
    "cpu": ["-m", "bnfold", "verify", str(MODEL), "out.onnx", "--fast"],
    "report": ["-m", "bnfold", "inspect", str(MODEL), "--report", "page.html"],
    "fleet": ["-m", "bnfold", "fleet", "inspect", str(MODEL), "--workers", "1"],
    "torch": [
        "-c",
        "import bnfold, torch; from torch import nn; m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval();"
        "x = torch.rand(1, 3, 8, 8); assert isinstance(bnfold.fuse(m, example_inputs=x)[1], nn.Identity)",
    ],
}
"""What each extra is tried with, beyond what the core is."""

WHEEL = (
    "bnfold/py.typed",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "bnfold").rglob("*.json"))),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "bnfold" / "report" / "html" / "templates").iterdir())),
    f"bnfold-{VERSION}.dist-info/entry_points.txt",
    f"bnfold-{VERSION}.dist-info/licenses/LICENSE",
    f"bnfold-{VERSION}.data/data/share/man/man1/bnfold.1",
)
"""Files beside the code that the wheel must have."""

SDIST = {
    *("bnfold", "docs", "man", "models", "scripts", "tests"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "PKG-INFO", "README.md", "SECURITY.md"),
    *(
        ".gitignore",
        "constraints.txt",
        "mkdocs.yml",
        "pyproject.toml",
    ),  # hatchling adds .gitignore, which a build from the sdist reads
}
"""All that the sdist has at its top."""


class ReleaseError(Exception):
    """What is wrong with the release, in one line or with the output of the command that found it."""


@dataclass(frozen=True)
class Trial:
    """An installation that is tried: of an extra, on a Python, with the newest or the lowest dependencies."""

    python: str
    extra: str
    resolution: str


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command.

    Returns:
        What it printed.

    Raises:
        ReleaseError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"UV_PYTHON_DOWNLOADS": "never", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise ReleaseError(f"exit code {done.returncode} of: {' '.join(map(str, command))}\n{done.stdout.strip()}")
    return done.stdout


def tool(name: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """Run a tool of the environment of this script."""
    return run(sys.executable, "-m", name, *arguments, cwd=cwd)


def build(folder: Path, *, isolated: bool = True) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from the sdist.

    Returns:
        wheel and sdist.
    """
    tool("build", "--outdir", folder, *([] if isolated else ["--no-isolation"]))
    return folder / f"bnfold-{VERSION}-py3-none-any.whl", folder / f"bnfold-{VERSION}.tar.gz"


def check_files(wheel: Path, sdist: Path) -> None:
    """Check the metadata of both, and what is inside.

    Raises:
        ReleaseError: something is missing, or should not be there.
    """
    tool("twine", "check", "--strict", wheel, sdist)
    tool("check_wheel_contents", wheel)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entries = archive.read(f"bnfold-{VERSION}.dist-info/entry_points.txt").decode()
    if missing := [name for name in WHEEL if name not in names]:
        raise ReleaseError(f"the wheel lacks {', '.join(missing)}")
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "bnfold").rglob("*.py")}
    if missing := sorted(code - names):
        raise ReleaseError(f"the wheel lacks {', '.join(missing)}")
    for entry in ("bnfold = bnfold.cli:main", "bnfold-inspect = bnfold.cli.hook:inspect_each", "[pytest11]"):
        if entry not in entries.splitlines():
            raise ReleaseError(f"the wheel has no entry point '{entry}'")
    with tarfile.open(sdist) as archive_of_source:
        inside = [Path(name).parts[1:] for name in archive_of_source.getnames()]
    top = {parts[0] for parts in inside if parts}
    if top != SDIST:
        raise ReleaseError(f"the top of the sdist: unexpected {sorted(top - SDIST)}, missing {sorted(SDIST - top)}")
    if junk := sorted("/".join(parts) for parts in inside if {"__pycache__", ".git", ".github"} & set(parts)):
        raise ReleaseError(f"the sdist has {', '.join(junk)}")


def try_install(wheel: Path, trial: Trial, folder: Path) -> None:
    """Install the wheel in an environment of its own, and use it.

    Raises:
        ReleaseError: it cannot be installed, or does not work.
    """
    tool("uv", "venv", "--quiet", "--python", trial.python, folder)
    python = folder / "bin" / "python"
    into = ("pip", "install", "--quiet", "--python", python)
    extra = ["--extra", trial.extra] if trial.extra else []
    locked = folder / "requirements.txt"
    tool(
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--python",
        python,
        "--resolution",
        trial.resolution,
        *extra,
        "pyproject.toml",
        "-o",
        locked,
    )
    tool("uv", *into, "-r", locked)
    tool("uv", *into, "--no-deps", wheel)
    if (said := run(folder / "bin" / "bnfold", "--version", cwd=folder)) != f"bnfold, version {VERSION}\n":
        raise ReleaseError(f"bnfold --version says: {said}")
    run(python, "-c", f"import bnfold; assert bnfold.__version__ == {VERSION!r}", cwd=folder)
    run(python, "-m", "bnfold", "--help", cwd=folder)
    folded = run(python, "-m", "bnfold", "fuse", MODEL, "-o", "out.onnx", cwd=folder)
    if "4 BatchNorms found: 4 folded, 0 kept" not in folded:
        raise ReleaseError(f"bnfold fuse says: {folded}")
    if USES[trial.extra]:
        run(python, *USES[trial.extra], cwd=folder)


def trials(pythons: Sequence[str], extras: Sequence[str]) -> Iterator[Trial]:
    """Each extra alone, newest and lowest, on the first Python; the others get the core and what `verify` needs."""
    first, *others = pythons
    for extra in extras:
        for resolution in ("highest", "lowest-direct"):
            yield Trial(first, extra, resolution)
    for python in others:
        for extra in ("", "cpu"):
            yield Trial(python, extra, "highest")


def has_python(version: str) -> bool:
    """Whether uv finds this Python on the machine."""
    try:
        tool("uv", "python", "find", "--no-project", version)
    except ReleaseError:
        return False
    return True


def installed(folder: Path) -> str:
    """The versions of the direct dependencies in an environment."""
    asked = [
        *PROJECT["dependencies"],
        *(each for extra in USES if extra for each in PROJECT["optional-dependencies"][extra]),
    ]
    names = {requirement.split(">=")[0].split("[")[0] for requirement in asked}
    lines = tool("uv", "pip", "freeze", "--python", folder / "bin" / "python").splitlines()
    return ", ".join(line.replace("==", " ") for line in lines if line.split("==")[0] in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="build and look inside; install nothing")
    parser.add_argument(
        "--pythons", nargs="+", default=PYTHONS, help="versions or paths; those that uv does not find are left out"
    )
    parser.add_argument("--extras", nargs="*", default=list(USES), choices=list(USES), help="those that are tried")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        check_files(wheel, sdist)
        print(
            *(f"{path.name}: {path.stat().st_size:,} bytes, with all that it should have" for path in (wheel, sdist)),
            sep="\n",
            flush=True,
        )
        if options.quick:
            return
        pythons = [python for python in options.pythons if has_python(python)]
        print("\n| Python | extra | dependencies | seconds | versions |\n|---|---|---|---:|---|")
        for number, trial in enumerate(trials(pythons, options.extras)):
            started = time.perf_counter()
            environment = folder / str(number)
            try_install(wheel, trial, environment)
            seconds = time.perf_counter() - started
            row = (
                run(environment / "bin" / "python", "-c", "import platform; print(platform.python_version())").strip(),
                trial.extra or "none",
                trial.resolution.removesuffix("-direct"),
                f"{seconds:.0f}",
                installed(environment),
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except ReleaseError as error:
        sys.exit(f"error: {error}")
