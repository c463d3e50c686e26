"""The ledger keeps what was written, whatever ended the run that wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bnfold.fleet.ledger import Ledger, LedgerError, read_lines
from bnfold.fleet.task import Item, Line, Order, identity, identity_of_line, line_of

ORDER = Order("inspect", (), False, 60.0, "/")


def line(name: str, code: int = 0) -> Line:
    return line_of(Item(name, name), ORDER, {"batchnorms": {}}, code)


def test_a_line_is_found_where_it_was_written(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl") as ledger:
        places = [ledger.append(line(name)) for name in ("a", "b", "\N{GREEK SMALL LETTER ALPHA}")]
        assert [ledger.read(place)["source"] for place in places] == ["a", "b", "\N{GREEK SMALL LETTER ALPHA}"]
        assert [place for _, place in ledger.scan()] == places


def test_half_a_line_at_the_end_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with Ledger(path) as ledger:
        ledger.append(line("a"))
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert [each["source"] for each in read_lines(path)] == ["a"]
        with Ledger(path) as ledger:
            assert len(list(ledger.scan())) == 1
            ledger.append(line("b"))
        assert [each["source"] for each in read_lines(path)] == ["a", "b"]
        assert path.read_bytes().count(b"\n") == 2


def test_another_run_is_kept_out(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.jsonl"), pytest.raises(LedgerError, match="another run"), Ledger(tmp_path / "l.jsonl"):
        pass


@pytest.mark.parametrize("text", ["no JSON", "{}", "[]", '{"command": "fuse"}'])
def test_another_file_is_no_ledger(tmp_path: Path, text: str) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text(f"{text}\n{json.dumps(line('a'))}\n")
    with Ledger(path) as ledger, pytest.raises(LedgerError, match=r"l\.jsonl:1: not a line of a ledger"):
        list(ledger.scan())
    assert path.read_text().startswith(text)


def test_the_last_line_of_a_model_counts_and_alone_stays(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with Ledger(path) as ledger:
        last: dict[bytes, int] = {}
        for name, code in (("a", 3), ("b", 0), ("a", 0)):
            written = line(name, code)
            last[identity_of_line(written)] = ledger.append(written)
        assert [(each["source"], each["exit_code"]) for each in read_lines(path)] == [("b", 0), ("a", 0)]
        ledger.compact(lambda key, offset: last[key] == offset)
    assert len(path.read_text().splitlines()) == 2
    assert [each["source"] for each in read_lines(path)] == ["b", "a"]


def test_a_model_is_known_by_its_names() -> None:
    item = Item("s", "s", reference="r", output="o")
    assert identity("inspect", item) == identity_of_line(line_of(item, ORDER, {}, 0))
    assert identity("fuse", item) != identity("inspect", item)
