"""Imports point strictly downward, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.toys import onnx_graphs

ROOT = Path(__file__).parent.parent / "bnfold"

# A module may import modules of lower levels, and of its own room.
LEVELS = {
    "errors": 0,
    "algebra": 0,
    "graph": 1,
    "planning": 2,
    "frontends": 3,
    "proof": 3,
    "runtimes": 4,
    "verification": 5,
    "bench": 5,
    "difference": 6,
    "testing": 7,
    "api": 7,
    "fleet": 7,
    "report": 8,
    "hosts": 9,
    "cli": 9,
    "__main__": 10,
    "__init__": 10,
}


FORBIDDEN = {room: {"planning"} for room in ("frontends", "runtimes", "verification", "bench", "fleet")}
FORBIDDEN["proof"] = {"planning", "graph", "frontends", "runtimes"}

BELIEVED = {"bnfold.algebra.affine", "bnfold.errors"}
"""All that the checker shares with what it checks: a pair of vectors, and what an error is."""

FRONT_ENDS = {"onnx", "torch"}
"""They share modules of `bnfold.frontends`, of which the door alone knows them."""

NUMPY_ONLY = {"errors", "algebra", "graph", "planning"}

LIBRARIES = {
    "torch": (
        "frontends/torch/",
        "proof/torch/",
        "runtimes/timed_torch_session.py",
        "verification/torch_proof.py",
        "verification/torch_subject.py",
        "bench/torch_models.py",
    ),
    "onnx": ("frontends/onnx/", "proof/", "runtimes/", "verification/", "bench/onnx_models.py", "api/folding.py"),
    "onnx_ir": ("frontends/onnx/", "bench/onnx_models.py", "api/folding.py", "hosts/passes.py"),
    "pytest": ("hosts/pytest_plugin.py",),
    "olive": ("hosts/olive.py",),
    "onnxruntime": ("runtimes/",),
    "jinja2": ("report/html/",),
    "markupsafe": ("report/html/",),
    "matplotlib": ("report/html/",),
    "dask": ("fleet/cluster.py",),
    "distributed": ("fleet/cluster.py", "fleet/engine.py"),
    "fsspec": ("fleet/places.py",),
}


def part(module: str) -> str:
    """The level's name: ``bnfold.planning.rules.reindex`` -> ``rules``."""
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
    if mine == "proof":
        wrong += [name for name in own if part(name) != "proof" and name not in BELIEVED]
    if mine == "frontends" and module != "bnfold.frontends.door":
        others = {*FRONT_ENDS, "door"} - {module.split(".")[2]}
        wrong += [name for name in own if part(name) == "frontends" and name.split(".")[2] in others]
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
    assert upward("bnfold.algebra.affine", "from bnfold.planning.planner import make_plan") == [
        "bnfold.planning.planner"
    ]
    assert upward("bnfold.frontends.onnx.view", "from bnfold.frontends.torch import read") == ["bnfold.frontends.torch"]
    assert upward("bnfold.planning.planner", "from bnfold.planning.rules import pull") == []
    assert upward("bnfold.planning.rules.reindex", "from bnfold import cli") == ["bnfold.cli"]
    assert upward("bnfold.algebra.affine", "from bnfold import fuse") == ["bnfold"]  # a lazy name reaches up as well
    assert upward("bnfold.algebra.affine", "import bnfold") == ["bnfold"]
    assert upward("bnfold.proof.checker", "from bnfold.algebra.linear import Linear") == ["bnfold.algebra.linear"]
    assert upward("bnfold.proof.checker", "from bnfold.algebra.affine import Affine") == []


@pytest.mark.parametrize("source", ["from . import cli", "from .cli import main"])
def test_a_relative_import_is_found(source: str) -> None:
    with pytest.raises(AssertionError, match="absolute"):
        upward("bnfold.algebra.affine", source)


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


@pytest.mark.parametrize("module", ["bnfold", "bnfold.cli", "bnfold.fleet"])
def test_importing_is_light(module: str) -> None:
    heavy = {"torch", "onnx", "onnx_ir", "onnxruntime", "jinja2", "matplotlib", "dask", "distributed", "fsspec"}
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
