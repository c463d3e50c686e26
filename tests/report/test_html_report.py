"""The HTML page says what the record says, is safe whatever a model's names are, and is the same every time."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from bnfold import MissingExtraError
from bnfold.api import fuse_file
from bnfold.cli import cli
from bnfold.report import html
from bnfold.report.html.text import shown
from bnfold.report.record import record_file
from bnfold.runtimes.inputs import InputOptions
from bnfold.verification.options import CompareOptions
from tests.report.schemas import insist_on_schema
from tests.toys import html_records
from tests.toys.html_records import RECORDS, rename

MODELS = Path(__file__).parents[2] / "models"
VOID = {"meta", "link", "br", "input", "wbr", "img"}


class Page(HTMLParser):
    """What a browser would make of a page, roughly: its tags, its text, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.mark.parametrize("command", RECORDS)
def test_a_page_is_well_formed_and_has_unique_identifiers(command: str) -> None:
    page = Page(html.render(RECORDS[command]()))
    assert page.open == []
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.tags:
        for named in (attributes.get("aria-labelledby") or "").split():
            assert named in identifiers
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in identifiers


@pytest.mark.parametrize("command", RECORDS)
def test_the_same_record_gives_the_same_page(command: str) -> None:
    code = (
        f"from tests.toys import html_records; from bnfold.report import html; "
        f"print(html.render(html_records.{command}()))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert other.stdout == html.render(RECORDS[command]()) + "\n"


@pytest.mark.parametrize("command", RECORDS)
def test_a_page_fetches_nothing(command: str) -> None:
    text = html.render(RECORDS[command]())
    assert "default-src &#39;none&#39;" in text
    for _, attributes in Page(text).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\((?!#)|@import", text)


@pytest.mark.parametrize("command", RECORDS)
def test_figures_have_words_and_tables_have_captions_and_headers(command: str) -> None:
    text = html.render(RECORDS[command]())
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
        assert root.get("role") == "img"
        title = next(each for each in root.iter() if each.tag.rpartition("}")[2] == "title")
        assert title.text
        assert title.get("id") in (root.get("aria-labelledby") or "").split()
    assert text.count("<table>") == text.count("<caption>") == text.count("<thead>")
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_fuse_page_says_what_happened() -> None:
    words = Page(html.render(html_records.fuse())).text
    for expected in (
        "3 of 6 BatchNorms folded, 3 stayed",
        "The two models are equivalent",
        "stage2/bn is absorbed upstream by stage2/bn/conv0, stage2/bn/conv1, stage2/bn/conv2, and 3 more, carried",
        "bn10 stays: second-use at conv10",
        "export the model in eval mode",
        "tiny-variance",
        "loop.body/block/conv",
        "block/conv_1x1, block/identity_norm",
        "before 120 (\N{MINUS SIGN}18 %)",
        "1.23 s",
        "40 values in graph order; 0 beyond the budget",
    ):
        assert expected in words


def test_an_inspect_page_promises_and_claims_no_verification() -> None:
    words = Page(html.render(html_records.inspect())).text
    assert "3 of 6 BatchNorms would fold, 3 would stay" in words
    assert "equivalent" not in words
    assert "not verified" not in words


def test_an_unverified_result_says_so() -> None:
    assert "The result was not verified." in html.render(html_records.fuse() | {"verification": None})


def test_a_verify_page_says_where_the_models_part() -> None:
    words = Page(html.render(html_records.verify())).text
    assert "The two models are not equivalent" in words
    assert "They first differ at /layer750/out, made by Conv_17: 167 times what rounding explains (rms of" in words
    assert "12 beyond the budget" in words
    assert "3 sets of inputs: normal (\N{MULTIPLICATION SIGN} 2), zeros." in words
    assert "cuda, as deployed" in words
    assert "333 \N{MULTIPLICATION SIGN}" in words  # the budget
    assert "391,708" in words
    assert "The worst 200 of 1,500 inner values" in words
    assert "The error is constant within each channel." in words


def test_values_that_are_identical_need_no_plot() -> None:
    record = html_records.verify(values=4, failing=0)
    for value in record["values"]:
        value |= {"error": 0.0, "budget": 0.0, "excess": 0.0}
    text = html.render(record)
    assert "All 4 inner values are identical." in text
    assert 'class="plot"' not in text


def test_a_value_within_its_budget_may_differ_in_a_channel() -> None:
    record = html_records.verify(values=4, failing=0) | {"equivalent": False}
    record["values"][2] |= {"equivalent": False, "excess": 3.0, "reason": "3 times what rounding explains"}
    words = Page(html.render(record)).text
    assert "1 beyond the budget. Closest to it or furthest beyond: /layer2/out" in words
    assert "Those beyond in single channels alone lie below the line." in words


def test_what_the_runtime_changes_by_itself_is_said_first_and_does_not_decide() -> None:
    record = html_records.verify(values=4, failing=0)
    record["outputs"][1] |= html_records.judged("logits", 0.5)
    page = Page(html.render(record))
    assert "The two models are equivalent" in page.text
    assert "As deployed on cpu, the runtime by itself changes logits" in page.text
    summary = page.text.split("Both models ran")[0]
    assert "3.0e-07" in summary
    assert "5.0e-01" not in summary
    chips = [attributes.get("class") for tag, attributes in page.tags if tag == "span"]
    assert "chip unsure" in chips
    assert "chip bad" not in chips


def test_a_bench_page_says_which_is_faster() -> None:
    words = Page(html.render(html_records.bench())).text
    assert "net.fused.onnx on cpu, level disabled: 29 % less time than the baseline" in words
    assert "net.fused.onnx on cpu, level all: no detectable change (95 % interval 0.992 to 1.009" in words
    assert "chance alone reaches 0.985 to 1.015" in words
    assert "net.onnx on cuda, level all: the CPU ran 1 node for the provider." in words
    assert "Noise floor: the baseline beside itself" in words
    assert "0.70 (0.61 to 0.82)" in words  # of the sessions
    assert "ab" * 32 in words
    assert "25.3 GB" in words
    assert "none" in words  # of the GPUs
    assert "net.fused.onnx on cuda, level all: 6 % more time than the baseline" in words
    assert "versions, onnxruntime" in words


def test_a_verdict_of_no_change_stands_even_where_the_interval_misses_1() -> None:
    record = html_records.bench()
    for entry in record["entries"][1::2]:
        entry |= {"ratio": 0.99, "ratio_low": 0.982, "ratio_high": 0.999, "verdict": "no detectable change"}
    assert '<h2 id="summary-title">No detectable change</h2>' in html.render(record)


@pytest.mark.parametrize("command", RECORDS)
def test_hostile_names_stay_text(command: str) -> None:
    text = html.render(rename(RECORDS[command]()))
    page = Page(text)
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in page.tags]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "alert(1)" in page.text
    assert not set("\u202e\u0007\ud800") & set(text)
    assert "\\u202e" in page.text
    text.encode()
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg.replace("xlink:href", "href"))


@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_every_form_of_samples_and_noise_is_read(spread: float) -> None:
    record = html_records.bench()
    for entry in record["entries"]:
        entry["samples_ms"] = [1.0, 1.0 + spread, 1.0 + 3 * spread]
    record["noise"] = {"ratio": 1.0, "ratio_low": 0.9, "ratio_high": 1.1}
    text = html.render(record)
    assert text.count('class="plot"') == 4
    assert "1.000 (0.900 to 1.100)" in text


def test_models_of_the_same_name_are_told_apart() -> None:
    record = html_records.bench()
    for index, entry in enumerate(record["entries"]):
        entry["model"] = f"{'after' if index % 2 else 'before'}/model.onnx"
    words = Page(html.render(record)).text
    assert "after/model.onnx on cpu, level disabled: 29 % less" in words
    assert "before/model.onnx" in words


def test_dollars_in_names_are_no_formula() -> None:
    record = html_records.bench()
    for index, entry in enumerate(record["entries"]):
        entry["model"] = f"$x_{index % 2}$ $frac{{$.onnx"
    plots = " ".join(re.findall(r'<svg class="plot".*?</svg>', html.render(record), re.DOTALL))
    assert ">$x_1$ $frac{$.onnx<" in plots
    assert "font-family" not in plots


@pytest.mark.parametrize("command", RECORDS)
def test_the_page_holds_the_record(command: str) -> None:
    record = rename(RECORDS[command]())
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html.render(record), re.DOTALL)
    assert found
    assert json.loads(found[1]) == json.loads(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("conv1", 10, "conv1"),
        ("abcdefghijk", 10, "abcd…ghijk"),
        ("a\u202eb\u200d\n", 20, r"a\u202eb\u200d\u000a"),
        ("\U000e0001", 20, r"\U000e0001"),
        ("שלום 模型 é", 20, "שלום 模型 é"),
        (7, 10, "7"),
    ],
)
def test_names_are_shown_whole_or_shortened_in_the_middle(name: object, limit: int, expected: str) -> None:
    assert shown(name, limit) == expected


def test_a_name_of_a_megabyte_is_shown_in_part() -> None:
    record = html_records.fuse()
    record["outcomes"] = [html_records.fold("x" * 1_000_000)]
    text = html.render(record)
    before_data = text[: text.index('<script type="application/json"')]
    assert len(before_data) < 100_000


def test_two_hundred_batchnorms_make_a_page_that_can_be_mailed() -> None:
    record = html_records.fuse()
    record["outcomes"] = [html_records.fold(f"/stage{index}/norm/BatchNormalization", 4, 3) for index in range(200)]
    assert len(html.render(record).encode()) < 1_500_000


def test_a_page_begins_with_what_stayed_and_the_largest_costs() -> None:
    record = html_records.fuse()
    for outcome, elements in zip(record["outcomes"], (9000, 300, 70000, 20, 5000, None), strict=True):
        outcome["cost"] = {"parameters": 12, "elements": elements}
    text = html.render(record)
    assert text.index('id="stayed"') < text.index('id="batchnorms"')
    reasons, outcomes = (text[text.index(f'<section id="{key}"') :] for key in ("stayed", "batchnorms"))
    assert headers(reasons)[:3] == ["second-use", "training-mode", "nonlinear"]
    assert headers(outcomes)[:6] == [
        *("loop.body/bn10", "loop.body/bn9", "loop.body/bn11"),
        *("head/norm", "bn1", "stage2/bn"),
    ]
    assert 'data-value="70000.0"' in outcomes


def headers(text: str) -> list[str]:
    """The headers of the rows of a table."""
    return [re.sub("<.*?>", "", each) for each in re.findall(r'<th scope="row".*?>(.*?)</th>', text)]


@pytest.mark.parametrize("command", RECORDS)
def test_a_missing_key_leaves_out_only_what_it_would_show(command: str) -> None:
    record = RECORDS[command]()
    if "entries" in record:
        record["entries"] = record["entries"][:2]  # each further setting is a further plot to draw
    if "values" in record:
        record["values"] = record["values"][:3]
    for key in record:
        assert "<main" in html.render({name: value for name, value in record.items() if name != key})
    for key, value in record.items():
        for inner in value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else ():
            lacking = copy.deepcopy(record)
            for each in lacking[key]:
                each.pop(inner, None)
            assert "<main" in html.render(lacking)
    assert "<main" in html.render({})
    assert "<main" in html.render(record | {"something": {"new": [1]}})


@pytest.mark.parametrize("error", [None, float("nan"), float("inf"), "inf", "broken"])
def test_an_error_that_is_no_number_is_drawn_as_beyond(error: object) -> None:
    record = html_records.verify(values=5, failing=0)
    record["values"][2] |= {"error": error, "equivalent": None}
    assert "1 beyond the budget" in html.render(record)


def test_a_real_record(tmp_path: Path) -> None:
    options = CompareOptions(InputOptions((MODELS / "digits_test.npz",)))
    result = fuse_file(MODELS / "digits_residual.onnx", tmp_path / "out.onnx", comparison=options)
    record = record_file("fuse", result)
    text = html.render(record)
    words = Page(text).text
    assert "All 8 BatchNorms folded" in words
    assert text.count('class="graph"') == 8
    for outcome in record["outcomes"]:
        assert outcome["batchnorm"] in words
    assert text == html.render(json.loads(json.dumps(record)))  # a stored record makes the same page


def invoke(*arguments: str) -> int:
    return CliRunner().invoke(cli, list(arguments)).exit_code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, its fusion, and one with a wrong weight."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(MODELS / "digits_cnn.onnx", tmp_path)
    assert invoke("fuse", "digits_cnn.onnx", "-o", "fused.onnx", "--no-verify") == 0
    broken = onnx.load("fused.onnx")
    kernel = next(each for each in broken.graph.initializer if len(each.dims) == 4 and each.dims[1] > 1)
    weights = numpy_helper.to_array(kernel).copy()
    weights[3] *= 1.01
    kernel.CopyFrom(numpy_helper.from_array(weights, kernel.name))
    onnx.save(broken, "broken.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ("inspect digits_cnn.onnx", 0, ["All 4 BatchNorms would fold"]),
        (
            "fuse digits_cnn.onnx -o out.onnx",
            0,
            ["All 4 BatchNorms folded", "27,920 numbers", "ran once in onnxruntime"],
        ),
        ("fuse digits_cnn.onnx -o full_out.onnx --verify full", 0, ["27,920 numbers", "10 sets of inputs: normal"]),
        ("verify digits_cnn.onnx fused.onnx", 0, ["models are equivalent", "cpu, as deployed", "0 beyond the budget"]),
        ("verify digits_cnn.onnx broken.onnx", 1, ["not equivalent", "First divergence", "times what rounding"]),
        (
            "bench digits_cnn.onnx fused.onnx --rounds 32 --warmup 0 --level disabled --threads 1",
            0,
            ["fused.onnx on cpu, level disabled:", "Noise floor", "Start and memory", "SHA-256", "onnxruntime"],
        ),
    ],
    ids=["inspect", "fuse", "fuse in full", "verify", "verify_different", "bench"],
)
def test_every_command_writes_a_page(arguments: str, code: int, expected: list[str], folder: Path) -> None:
    assert invoke(*arguments.split(), "--report", "page.html", "--report", "page.json") == code
    text = (folder / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    for sentence in expected:
        assert sentence in page.text
    record = json.loads((folder / "page.json").read_text())
    insist_on_schema(record)
    assert Page(html.render(record)).open == []


@pytest.mark.parametrize("library", html.LIBRARIES)
def test_a_missing_extra_is_told_before_the_work(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "find_spec", lambda name: None if name == library else object())
    output, report = tmp_path / "out.onnx", tmp_path / "page.html"
    arguments = ["fuse", str(MODELS / "digits_cnn.onnx"), "-o", str(output), "--report", str(report)]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, MissingExtraError)
    assert f"needs {library}: pip install 'bnfold[report]'" in str(done.exception)
    assert not output.exists()
    assert not report.exists()


def test_asking_for_json_needs_neither_library() -> None:
    code = "import sys, bnfold.report.files; print({'jinja2', 'matplotlib', 'markupsafe'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
