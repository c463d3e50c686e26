"""The JSON of every command is what the schemas say that are shipped with the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.report.schemas import COMMANDS, insist_on_schema, schema
from tests.toys import html_records

ROOT = Path(__file__).parents[2]
GOLDEN = sorted(path for path in (ROOT / "tests" / "cli" / "golden").glob("*.txt") if " --json" in path.read_text())


def test_the_schemas_are_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "tools" / "make_schemas.py", "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/tools/make_schemas.py"


@pytest.mark.parametrize("command", [*COMMANDS, "error"])
def test_a_schema_is_one(command: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(command))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_document_is_valid(path: Path) -> None:
    text = re.search(r"^\{$.*?^\}$", path.read_text(), re.DOTALL | re.MULTILINE)
    assert text
    insist_on_schema(json.loads(re.sub(r": N\b", ": 0", text[0])))


def test_there_are_golden_documents() -> None:
    assert len(GOLDEN) >= 4


@pytest.mark.parametrize("command", ["fuse", "inspect", "verify", "diff"])
def test_a_document_with_everything_in_it_is_valid(command: str) -> None:
    insist_on_schema(html_records.RECORDS[command]())


def lacking(value: Any) -> Iterator[Any]:
    """Copies of a document, each without one key of it or of what it holds."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {name: other for name, other in value.items() if name != key}
            yield from ({**value, key: less} for less in lacking(inner))
    elif isinstance(value, list):
        yield from ([less] for each in value[:1] for less in lacking(each))


@pytest.mark.parametrize("command", ["fuse", "inspect"])
def test_every_missing_key_is_found(command: str) -> None:
    document = html_records.RECORDS[command]()
    document["verification"] = None
    copies = [each for each in lacking(document) if "command" in each]
    assert len(copies) > 40
    for each in copies:
        with pytest.raises(jsonschema.ValidationError):
            insist_on_schema(each)


def test_a_key_too_many_is_found() -> None:
    document = html_records.inspect()
    document["outcomes"][0]["colour"] = "red"
    with pytest.raises(jsonschema.ValidationError):
        insist_on_schema(document)
    jsonschema.validate(document, schema("inspect"))  # but a pipeline lets later versions add one
