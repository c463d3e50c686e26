"""The wheel and the sdist, as far as that needs no index; `scripts/tools/check_release.py` tries the rest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import bnfold
from scripts.tools import check_release

ROOT = Path(__file__).parents[2]

needs_tools = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("build", "check_wheel_contents", "click_man", "hatchling", "twine"))),
    reason="needs bnfold[release]",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist."""
    return check_release.build(tmp_path_factory.mktemp("dist"), isolated=False)


@needs_tools
def test_wheel_and_sdist_hold_what_they_should_and_the_wheel_works(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = built
    check_release.check_files(wheel, sdist)
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(install, check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import bnfold; assert bnfold.__file__.startswith(sys.path[0])\n"
        "from bnfold.cli import main; sys.argv = ['bnfold', '--version']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == f"bnfold, version {check_release.VERSION}\n", done.stderr


@needs_tools
def test_a_file_that_is_missing_or_does_not_belong_is_seen(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, sdist = built
    with monkeypatch.context() as other:
        other.setattr(check_release, "WHEEL", (*check_release.WHEEL, "bnfold/nothing.json"))
        with pytest.raises(check_release.ReleaseError, match=r"the wheel lacks bnfold/nothing\.json"):
            check_release.check_files(wheel, sdist)
    monkeypatch.setattr(check_release, "SDIST", check_release.SDIST - {"tests"})
    with pytest.raises(check_release.ReleaseError, match=r"unexpected \['tests'\]"):
        check_release.check_files(wheel, sdist)


@needs_tools
def test_manual_pages_say_what_the_commands_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "tools" / "make_man.py", "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/tools/make_man.py"


def test_one_version_is_told_everywhere() -> None:
    assert bnfold.__version__ == version("bnfold")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == check_release.VERSION
    assert f"## {check_release.VERSION}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
