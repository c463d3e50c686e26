"""Imports point strictly downward, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_graphs
import pytest

ROOT = Path(__file__).parent.parent / "bnfold"

# A module may import modules of lower levels, and its own package.
LEVELS = {
    "errors": 0,
    "allocation": 0,
    "child": 1,
    "inference": 0,
    "limits": 0,
    "lines": 0,
    "lazily": 0,
    "affine": 0,
    "pooling": 0,
    "rounding": 1,
    "linear": 2,
    "terms": 3,
    "health": 1,
    "outcome": 1,
    "blocks": 3,
    "ops": 3,
    "graph": 4,
    "rules": 4,
    "draft": 5,
    "merges": 6,
    "planner": 7,
    "fold": 8,
    "frontends": 9,
    "verification": 9,
    "optional": 10,
    "equivalence": 11,
    "bench": 12,
    "testing": 12,
    "api": 12,
    "report": 13,
    "cli": 14,
    "__init__": 14,
}

PLANNING = {"rules", "draft", "merges", "planner", "fold"}

FORBIDDEN = {"frontends": PLANNING | {"verification"}, "verification": PLANNING, "bench": PLANNING}

NUMPY_ONLY = PLANNING | {
    "errors",
    "limits",
    "lines",
    "lazily",
    "blocks",
    "affine",
    "linear",
    "rounding",
    "terms",
    "health",
    "outcome",
    "ops",
    "graph",
    "pooling",
}

LIBRARIES = {
    "torch": ("frontends/torch/", "verification/", "bench/torch_session.py"),
    "onnx": ("frontends/onnx/", "inference.py", "verification/", "bench/models.py", "api.py", "equivalence.py"),
    "onnx_ir": ("frontends/onnx/", "bench/models.py", "api.py", "equivalence.py"),
    "onnxruntime": ("verification/", "bench/onnx_session.py"),
    "jinja2": ("report/html/",),
    "markupsafe": ("report/html/",),
    "matplotlib": ("report/html/",),
}


def part(module: str) -> str:
    """The level's name: ``bnfold.rules.reindex`` -> ``rules``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def imports(source: str) -> set[str]:
    """Full names of all modules that a source imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            folder = ROOT.parent / node.module.replace(".", "/")
            for alias in node.names:
                is_module = (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").is_file()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def upward(module: str, source: str) -> list[str]:
    """What a module imports that does not lie below it."""
    mine = part(module)
    own = [name for name in imports(source) if name.split(".")[0] == "bnfold"]
    wrong = [name for name in own if part(name) != mine and LEVELS[part(name)] >= LEVELS[mine]]
    wrong += [name for name in own if part(name) in FORBIDDEN.get(mine, set())]
    if mine == "frontends" and module.count(".") > 1:
        front_end = module.split(".")[2]
        wrong += [name for name in own if part(name) == "frontends" and name.split(".")[2] != front_end]
    return wrong


def modules() -> list[tuple[str, Path]]:
    paths = sorted(ROOT.rglob("*.py"))
    return [(".".join(["bnfold", *path.relative_to(ROOT).with_suffix("").parts]), path) for path in paths]


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_downward(module: str, path: Path) -> None:
    assert upward(module, path.read_text()) == []


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_libraries_stay_where_they_belong(module: str, path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path.read_text())}
    if part(module) in NUMPY_ONLY:
        assert used - set(sys.stdlib_module_names) <= {"numpy", "bnfold"}
    place = path.relative_to(ROOT).as_posix()
    for library, places in LIBRARIES.items():
        assert library not in used or place.startswith(places), f"{place} imports {library}"


def test_an_upward_import_is_found() -> None:
    assert upward("bnfold.affine", "from bnfold.planner import make_plan") == ["bnfold.planner"]
    assert upward("bnfold.frontends.onnx.view", "from bnfold.frontends.torch import read") == ["bnfold.frontends.torch"]
    assert upward("bnfold.planner", "from bnfold.rules import pull") == []
    assert upward("bnfold.rules.reindex", "from bnfold import cli") == ["bnfold.cli"]
    assert upward("bnfold.affine", "from bnfold import fuse") == ["bnfold"]  # a lazy name reaches up as well
    assert upward("bnfold.affine", "import bnfold") == ["bnfold"]


@pytest.mark.parametrize("source", ["from . import cli", "from .cli import main"])
def test_a_relative_import_is_found(source: str) -> None:
    with pytest.raises(AssertionError, match="absolute"):
        upward("bnfold.affine", source)


def test_no_cycles() -> None:
    graph = {module.removesuffix(".__init__"): imports(path.read_text()) for module, path in modules()}
    visiting: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in visiting, f"cycle: {' -> '.join([*visiting, module])}"
        if module in done:
            return
        visiting.append(module)
        for name in sorted(graph[module]):
            if name in graph and name != module:
                visit(name)
        done.add(visiting.pop())

    for module in graph:
        if module != "bnfold":  # its imports are for type checkers only
            visit(module)


@pytest.mark.parametrize("module", ["bnfold", "bnfold.cli"])
def test_importing_is_light(module: str) -> None:
    heavy = {"torch", "onnx", "onnx_ir", "onnxruntime", "jinja2", "matplotlib"}
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_folding_on_the_command_line_does_not_load_sympy(tmp_path: Path) -> None:
    """Which onnx_ir imports; it would take longer than most folds."""
    onnx.save_model(small_model(), tmp_path / "m.onnx")
    code = (
        "import sys; from bnfold import cli; sys.argv[1:] = ['fuse', 'm.onnx', '-o', 'o.onnx', '--no-verify'];\n"
        "try: cli.main()\nfinally: print('sympy.core' in sys.modules, 'onnx_ir' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == "False True\n"


def small_model() -> onnx.ModelProto:
    nodes = [onnx_graphs.node("Conv", "x w", "c"), onnx_graphs.norm("c", "y")]
    constants = {"w": onnx_graphs.random(3, 4, 1, 1), **onnx_graphs.statistics(3)}
    return onnx_graphs.model(nodes, constants, ("N", 4, "N + 1", "W // 2"))
