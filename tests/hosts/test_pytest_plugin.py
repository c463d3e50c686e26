"""The plugin for pytest, in sessions of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

MODELS = Path(__file__).parents[2] / "models"
PLUGIN = ("-p", "bnfold.hosts.pytest_plugin", "-p", "no:cacheprovider")

TEST = f"""
    import pytest
    A, B = {str(MODELS / "digits_cnn.onnx")!r}, {str(MODELS / "digits_mlp.onnx")!r}

    @pytest.mark.bnfold(effort="fast")
    class TestModels:
        def test_same(self, assert_equivalent):
            assert assert_equivalent(A, A).is_equivalent

        @pytest.mark.bnfold(samples=3)
        def test_other(self, assert_equivalent):
            assert len(assert_equivalent(A, B).samples) == 3
"""


def plugins() -> tuple[str, ...]:
    """The plugin by its module, unless the package is installed with its entry point."""
    code = "from importlib.metadata import entry_points as e; print([p.name for p in e(group='pytest11')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return PLUGIN[2:] if "'bnfold'" in found else PLUGIN


def test_models_that_differ_fail_with_a_page(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    done = pytester.runpytest_subprocess(*plugins(), "--bnfold-reports", "pages", "--strict-markers")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*not equivalent: *", "*report: pages*test_other.html"])
    (page,) = (pytester.path / "pages").iterdir()
    assert "digits_mlp.onnx" in page.read_text(encoding="utf-8")


def test_without_a_folder_nothing_is_written(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    done = pytester.runpytest_subprocess(*plugins())
    done.assert_outcomes(passed=1, failed=1)
    assert "report:" not in done.stdout.str()
    assert not list(pytester.path.rglob("*.html"))


def test_a_session_without_the_fixture_imports_no_runtime() -> None:
    code = "import sys, bnfold.hosts.pytest_plugin; print({'onnx', 'onnxruntime', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
