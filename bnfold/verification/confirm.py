"""Runs an ONNX model in a process of its own, for the shapes and types of its inner values.

``python -m bnfold.verification.confirm`` is that process: it reads a JSON document from standard input, which
`confirmer` writes, and writes one to standard output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from bnfold.errors import BnfoldError, IncomparableError
from bnfold.frontends.onnx.nesting import bodies, nested
from bnfold.frontends.onnx.shape_inference import Confirm, Seen
from bnfold.runtimes.child import run_module, serve
from bnfold.runtimes.inputs import Effort, Feeds, InputOptions, find_samples
from bnfold.runtimes.onnx_runtime import OnnxSession
from bnfold.verification.onnx_subject import OnnxSubject, reads

RUNS = 2

SECONDS = 300.0
"""How long a run may take."""

OVERRIDABLE = 4
"""The first IR version in which a caller may replace an initializer that is also an input. Such inputs are drawn."""

OPSET = 13
"""The opset of standard operators for a model that declares none."""


def confirmer(read: Callable[[], tuple[onnx.ModelProto, Path | None]], inputs: InputOptions) -> Confirm | None:
    """A way to run a model for the shapes of inner values; None where there is no onnxruntime.

    Args:
        read: gives the model, and the folder of its external data.
        inputs: the inputs that it runs on. Drawn ones are drawn twice, with two sizes for each dynamic dimension.
    """
    if find_spec("onnxruntime") is None:
        return None

    def confirm(names: Sequence[str]) -> Mapping[str, Seen] | None:
        try:
            proto, folder = read()
            return _observe(_part(proto, names), folder, names, inputs)
        except BnfoldError:  # it does not run, so the shapes are not confirmed
            return None

    return confirm


def _observe(
    part: onnx.ModelProto, folder: Path | None, names: Sequence[str], inputs: InputOptions
) -> Mapping[str, Seen]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        try:
            path.write_bytes(part.SerializeToString())
        except (EncodeError, ValueError) as error:
            raise IncomparableError(f"the model is too large for a protobuf ({error})") from error
        if inputs.given:
            np.savez(Path(place) / "inputs.npz", **inputs.given[0])  # type: ignore[arg-type]
            inputs = replace(inputs, given=None, paths=(Path(place) / "inputs.npz",))
        job = {
            "model": str(path),
            "folder": None if folder is None else str(folder.resolve()),
            "names": list(names),
            "inputs": [str(file) for file in inputs.paths],
            "dims": dict(inputs.dims or {}),
            "seed": inputs.seed,
        }
        result = run_module("bnfold.verification.confirm", job, "the model", SECONDS)
    return {
        name: Seen(tuple(tuple(shape) for shape in shapes), result["types"][name])
        for name, shapes in result["shapes"].items()
    }


def _part(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The part of a model that computes some values. It returns them and their shapes, and declares only inputs."""
    needed, nodes = set(names), []
    for node in reversed(proto.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
            nodes.append(node)
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    if not any(opset.domain in ("", "ai.onnx") for opset in proto.opset_import):
        part.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    part.functions.extend(proto.functions)
    for function in part.functions:
        del function.value_info[:]
        _forget_values(function)
    graph = part.graph
    graph.name = proto.graph.name or "part"
    graph.node.extend(reversed(nodes))
    graph.input.extend(info for info in proto.graph.input if info.name in needed)
    drawn = {info.name for info in graph.input} if proto.ir_version >= OVERRIDABLE else set()
    graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in needed - drawn)
    graph.sparse_initializer.extend(tensor for tensor in proto.graph.sparse_initializer if tensor.values.name in needed)
    for name in names:
        graph.node.append(onnx.helper.make_node("Shape", [name], [_shape_of(name)]))
        graph.output.extend(onnx.ValueInfoProto(name=output) for output in (name, _shape_of(name)))
    _forget_values(graph)
    return part


def _shape_of(name: str) -> str:
    return f"{name}/bnfold_shape"


def _forget_values(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Drop the declarations of inner values in bodies."""
    for node in graph.node:
        for body in bodies(node):
            for inner in nested(body):
                del inner.value_info[:]


def observe(job: dict[str, Any]) -> dict[str, Any]:
    """Run a model twice, and report the shapes and types of its values."""
    folder = None if job["folder"] is None else Path(job["folder"])
    content = Path(job["model"]).read_bytes()
    subject = OnnxSubject(onnx.load_model_from_string(content), "the model", folder=folder)
    session = OnnxSession(content, "the model", folder=folder)
    types = session.types()
    names = [name for name in job["names"] if name in types]
    shapes: dict[str, list[list[int]]] = {name: [] for name in names}

    def run(feeds: Feeds) -> IncomparableError | None:
        try:
            sizes = session(feeds, [_shape_of(name) for name in names])
        except IncomparableError as error:
            return error
        for name, shape in zip(names, sizes, strict=True):
            shapes[name].append([int(size) for size in shape])
        return None

    options = InputOptions(tuple(map(Path, job["inputs"])), dims=job["dims"], seed=job["seed"], effort=Effort.FAST)
    samples, _ = find_samples(subject.inputs, options, run)
    for sample in samples[len(next(iter(shapes.values()), [])) : RUNS]:
        if (error := run(sample.feeds)) is not None:
            raise error
    return {"shapes": shapes, "types": {name: types[name] for name in names}}


if __name__ == "__main__":
    serve(observe)
