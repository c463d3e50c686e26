"""Finds the models that the sources of a command line name, one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from bnfold.errors import BnfoldError, InvalidModelError, escape
from bnfold.fleet.catalogue import Catalogue
from bnfold.fleet.places import LOCAL, Found, is_inside, is_url, join, last, store_of
from bnfold.fleet.task import Command, Item, identity

SUFFIXES = (".onnx", ".pt2")
"""How the names of models end that are looked for in folders."""

MAGIC = re.compile(r"[*?[]")

KEYS = {"source": str, "reference": str, "output": str, "inputs": list, "dims": dict, "only": list, "skip": list}
"""What a line of a list may say, and its type."""

TAKEN: dict[Command, tuple[str, ...]] = {
    "fuse": ("source", "output", "inputs", "dims", "only", "skip"),
    "inspect": ("source", "inputs"),
    "verify": ("source", "reference", "inputs", "dims"),
    "bench": ("source", "reference", "inputs", "dims"),
}
"""What it may say for each command."""


class UsageError(BnfoldError):
    """Sources and destinations that contradict each other: wrong use of the command line."""

    exit_code = 2


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        command: the command.
        sources: files, folders, globs and URLs of all of these.
        listed: a file that lists further ones.
        baseline: where the other model of each pair is; None where there are no pairs.
        out: the folder of the outputs.
    """

    command: Command
    sources: Sequence[str]
    listed: Path | None = None
    baseline: str | None = None
    out: str | None = None


def collect(wanted: Wanted, catalogue: Catalogue) -> None:
    """Find everything that is wanted.

    Raises:
        InvalidModelError: a source or a line of the list cannot be read.
        UsageError: a source lies in the destination.
        CollisionError: two sources would become one output.
    """
    if wanted.baseline is not None:
        for found in _expand(wanted.baseline, None):
            catalogue.add_half(found)
            _note(catalogue, found)
    for item in _items(wanted, catalogue):
        if wanted.out is not None:
            item = _directed(item, wanted.out)
        catalogue.add(item, identity(wanted.command, item))
    if wanted.baseline is not None:
        for relative, name in catalogue.lonely_halves():
            item = Item(name, relative, problem=f"{name}: there is no model of this path to compare it with")
            catalogue.add(item, identity(wanted.command, item))


def _directed(item: Item, out: str) -> Item:
    if is_inside(item.source, out):
        raise UsageError(f"{item.source}: a source lies in the destination {out}")
    return Item(
        item.source, item.relative, item.bytes, item.reference, item.options, item.problem, join(out, item.relative)
    )


def _items(wanted: Wanted, catalogue: Catalogue) -> Iterator[Item]:
    for source in wanted.sources:
        is_single, count = True, 0
        for found in _expand(source, wanted.out):
            count += 1
            is_single = is_single and found.name == source
            _note(catalogue, found)
            yield _paired(Item(found.name, found.relative, found.bytes), wanted, catalogue, is_single=is_single)
        if not count:
            raise InvalidModelError(f"{source}: no {' or '.join(SUFFIXES)} file there")
    if wanted.listed is not None:
        for item in read_list(wanted.listed, wanted.command):
            yield item if item.reference else _paired(item, wanted, catalogue, is_single=False)


def _note(catalogue: Catalogue, found: Found) -> None:
    """Note the stamp of a file of a store. A file of this machine is asked when it is needed."""
    if is_url(found.name):
        catalogue.note_stamp(found)


def _paired(item: Item, wanted: Wanted, catalogue: Catalogue, *, is_single: bool) -> Item:
    """The model with its other one, which has the same path, or is the only other one of one model."""
    if wanted.baseline is None:
        return item
    other = catalogue.half(item.relative) or (catalogue.half(last(wanted.baseline)) if is_single else None)
    if other is None and not is_single:
        problem = f"{item.source}: there is no model of this path below {wanted.baseline}"
        return Item(item.source, item.relative, item.bytes, problem=problem)
    if other is None:
        raise InvalidModelError(f"{item.source}: there is nothing below {wanted.baseline} to pair it with")
    return Item(item.source, item.relative, max(item.bytes, other[1]), other[0], item.options)


def _expand(source: str, out: str | None) -> Iterator[Found]:
    """The models that a source names. What lies in a destination inside the source is not one."""
    store = store_of(source)
    root, pattern = source, None
    magic = MAGIC.search(source)
    if magic and not (not is_url(source) and Path(source).exists()):
        head, slash, _ = source[: magic.start()].rpartition("/")
        root, pattern = head or slash or ".", re.compile(_translate(source[len(head) + len(slash) :]))
    elif not store.is_folder(source):
        yield store.describe(source)
        return
    leaves_out = out is not None and not is_inside(source, out) and is_inside(out, root)
    for found in store.walk(root):
        if not found.relative.endswith(SUFFIXES) or (pattern and not pattern.fullmatch(found.relative)):
            continue
        if not found.name.isascii() and found.name != found.name.encode(errors="replace").decode():
            raise InvalidModelError(f"{escape(found.name)}: its name is no text in UTF-8")
        if leaves_out and out is not None and is_inside(found.name, out):
            continue
        yield found


def _translate(glob: str) -> str:
    """A regular expression for a glob: ``*`` and ``?`` stay within a folder, and ``**/`` is any folders or none."""
    parts: list[str] = []
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", glob):
        if piece == "**/":
            parts.append("(?:.*/)?")
        elif piece == "**":
            parts.append(".*")
        elif piece == "*":
            parts.append("[^/]*")
        elif piece == "?":
            parts.append("[^/]")
        elif piece.startswith("[") and piece.endswith("]"):
            parts.append(
                f"[{'^' if piece[1] in '!^' else ''}{re.escape(piece[1:-1].lstrip('!^'))}]".replace(r"\-", "-")
            )
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


# --------------------------------------------------------------------------------------------------------------- lists


def read_list(path: Path, command: Command) -> Iterator[Item]:
    """The models that a file lists, one a line: a path, a URL, or a JSON object with options of its own.

    Raises:
        InvalidModelError: the file cannot be read, or a line is wrong.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if not text.strip() or text.startswith("#"):
                    continue
                try:
                    yield _listed(text.strip(), command)
                except ValueError as error:
                    raise InvalidModelError(f"{path}:{number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelError(f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from error


def _listed(text: str, command: Command) -> Item:
    """The model of a line.

    Raises:
        ValueError: the line is wrong.
    """
    line: dict[str, Any] = {"source": text}
    if text.startswith("{"):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"not a JSON object ({error})") from error
    for key, value in line.items():
        if key not in TAKEN[command]:
            raise ValueError(f"{command} takes no {key!r} (but {', '.join(TAKEN[command])})")
        if not isinstance(value, KEYS[key]):
            raise ValueError(f"{key!r} has to be {'text' if KEYS[key] is str else f'a {KEYS[key].__name__}'}")
    if not line.get("source"):
        raise ValueError("there is no 'source'")
    if command == "verify" and "reference" not in line:
        raise ValueError("there is no 'reference' to verify it against")
    relative = str(line.get("output") or _below(line["source"]))
    if PurePath(relative).is_absolute() or ".." in PurePath(relative).parts:
        raise ValueError(f"the output {relative!r} has to be a path below the destination")
    source = str(line["source"])
    if MAGIC.search(source) or not source.endswith(SUFFIXES):
        raise ValueError(f"{source!r} does not end in {' or '.join(SUFFIXES)}")
    size = 0 if is_url(source) else _size(source)
    return Item(source, relative, size, line.get("reference"), _options(line))


def _below(source: str) -> str:
    """The path of an output of a listed model: that of the source, without the bucket, the root and what leads up."""
    path = source.partition("://")[2].partition("/")[2] if is_url(source) else source
    parts = [part for part in PurePath(path).parts if part not in ("..", PurePath(path).anchor)]
    return "/".join(parts)


def _size(source: str) -> int:
    """The size of a file. That one is missing is its own failure, and no other's."""
    try:
        return LOCAL.describe(source).bytes
    except InvalidModelError:
        return 0


def _options(line: dict[str, Any]) -> tuple[str, ...]:
    options = [f"--inputs={path}" for path in line.get("inputs", ())]
    for name, size in line.get("dims", {}).items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"the size of {name!r} has to be a number of at least 1")
        options.append(f"--dim={name}={size}")
    for key in ("only", "skip"):
        options += [f"--{key}={glob}" for glob in line.get(key, ())]
    return tuple(options)
