"""Checks of a `.pt2` archive before `torch.export.load` reads it, which runs code from a hostile one.

The loader of torch 2.13 unpickles sample inputs, constants and older weights without restriction, evaluates symbolic
expressions and guards as Python, builds Python source from names, imports modules that tree specifications name, and
loads compiled libraries. So each entry is allowed by name and checked before the loader sees it:

1. entries: a program, its raw weights and constants, sample inputs that load with ``weights_only=True``, text;
2. weights and constants: raw bytes, never a pickle or a custom object;
3. expressions and guards: a grammar of integers, symbols and arithmetic;
4. names: identifiers; operators: of torch's own libraries; trees: of registered kinds, without enumerations.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import zipfile
from collections.abc import Callable, Iterator
from math import prod
from typing import IO, Any

import torch
from torch.utils import _pytree

from bnfold.errors import InvalidModelError, one_line

ENTRIES = re.compile(
    r"""models/model\.json
      | data/weights/(weight_\d+|model_weights_config\.json)
      | data/constants/(tensor_\d+|model_constants_config\.json)
      | data/sample_inputs/model\.pt
      | extra/[\w.\-/]+
      | archive_format | archive_version | byteorder | \.data/version | \.data/serialization_id
      | \.format_version | \.storage_alignment | version""",
    re.VERBOSE | re.ASCII,
)
TEXT_LIMIT = 1 << 28
"""Bytes of a description, of sample inputs, or of any entry but weights."""

ELEMENT_LIMIT = 1 << 31
"""Elements that all tensors may have together beyond those that their bytes hold; strides of zero repeat one."""

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
OPERATOR = re.compile(
    r"""torch\.ops\.(aten|prims|prim|torchvision|quantized_decomposed)\.(?!__)\w+(\.\w+)?
      | torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast
            |invoke_subgraph|associative_scan|flex_attention|auto_functionalized(_v2)?)
      | _operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub|truediv)
      | math\.(ceil|floor|trunc|sqrt)
      | torch\.(_sym_sqrt|sym_float|sym_int|sym_ite|sym_max|sym_min|sym_not|sym_sum|sym_fresh_size)""",
    re.VERBOSE | re.ASCII,
)
FUNCTIONS = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "CeilDiv",
        "CeilToInt",
        "CleanDiv",
        "Eq",
        "Equality",
        "FloatTrueDiv",
        "Float",
        "FloorDiv",
        "FloorToInt",
        "Ge",
        "GreaterThan",
        "Gt",
        "IntTrueDiv",
        "Integer",
        "Le",
        "LessThan",
        "Lt",
        "Max",
        "Min",
        "Mod",
        "ModularIndexing",
        "Mul",
        "Ne",
        "Not",
        "Or",
        "PythonMod",
        "Rational",
        "RoundToInt",
        "StrictGreaterThan",
        "StrictLessThan",
        "Symbol",
        "ToFloat",
        "TruncToInt",
        "Unequality",
        "Where",
    ]
)
"""Functions that an expression over sizes may call. None of them makes huge numbers."""

PLAIN_NODES = (
    ast.Expression,
    ast.Constant,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.Load,
)


def insist_on_harmless(file: IO[bytes], name: str) -> list[str]:
    """Check an archive before it is loaded from the same open file, which is rewound.

    Args:
        file: open for reading in binary mode.
        name: what to call it in an error.

    Returns:
        The names of its extra files.

    Raises:
        InvalidModelError: it is no archive of an exported program, or loading it could run code.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = _entries(archive, name)
    # NotImplementedError: a compression that zipfile does not know; ValueError: an entry at no place in the file
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InvalidModelError(f"{name}: not an archive of an exported program ({error})") from error
    file.seek(0)
    try:
        reader = torch._C.PyTorchFileReader(file)
        read: Callable[[str], bytes] = reader.get_record
        if set(reader.get_all_records()) != set(sizes):
            raise InvalidModelError(f"{name}: its entries are not what they seem")
        _check(read, sizes, name)
    except RuntimeError as error:
        text = one_line(str(error), 200)
        raise InvalidModelError(f"{name}: not an archive of an exported program ({text})") from error
    except RecursionError as error:
        raise InvalidModelError(f"{name}: its description is nested too deeply") from error
    file.seek(0)
    return [entry.removeprefix("extra/") for entry in sizes if entry.startswith("extra/")]


def _entries(archive: zipfile.ZipFile, name: str) -> dict[str, int]:
    """The sizes of the entries by their names below the archive's folder, each of them allowed."""
    sizes: dict[str, int] = {}
    for info in archive.infolist():
        entry = info.filename.partition("/")[2]
        if not ENTRIES.fullmatch(entry) or ".." in entry:
            raise InvalidModelError(f"{name}: holds {info.filename!r}, which a plain exported program does not")
        if entry in sizes:
            raise InvalidModelError(f"{name}: holds {info.filename!r} twice")
        if info.compress_type != zipfile.ZIP_STORED:
            raise InvalidModelError(f"{name}: {info.filename!r} is compressed, which torch.export.save never does")
        if not entry.startswith(("data/weights/weight_", "data/constants/tensor_")) and info.file_size > TEXT_LIMIT:
            raise InvalidModelError(f"{name}: {info.filename!r} has {info.file_size} bytes")
        sizes[entry] = info.file_size
    for needed in ("models/model.json", "data/weights/model_weights_config.json", "data/sample_inputs/model.pt"):
        if needed not in sizes:
            raise InvalidModelError(f"{name}: not an archive of an exported program (it has no {needed})")
    return sizes


def _check(read: Callable[[str], bytes], sizes: dict[str, int], name: str) -> None:
    spare = ELEMENT_LIMIT
    for kind, prefix in (("weights", "weight_"), ("constants", "tensor_")):
        entry = f"data/{kind}/model_{kind}_config.json"
        if entry in sizes:
            for tensor, payload in _mapping(_parse(read(entry), name, entry).get("config"), name).items():
                spare -= _check_payload(payload, prefix, f"data/{kind}/", sizes, f"{name}: {tensor}")
    if spare < 0:
        raise InvalidModelError(f"{name}: its tensors have more elements than its bytes hold")
    _check_program(_parse(read("models/model.json"), name, "models/model.json"), name)
    _check_samples(read("data/sample_inputs/model.pt"), name)


def _parse(text: bytes, name: str, entry: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidModelError(f"{name}: {entry} is not JSON ({error})") from error
    return _mapping(found, name)


def _mapping(found: Any, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InvalidModelError(f"{name}: its description has another form")
    return found


def _check_payload(payload: Any, prefix: str, folder: str, sizes: dict[str, int], what: str) -> int:
    """The number of elements that a raw tensor has beyond the bytes of its entry."""
    described = _mapping(payload, what)
    path = str(described.get("path_name"))
    if described.get("use_pickle") is not False or not re.fullmatch(rf"{prefix}\d+", path):
        raise InvalidModelError(f"{what} is pickled or a custom object, and loading it could run code")
    meta = _mapping(described.get("tensor_meta"), what)
    dims: list[int] = []
    for each in meta.get("sizes", ()):
        dim = each.get("as_int") if isinstance(each, dict) else None
        if type(dim) is not int or dim < 0:
            raise InvalidModelError(f"{what} has no plain shape")
        dims.append(dim)
    return max(0, prod(dims) - sizes.get(folder + path, 0))


def _check_samples(data: bytes, name: str) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="meta")
    except Exception as error:  # the unpickler of torch raises anything on what it does not know
        raise InvalidModelError(
            f"{name}: its sample inputs are more than tensors and numbers, and loading them could run code"
        ) from error


def _check_program(program: dict[str, Any], name: str) -> None:
    for path, key, value in _items(program):
        what = f"{name}: {path} {str(value)[:80]!r}"
        if key == "expr_str":
            _check_expression(value, what, _is_size)
        elif key == "guards_code":
            for guard in value or ():
                _check_expression(guard, what, _is_guard)
        elif key == "as_operator" or (key == "target" and _is_node(path)):
            if not isinstance(value, str) or not OPERATOR.fullmatch(value):
                raise InvalidModelError(f"{what} is not an operator of torch")
        elif key in ("in_spec", "out_spec"):
            _check_tree(value, what)
        elif key in ("as_custom_obj", "class_fqn", "as_opaque_obj") and value:
            raise InvalidModelError(f"{what} is a custom object, and loading it could run code")
        elif key == "forward_arg_names":
            for each in value or ():
                _check_name(each, what)
        elif key == "name" and "metadata" not in path:
            _check_name(value, what, allow_none=True)
        elif key in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "range_constraints"):
            for each in _mapping(value, what):
                _check_name(each, what)
        elif key == "treespec_namedtuple_fields" and value:
            raise InvalidModelError(f"{what} names classes to import")


def _items(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every key and value of nested dictionaries and lists, with the path that leads there."""
    stack = [(path, value)]
    while stack:
        at, top = stack.pop()
        if isinstance(top, dict):
            for key, each in top.items():
                yield at, str(key), each
                stack.append((f"{at}.{key}"[-200:], each))
        elif isinstance(top, list):
            stack.extend((at, each) for each in top)


def _is_node(path: str) -> bool:
    return path.endswith(".nodes")


def _check_name(value: Any, what: str, *, allow_none: bool = False) -> None:
    if allow_none and value in (None, ""):
        return
    if not isinstance(value, str) or not NAME.fullmatch(value) or keyword.iskeyword(value):
        raise InvalidModelError(f"{what} is not a name")


def _check_tree(text: Any, what: str) -> None:
    """A pytree specification: of kinds that are registered already, with contexts that name nothing to import."""
    if not text:
        return
    try:
        _, tree = json.loads(text)
    except (ValueError, TypeError) as error:
        raise InvalidModelError(f"{what} is not a tree") from error
    stack = [tree]
    while stack:
        top = _mapping(stack.pop(), what)
        kind, context = top.get("type"), json.dumps(top.get("context"))
        known = kind is None or kind in _pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE
        if not known or "defaultdict" in str(kind) or "__enum__" in context:
            raise InvalidModelError(f"{what} holds a {kind}, which loading would have to import")
        stack.extend(top.get("children_spec", ()))


def _check_expression(text: Any, what: str, is_allowed: Callable[[ast.AST], bool]) -> None:
    try:
        if not isinstance(text, str) or len(text) > 10_000:
            raise SyntaxError
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError) as error:
        raise InvalidModelError(f"{what} is not an expression over sizes") from error
    for node in ast.walk(tree):
        plain = isinstance(node, PLAIN_NODES) and not isinstance(node, ast.Pow | ast.LShift)
        if isinstance(node, ast.Constant):
            plain = isinstance(node.value, bool | int | float | str) and len(str(node.value)) <= 40
        if not plain and not is_allowed(node):
            raise InvalidModelError(f"{what} is not an expression over sizes")


def _is_size(node: ast.AST) -> bool:
    """Part of what `sympify` may read: symbols, and sympy's own functions with plain keywords."""
    if isinstance(node, ast.Name):
        return node.id in FUNCTIONS or re.fullmatch(r"[suz]\d+|zuf\d+|zf\d+|int_oo|oo", node.id) is not None
    if isinstance(node, ast.Call):
        strings = [each for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        named = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        symbols = all(NAME.fullmatch(str(each.value)) for each in strings)
        return named and symbols and (not strings or getattr(node.func, "id", "") in ("Symbol", "Float"))
    if isinstance(node, ast.keyword):
        return node.arg in ("positive", "integer", "nonnegative", "real", "precision", "evaluate")
    return False


def _is_guard(node: ast.AST) -> bool:
    """Part of a guard: ``L['x'].size()[2] >= 3``."""
    if isinstance(node, ast.Name):
        return node.id in ("L", "Max", "Min", "Mod", "FloorDiv")
    if isinstance(node, ast.Attribute):
        return node.attr in ("size", "stride", "storage_offset")
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id != "L"
        return not node.keywords and (named or (isinstance(node.func, ast.Attribute) and not node.args))
    return isinstance(node, ast.Subscript)
