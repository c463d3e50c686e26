"""Coverage-guided fuzzing of reading, planning and folding: only a `BnfoldError` may come out.

    pip install atheris
    python tests/fuzz/fuzz_onnx.py --corpus FOLDER -max_total_time=1200 -timeout=30 -rss_limit_mb=4096

The first run fills FOLDER with the seeds: small models of every kind of operator, and the hostile files of the tests.
Inputs are ONNX files; four mutations of five work on the protobuf's fields (another number, an element dropped or
repeated, two exchanged, a name of the model for another), so that most mutants still parse.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

import atheris  # noqa: E402

with atheris.instrument_imports(include=["bnfold"], enable_loader_override=False):
    import bnfold
    from bnfold.frontends.limits import Limits
    from bnfold.frontends.onnx.files import loading, saving
    from bnfold.frontends.onnx.operators import bounds

import onnx  # noqa: E402
from google.protobuf.descriptor import FieldDescriptor  # noqa: E402
from google.protobuf.message import DecodeError, Message  # noqa: E402

logging.getLogger("onnx_ir").addHandler(logging.NullHandler())  # as on the command line

bounds.FREE, bounds.WORK = 1 << 16, 1 << 20  # so that an input takes milliseconds
LIMITS = Limits(nodes=5_000, depth=32, bytes=1 << 26)
FOLDER = Path(tempfile.mkdtemp(prefix="bnfold-fuzz-"))
SEEDS_PER_TEST = 3
NUMBERS = (0, 1, -1, 2, 3, 7, 16, 127, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))


def test_one_input(data: bytes) -> None:
    """Load, plan, fuse and save; every BatchNorm of a model that loads has one outcome, and the result loads again."""
    path = FOLDER / "m.onnx"
    path.write_bytes(data)
    try:
        fused, outcomes = bnfold.fuse(path, return_outcomes=True, limits=LIMITS)
        planned = bnfold.plan(path, limits=LIMITS)
        saving.save(fused, FOLDER / "out.onnx")
    except bnfold.BnfoldError:
        return
    proto = onnx.ModelProto.FromString(data)
    expected = sum(_is_batchnorm(node) for graph in _graphs(proto) for node in graph.node)
    found = sum(each.is_batchnorm for each in outcomes)
    assert found == expected, f"{found} outcomes for {expected} BatchNorms"
    assert [type(each) for each in planned] == [type(each) for each in outcomes]
    loading.load(FOLDER / "out.onnx")


def _is_batchnorm(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")


def _graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto | onnx.FunctionProto]:
    found: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    for graph in found:
        for node in graph.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []
                found += attribute.graphs if attribute.type == onnx.AttributeProto.GRAPHS else []
    return found


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change a few fields of the model, or bytes where it is none."""
    generator = random.Random(seed)
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        return bytes(atheris.Mutate(data, max_size))
    if generator.random() < 0.2:
        return bytes(atheris.Mutate(data, max_size))
    names = [name for graph in _graphs(proto) for node in graph.node for name in (*node.input, *node.output)]
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        messages = _messages(proto)
        _change(generator.choice(messages), generator, names or ["x"])
    made = proto.SerializeToString()
    return made if len(made) <= max_size else bytes(atheris.Mutate(data, max_size))


def _messages(proto: Message) -> list[Message]:
    found = [proto]
    for message in found:
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                found += value if field.is_repeated else [value]
    return found


def _change(message: Message, generator: random.Random, names: list[str]) -> None:
    fields = [field for field, _ in message.ListFields()]
    if not fields or generator.random() < 0.1:
        fields = list(message.DESCRIPTOR.fields)
    field = generator.choice(fields)
    if field.is_repeated:
        _change_list(getattr(message, field.name), field, generator, names)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        message.ClearField(field.name) if generator.random() < 0.3 else getattr(message, field.name).SetInParent()
    elif generator.random() < 0.1:
        message.ClearField(field.name)
    else:
        try:
            setattr(message, field.name, _value(field, getattr(message, field.name), generator, names))
        except (ValueError, TypeError):
            message.ClearField(field.name)


def _change_list(values: object, field: FieldDescriptor, generator: random.Random, names: list[str]) -> None:
    held = list(values)  # type: ignore[call-overload]
    action = generator.choice(("drop", "repeat", "swap", "set"))
    place = generator.randrange(len(held)) if held else 0
    if held and action == "drop":
        del held[place]
    elif held and action == "repeat":
        held.insert(place, held[generator.randrange(len(held))])
    elif held and action == "swap":
        other = generator.randrange(len(held))
        held[place], held[other] = held[other], held[place]
    elif field.type != FieldDescriptor.TYPE_MESSAGE:
        new = _value(field, held[place] if held else None, generator, names)
        held[place : place + 1] = [new]
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        held = [type(each).FromString(each.SerializeToString()) for each in held]
    del values[:]  # type: ignore[attr-defined]
    try:
        values.extend(held)  # type: ignore[attr-defined]
    except (ValueError, TypeError):
        return


def _value(field: FieldDescriptor, old: object, generator: random.Random, names: list[str]) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        operators = ("BatchNormalization", "Conv", "Relu", "Concat", "Reshape", "Transpose", "Mul", "Add", "MatMul")
        return generator.choice([*names, "", "pads", "axis", *operators])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes(atheris.Mutate(old or b"\0", 4 + 2 * len(old or b"")))  # type: ignore[arg-type]
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return generator.choice((0.0, 1.0, -1.0, 1e-40, 1e38, float("nan"), float("inf")))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return generator.choice([each.number for each in field.enum_type.values])
    near = [old - 1, old + 1] if isinstance(old, int) else []
    return generator.choice([*NUMBERS, *near])


def seed_corpus(folder: Path) -> None:
    """Write the seeds: hostile files, and what the converters and the conformance tests make."""
    from tests.toys import hostile

    folder.mkdir(parents=True, exist_ok=True)
    for name, (write, _) in hostile.CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            inner = Path(temporary) / "inner"
            inner.mkdir()
            path = write(inner)
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 16:
                (folder / f"hostile-{name}").write_bytes(path.read_bytes())
    for name, proto in good_models().items():
        (folder / f"good-{name}").write_bytes(proto.SerializeToString())


def good_models() -> dict[str, onnx.ModelProto]:
    """The models that the tests make, small ones of every kind of operator."""
    import pytest

    from tests.toys import onnx_graphs

    made: dict[bytes, onnx.ModelProto] = {}
    seen: Counter[str] = Counter()
    model = onnx_graphs.model

    def recording(*arguments: Any, **options: Any) -> onnx.ModelProto:
        proto = model(*arguments, **options)
        test = os.environ["PYTEST_CURRENT_TEST"].partition("[")[0]
        seen[test] += 1
        if seen[test] <= SEEDS_PER_TEST:
            made[proto.SerializeToString()] = proto
        return proto

    onnx_graphs.model = recording
    tests = [f"test_onnx_{name}.py" for name in ("conformance", "traps", "quantized", "recurrent")]
    pytest.main(["-q", "-p", "no:cacheprovider", *(str(HERE.parent / "frontends" / "onnx" / name) for name in tests)])
    onnx_graphs.model = model
    return {str(index): proto for index, proto in enumerate(made.values()) if proto.ByteSize() < 1 << 14}


def main() -> None:
    arguments = list(sys.argv)
    if "--corpus" in arguments:
        place = arguments.index("--corpus")
        corpus = Path(arguments[place + 1])
        del arguments[place : place + 2]
        if not corpus.exists():
            seed_corpus(corpus)
        arguments.insert(1, str(corpus))
    atheris.Setup(arguments, test_one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
