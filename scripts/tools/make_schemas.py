"""Writes bnfold/report/schema/*.json: the type of each command's document as a JSON schema.

Keys that a schema does not know are allowed, since later versions add some.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from bnfold.report.documents import COMMANDS, SCHEMAS

TARGET = Path(__file__).parents[2] / "bnfold" / "report" / "schema"

Schema = dict[str, Any]

NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def schema_of(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type; each TypedDict in it becomes one of the definitions."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if is_typeddict(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = object_of(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], definitions)}
    if origin in (Union, UnionType):
        schemas = [schema_of(each, definitions) for each in arguments]
        is_plain = all(schema.keys() == {"type"} for schema in schemas)
        return {"type": [schema["type"] for schema in schemas]} if is_plain else {"anyOf": schemas}
    return {"type": NAMES[kind]}


def object_of(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """The schema of a TypedDict."""
    hints = get_type_hints(kind)
    optional = {
        name
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if get_origin(hint) is NotRequired  # which `__required_keys__` does not see in annotations that are texts
    }
    return {
        "type": "object",
        "description": inspect.getdoc(kind),
        "properties": {name: schema_of(hint, definitions) for name, hint in hints.items()},
        "required": sorted(kind.__required_keys__ - optional),
    }


def document(name: str) -> Schema:
    """The schema of what a command writes, or of an error."""
    definitions: dict[str, Schema] = {}
    schema = object_of(SCHEMAS[name], definitions)
    if name in COMMANDS:
        schema["properties"]["command"] = {"const": name}
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"bnfold {name}"}
    return dialect | schema | {"$defs": definitions}


def main() -> None:
    texts = {TARGET / f"{name}.json": json.dumps(document(name), indent=2) + "\n" for name in SCHEMAS}
    if "--check" in sys.argv:
        sys.exit({path: path.read_text() for path in TARGET.iterdir()} != texts)
    for path, text in texts.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
