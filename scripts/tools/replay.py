"""Process replay: that a refactoring changed no byte of what bnfold makes.

    python scripts/tools/replay.py record -o before.json            # the bnfold that Python finds
    python scripts/tools/replay.py record --checkout FOLDER -o after.json
    python scripts/tools/replay.py compare before.json after.json   # exit 1 where they differ

`record` fuses every model of `models/`, the graphs that the tests of ONNX give to `bnfold.fuse`, the toy modules of
PyTorch, and random models of fixed seeds. It writes the outcomes of each and the SHA-256 of the result. A test ends at
the first graph that it fuses; of a test with many cases, some run. The models come from the tests beside this script
and their own bnfold, so that two checkouts are compared on the same ones, whatever their modules are called.
`--only onnx` or `--only torch` takes a part of them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).parents[2]

TESTS = (
    "conformance", "traps", "shifts", "merge", "merge_traps", "merge_scopes", "merge_kernels", "quantized", "recurrent",
)  # fmt: skip
"""Of ONNX, whose models are recorded."""

CASES_PER_TEST = 40

SEEDS = range(60)
"""Of random models; of PyTorch a quarter of them, since exporting takes its time."""

Cases = dict[str, dict[str, Any]]


def use(checkout: Path) -> None:
    """Let `import bnfold` give the one of a checkout, wherever else there is another."""
    place = checkout.resolve() / "bnfold"
    spec = importlib.util.spec_from_file_location(
        "bnfold", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    if spec is None or spec.loader is None or not place.is_dir():
        sys.exit(f"{checkout}: there is no bnfold in it")
    sys.modules["bnfold"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bnfold"])


# ------------------------------------------------------------------------------------------------------------ digests


def digest(made: Any) -> str:
    """SHA-256 of a model: of its bytes, or of the code and the tensors of a torch model."""
    if isinstance(made, bytes):
        return hashlib.sha256(made).hexdigest()
    if isinstance(made, onnx.ModelProto):
        return digest(made.SerializeToString(deterministic=True))
    if hasattr(made, "opset_imports"):  # onnx_ir.Model
        import onnx_ir

        return digest(onnx_ir.to_proto(made))
    return digest("\n".join(describe(made)).encode())


def describe(made: Any) -> Iterator[str]:
    """A torch model in lines: its structure, the code of its graphs, its tensors."""
    import torch

    yield type(made).__name__
    if isinstance(made, torch.export.ExportedProgram):
        yield str(made.graph)
        yield str(made.graph_signature)
        state = {**made.state_dict, **made.constants}
    else:
        for name, module in made.named_modules():
            yield f"{name}: {type(module).__name__} {module.extra_repr()}"
            if isinstance(module, torch.fx.GraphModule):
                yield str(module.graph)
        state = made.state_dict()
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            yield f"{name}: {tensor.dtype} {tuple(tensor.shape)} {digest(content)}"


def plain(value: Any) -> Any:
    """An outcome as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def replay(fuse: Callable[..., Any], model: Any, **options: Any) -> dict[str, Any]:
    """What fusing a model gives: outcomes and digest, or the error."""
    from bnfold import BnfoldError

    try:
        made, outcomes = fuse(model, **{**options, "return_outcomes": True})
    except BnfoldError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    said = [{"kind": type(each).__name__, **plain(asdict(each))} for each in outcomes]
    return {"outcomes": said, "sha256": digest(made)}


# ------------------------------------------------------------------------------------------------------------- models


def shipped_models() -> Cases:
    """The models of `models/`, as protobufs and as files."""
    import bnfold
    from bnfold.api import fuse_file

    cases: Cases = {}
    for path in sorted((ROOT / "models").glob("*.onnx")):
        cases[f"models/{path.name}"] = replay(bnfold.fuse, onnx.load(path))
        with tempfile.TemporaryDirectory() as folder:
            fuse_file(path, Path(folder) / path.name, checks="none")
            files = {each.name: digest(each.read_bytes()) for each in sorted(Path(folder).iterdir())}
        cases[f"models/{path.name} as a file"] = {"files": files}
    return cases


@dataclass
class Corpus:
    """ONNX models in a folder, each with its name and with the options of `bnfold.fuse`."""

    folder: Path
    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def add(self, name: str, model: onnx.ModelProto, options: dict[str, Any]) -> None:
        """Keep a model."""
        (self.folder / f"{len(self.entries)}.onnx").write_bytes(model.SerializeToString())
        self.entries.append((name, options))

    def close(self) -> None:
        """Write the names."""
        (self.folder / "entries.json").write_text(json.dumps(self.entries))

    def models(self) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
        """All of them, read from the folder."""
        for index, (name, options) in enumerate(json.loads((self.folder / "entries.json").read_text())):
            yield name, onnx.ModelProto.FromString((self.folder / f"{index}.onnx").read_bytes()), options


class Recorder:
    """A plug-in of pytest that records what a test gives to `bnfold.fuse` first, and ends the test there."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus, self._name = corpus, ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Of the cases of one test, as many as `CASES_PER_TEST`, spread evenly."""
        total, seen, kept = Counter(map(_test_of, items)), Counter[str](), []
        for item in items:
            test = _test_of(item)
            if seen[test] * CASES_PER_TEST // total[test] != (seen[test] - 1) * CASES_PER_TEST // total[test]:
                kept.append(item)
            seen[test] += 1
        items[:] = kept

    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Note which test runs."""
        self._name = f"{item.path.stem}::{item.name}"

    def fuse(self, model: Any, **options: Any) -> NoReturn:
        """In the place of `bnfold.fuse`."""
        if isinstance(model, onnx.ModelProto):
            told = {name: value for name, value in options.items() if isinstance(value, bool | str | list | tuple)}
            self._corpus.add(self._name, model, told)
        pytest.skip("recorded")


def _test_of(item: pytest.Item) -> str:
    return f"{item.path.stem}::{item.name.partition('[')[0]}"


def collect(options: argparse.Namespace) -> None:
    """Write the graphs of the tests of ONNX, and random ones, into a folder."""
    use(ROOT)
    import bnfold

    corpus = Corpus(options.folder)
    recorder = Recorder(corpus)
    bnfold.fuse = recorder.fuse
    files = [str(ROOT / "tests" / "frontends" / "onnx" / f"test_onnx_{name}.py") for name in TESTS]
    with redirect_stdout(io.StringIO()) as printed:
        quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # bnfold has a plugin, and is imported
        pytest.main(["-q", "-p", "no:cacheprovider", *quiet, *files], plugins=[recorder])
    if not corpus.entries:
        sys.exit(f"the tests cannot be run:\n{printed.getvalue()}")

    from tests.frontends.onnx import (
        test_random_branches,
        test_random_graphs,
        test_random_streams,
    )  # after pytest, which wants to load them

    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        model = test_random_graphs.build(lambda count, drawn=generator: int(drawn.integers(count)), seed)
        corpus.add(f"random graph {seed}", model, {})
        branchy = test_random_branches.build(seed)
        corpus.add(f"random branches {seed}", branchy, {})
        corpus.add(f"random branches {seed}, not merged", branchy, {"merge": False})
        corpus.add(f"random streams {seed}", test_random_streams.build(seed), {})
    corpus.close()


def graphs_of_tests() -> Cases:
    """What `collect` finds, in a process of its own."""
    import bnfold

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "collect", folder], check=True)
        models = Corpus(Path(folder)).models()
        return {name: replay(bnfold.fuse, model, **options) for name, model, options in models}


def torch_models() -> Cases:
    """Toy and random modules: by themselves, as graphs, as programs."""
    import torch

    import bnfold
    from tests.frontends.torch.test_torch_conformance import TOYS
    from tests.frontends.torch.test_torch_random import Drawn
    from tests.toys.torch_models import drawn, exported, traced, trained

    makers: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
        **{f"torch toy {name}": (toy.module, toy.shape) for name, toy in TOYS.items()},
        **{f"torch random {seed}": (partial(Drawn, seed), (2, 4, 8, 8)) for seed in SEEDS[::4]},
    }
    cases: Cases = {}
    for name, (make, shape) in makers.items():
        torch.manual_seed(0)  # of the biases
        module, x = trained(make()), drawn(*shape)
        cases[f"{name}, module"] = replay(bnfold.fuse, module)
        cases[f"{name}, graph"] = replay(bnfold.fuse, traced(module), example_inputs=x)
        cases[f"{name}, program"] = replay(bnfold.fuse, exported(module, x))
    return cases


SOURCES = {"onnx": (shipped_models, graphs_of_tests), "torch": (torch_models,)}


# ----------------------------------------------------------------------------------------------------------- commands


def record(options: argparse.Namespace) -> None:
    """Write what becomes of every model."""
    if options.checkout is not None:
        use(options.checkout)
    import bnfold

    began, cases = time.perf_counter(), {}
    for kind in [options.only] if options.only else SOURCES:
        for source in SOURCES[kind]:
            cases.update(source())
    options.output.write_text(json.dumps(dict(sorted(cases.items())), indent=1) + "\n")
    place = Path(str(bnfold.__file__)).parents[1]
    print(f"{len(cases)} models by {place}, {time.perf_counter() - began:.0f} s: {options.output}")


def compare(options: argparse.Namespace) -> None:
    """Say which models became something else."""
    before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
    different = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    for name in different:
        print(f"{name}: {difference(before.get(name), after.get(name))}")
    if different:
        sys.exit(f"{len(different)} of {len(before.keys() | after.keys())} models differ")
    print(f"{len(before)} models: every outcome and every byte is the same")


def difference(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """What differs, in a few words."""
    if before is None or after is None:
        return "only after" if before is None else "only before"
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    shown = [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if key != "sha256"]
    return "; ".join(each if len(each) < 1000 else f"{each[:1000]} ..." for each in shown) or "other bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="fuse the models, and write what becomes of them")
    recording.add_argument("--checkout", type=Path, help="the folder whose bnfold is used")
    recording.add_argument("--only", choices=SOURCES)
    recording.add_argument("-o", "--output", type=Path, required=True)
    recording.set_defaults(run=record)
    collecting = commands.add_parser("collect", help="write the graphs of the tests into a folder; `record` does it")
    collecting.add_argument("folder", type=Path)
    collecting.set_defaults(run=collect)
    comparing = commands.add_parser("compare", help="say which models became something else")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.set_defaults(run=compare)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
