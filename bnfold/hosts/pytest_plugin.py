"""A plugin for pytest: the fixture `assert_equivalent`, the marker `bnfold`, and a page about models that differ.

pytest imports it on every start, so it imports nothing of bnfold until the fixture is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The folder of the pages."""
    parser.getgroup("bnfold").addoption(
        "--bnfold-reports",
        type=Path,
        metavar="FOLDER",
        help="where a page about each pair of models that differ is written (needs bnfold[report])",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line(
        "markers", "bnfold(**options): options of assert_equivalent, those of bnfold.verify, for a test or a class"
    )


@pytest.fixture
def assert_equivalent(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Assert that two models are the same apart from rounding, as `bnfold.testing.assert_equivalent` does.

    The options of the marker `bnfold` apply, the closest first. With ``--bnfold-reports FOLDER``, a page says what
    differs; a message says where it is.
    """
    options: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("bnfold"))):
        options |= mark.kwargs
    folder: Path | None = request.config.getoption("--bnfold-reports")
    written: list[Path] = []

    def check(reference: Any, candidate: Any, inputs: Any = None, **more: Any) -> Any:
        __tracebackhide__ = True
        from bnfold.testing import explain
        from bnfold.verification.equivalence import verify

        verdict = verify(reference, candidate, inputs, **{**options, **more})
        if verdict.is_equivalent:
            return verdict
        message = explain(verdict)
        if folder is not None:
            path = folder / f"{_file_name(request.node.nodeid)}{len(written) or ''}.html"
            written.append(path)
            _write(path, _label(reference, "reference"), _label(candidate, "candidate"), verdict)
            message += f"\n  report: {path}"
        raise AssertionError(message)

    return check


def _file_name(test: str) -> str:
    """The name of a test as that of a file."""
    return re.sub(r"[^\w.-]+", "-", test).strip("-")[-120:]


def _label(model: Any, role: str) -> str:
    """How a page names a model: by its file, where it has one."""
    return str(model) if isinstance(model, str | Path) else f"the {role}, a {type(model).__name__}"


def _write(path: Path, reference: str, candidate: str, verdict: Any) -> None:
    """Write the page about a verdict."""
    from bnfold.report import files
    from bnfold.report.record import record_comparison
    from bnfold.verification.equivalence import Comparison

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(record_comparison(Comparison(Path(reference), Path(candidate), verdict, 0.0)), path)
