"""Documents against the schemas that are shipped."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from typing import Any

import jsonschema

COMMANDS = ("fuse", "inspect", "verify", "bench", "diff")


def schema(command: str) -> dict[str, Any]:
    """The schema of a command's document, as the package has it."""
    text = files("bnfold.report").joinpath("schema", f"{command}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def closed(of: dict[str, Any]) -> dict[str, Any]:
    """A schema that also refuses keys it does not know: what this version writes is described in full."""
    strict = copy.deepcopy(of)
    for part in (strict, *strict["$defs"].values()):
        part["additionalProperties"] = False
    return strict


def insist_on_schema(document: Any) -> None:
    """Check a document of any command, whether fresh or read from a file.

    Raises:
        jsonschema.ValidationError: it is not what its schema says, or has a key too many.
    """
    stored = json.loads(json.dumps(document, allow_nan=False))
    name = "error" if "error" in stored else stored["command"]
    jsonschema.validate(stored, closed(schema(name)), jsonschema.Draft202012Validator)
