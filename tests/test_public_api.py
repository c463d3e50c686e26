"""`bnfold.__all__` is true."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bnfold


def test_names_are_sorted_and_unique() -> None:
    assert bnfold.__all__ == sorted(set(bnfold.__all__))
    assert dir(bnfold) == bnfold.__all__


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    """Each is imported under its own name, which is how a type checker knows that it is public."""
    tree = ast.parse(Path(bnfold.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    lines = [ast.unparse(node) for node in block.body]
    imports = [f"from bnfold.{module} import {name} as {name}" for name, module in bnfold._MODULES.items()]
    assert sorted(lines) == sorted([*imports, *(f"from bnfold import {name} as {name}" for name in bnfold.ROOMS)])


@pytest.mark.parametrize("name", bnfold.__all__)
def test_each_name_resolves_and_is_described(name: str) -> None:
    found = getattr(bnfold, name)
    if callable(found) and getattr(found, "__module__", "").startswith("bnfold"):
        assert found.__doc__


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = bnfold.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "first", ["bnfold.api", "bnfold.cli", "bnfold.planning.plan", "bnfold.verification.equivalence"]
)
def test_no_module_hides_a_public_name(first: str) -> None:
    names = "[name for name in bnfold.__all__ if type(getattr(bnfold, name)) is types.ModuleType]"
    code = f"import {first}, bnfold, types; print({names})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
