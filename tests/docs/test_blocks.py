"""Every shell and Python block of the pages does what its page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import blocks

DOCS = blocks.ROOT / "docs"

ELSEWHERE = {
    "pipelines.md": "tests/cli/test_pipelines.py runs it, with candidates of other tools",
    "reasons.md": "scripts/tools/make_reasons.py runs it",
    "hosts.md": "tests/hosts",
    "benchmarks.md": "it takes hours",
}
"""Pages whose blocks are run by something else, or are not."""

PAGES = [
    blocks.ROOT / "README.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if page.name not in ELSEWHERE and page.parent.name != "design"),
]
WITH_BLOCKS = [page for page in PAGES if any(blocks.steps(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_one_after_the_other(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sources = "\n".join(step.source for step in blocks.steps(text))
    if "fleet" in sources:
        pytest.importorskip("distributed")
    if "torch" in sources or ".pt2" in sources:
        pytest.importorskip("torch")
    if "torch.onnx" in sources:
        pytest.importorskip("onnxscript")
    (tmp_path / "models").symlink_to(blocks.ROOT / "models")
    for step in blocks.steps(text):
        if wrong := blocks.run(step, tmp_path):
            pytest.fail(f"{page.name}, {wrong}", pytrace=False)


def test_every_block_says_what_it_is() -> None:
    """A block without a language would never be run."""
    for page in [*WITH_BLOCKS, DOCS / "pipelines.md"]:
        assert all(blocks.languages(page.read_text(encoding="utf-8"))), page


def test_a_page_that_promises_something_else_is_seen(tmp_path: Path) -> None:
    page = "```console\n$ echo 1.5 s\n0.7 s\n$ echo 4 folded\n5 folded\n$ false  # exit code 1\n$ false\n```\n"
    page += "```python\nprint(\"a\")\n```\n\n```text\nb\n```\n\n```shell\npip install '.[cpu,gnu]'\n```\n"
    wrong = [bool(blocks.run(step, tmp_path)) for step in blocks.steps(page)]
    assert wrong == [False, True, False, True, True, True]


def test_files_that_pages_name_are_in_the_repository() -> None:
    for page in PAGES + [DOCS / name for name in ELSEWHERE]:
        for name in re.findall(r"\b(?:models|scripts|tests|bnfold)/[\w/.-]+\w", page.read_text(encoding="utf-8")):
            assert (blocks.ROOT / name).exists(), f"{page.name} names {name}"
