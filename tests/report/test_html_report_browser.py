"""The HTML page in a real browser: quiet, without a request, usable by hand, on a phone, in the dark and on paper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from bnfold.cli import cli
from bnfold.report import html
from bnfold.report.documents import Record
from tests.report import browser as chromium
from tests.toys.html_records import RECORDS, bench, fleet, fold, fuse, inspect, rename, verify

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(chromium.missing() is not None, reason=str(chromium.missing()))

MODELS = Path(__file__).parents[2] / "models"
VARIANTS = [*RECORDS, "hostile"]


def record(variant: str) -> Record:
    """The record of a command, or one whose names are hostile."""
    return rename(fuse()) | bench() if variant == "hostile" else RECORDS[variant]()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launched() as launched:
        yield launched


class Watched:
    """A page, and what it said and asked for."""

    def __init__(self, page: Page, path: Path, shown: Record | None = None) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))
        page.on("request", lambda request: self.asked.append(request.url))
        if shown is not None:
            path.write_text(html.render(shown), encoding="utf-8")
        page.goto(path.as_uri())
        assert self.asked == [path.as_uri()]

    def is_quiet(self) -> bool:
        return len(self.asked) == 1 and not self.said


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_a_page_is_quiet_and_fits(browser: Browser, tmp_path: Path, variant: str, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    watched = Watched(page, tmp_path / "page.html", record(variant))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, background[4:-1].split(","))) < 100) is (scheme == "dark")
    assert page.evaluate(CONTRAST) == []
    assert watched.is_quiet()
    page.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report of each command, as the command line writes it."""
    folder = tmp_path_factory.mktemp("reports")
    model, fused = str(MODELS / "digits_cnn.onnx"), str(folder / "fused.onnx")
    commands = {
        "fuse": ["fuse", model, "-o", fused],
        "inspect": ["inspect", model],
        "verify": ["verify", model, fused],
        "verify_different": ["verify", model, str(MODELS / "digits_mlp.onnx")],
        "bench": ["bench", model, fused, "--level", "disabled", "--level", "all", "--rounds", "32", "--threads", "1"],
    }
    for name, arguments in commands.items():
        done = CliRunner().invoke(cli, [*arguments, "--report", str(folder / f"{name}.html")])
        assert done.exit_code == (name == "verify_different"), done.output
    return folder


@pytest.mark.parametrize("name", ["fuse", "inspect", "verify", "verify_different", "bench"])
def test_a_real_report_is_quiet_fits_and_can_be_used(browser: Browser, reports: Path, name: str) -> None:
    for width in (375, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800})
        watched = Watched(page, reports / f"{name}.html")
        assert page.get_by_role("heading", level=1).inner_text().startswith("digits_cnn.onnx")
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(CONTRAST) == []
        for button in page.locator("th button").all():
            button.click()
        assert page.locator("[aria-sort]").count() == page.locator("table").count()
        for image in page.get_by_role("img").all():
            assert image.locator("title").first.text_content()
        assert watched.is_quiet()
        page.close()


@pytest.mark.parametrize("width", [375, 1400])
def test_the_page_of_a_fleet_sorts_filters_and_opens_models(browser: Browser, tmp_path: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    shown = fleet(300)
    pages = tmp_path / "fleet.models"
    pages.mkdir()
    own = html.render(inspect())
    for row in shown["rows"]:
        (tmp_path / row["report"]).write_text(own)
    watched = Watched(page, tmp_path / "page.html", shown)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CONTRAST) == []
    table = "#models table"
    assert len(column(page, table, 0)) == 300
    page.locator(table).get_by_role("button", name="size").click()
    sizes = sorted(row["bytes"] for row in shown["rows"])
    cells = page.locator(f"{table} tbody tr > :nth-child(6)")
    assert [int(cell.get_attribute("data-value").partition(".")[0]) for cell in cells.all()[:5]] == sizes[:5]  # type: ignore[union-attr]
    field = page.locator("#models").get_by_role("searchbox", name="Filter")
    field.fill("zoo/b failed")
    expected = {row["source"] for row in shown["rows"] if row["source"].startswith("zoo/b") and row["exit_code"] == 3}
    assert set(column(page, table, 0)) == expected
    assert page.locator("#models output").inner_text() == f"{len(expected)} of 300"
    assert watched.is_quiet()
    first = page.locator(f"{table} tbody tr:visible a").first
    place = first.get_attribute("href")
    first.click()
    page.wait_for_url(f"**/{place}")
    assert page.locator("#batchnorms table").count() == 1
    assert all(url.startswith("file://") for url in watched.asked)
    page.close()


def test_outputs_sort_by_the_share_of_their_budget(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    shown = verify(values=3, failing=0)
    for index, share in enumerate((0.02, 1.5, 0.3)):
        shown["outputs"][index] |= {"excess": share, "equivalent": share <= 1}
    watched = Watched(page, tmp_path / "page.html", shown)
    table = "#verification .scroll:has(caption:text-is('Outputs')) table"
    page.locator(table).get_by_role("button", name="of budget").click()
    assert column(page, table, 5) == ["2.0 %", "30 %", "150 %"]
    assert column(page, table, 1) == ["cpu", "cuda, as deployed", "cpu, as deployed"]
    assert column(page, table, 2) == ["equivalent", "equivalent", "differs"]
    assert watched.is_quiet()
    page.close()


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => colour.slice(0, 3)
    .map((part) => (part /= 255) <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgba(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
  };
  const faint = [];
  for (const element of document.querySelectorAll(
    "h1, h2, p, dt, dd, td, th, a, button, span, figcaption, .plot text"
  )) {
    if (!element.textContent.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const front = rgba(element instanceof SVGElement ? style.fill : style.color);
    const [low, high] = [luminance(front), luminance(behind(element))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(element.outerHTML.slice(0, 120));
  }
  return faint;
}"""
"""Elements whose text has less than the contrast that WCAG 2 asks for (level AA, 4.5 to 1)."""


def column(page: Page, table: str, index: int) -> list[str]:
    """The visible cells of a column."""
    cells = page.locator(f"{table} tbody tr:visible > :nth-child({index + 1})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_a_table_sorts_by_text_and_by_number(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    shown = fuse()
    for index, rounding in enumerate((5e-9, 3e-8, 2e-10)):
        shown["outcomes"][index]["rounding"] = rounding
    watched = Watched(page, tmp_path / "page.html", shown)
    table = "#batchnorms table"
    button = page.locator(table).get_by_role("button", name="rounding")
    assert button.evaluate("each => each.closest('th').getAttribute('aria-sort')") is None
    button.focus()
    page.keyboard.press("Enter")
    missing = ["\N{EN DASH}"] * 3
    assert column(page, table, 4) == ["2.0e-10", "5.0e-09", "3.0e-08", *missing]
    assert button.evaluate("each => each.closest('th').getAttribute('aria-sort')") == "ascending"
    button.click()
    assert column(page, table, 4) == ["3.0e-08", "5.0e-09", "2.0e-10", *missing]
    page.locator(table).get_by_role("button", name="outcome").click()
    assert column(page, table, 1) == ["folded"] * 3 + ["kept"] * 3
    assert page.locator(f"{table} [aria-sort]").count() == 1
    assert watched.is_quiet()
    page.close()


def test_a_table_filters(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    watched = Watched(page, tmp_path / "page.html", fuse())
    field = page.locator("#batchnorms").get_by_role("searchbox", name="Filter")
    field.fill("KEPT second")
    assert column(page, "#batchnorms table", 1) == ["kept"]
    assert page.locator("#batchnorms output").inner_text() == "1 of 6"
    field.fill("")
    assert len(column(page, "#batchnorms table", 0)) == 6
    assert watched.is_quiet()
    page.close()


@pytest.mark.parametrize("variant", RECORDS)
def test_figures_are_images_with_names(browser: Browser, tmp_path: Path, variant: str) -> None:
    page = browser.new_page()
    Watched(page, tmp_path / "page.html", record(variant))
    drawn = page.locator("svg").count()
    assert drawn > 0
    assert page.locator("svg[role=img]").count() == drawn
    for image in page.get_by_role("img").all():
        assert image.locator("title").first.text_content()
    assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
    page.close()


def test_the_record_can_be_downloaded(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    shown = rename(fuse())
    watched = Watched(page, tmp_path / "page.html", shown)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(shown))
    assert [message for message in watched.said if "blob:" not in message] == []
    page.close()


def test_without_scripts_the_tables_are_plain(browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    path = tmp_path / "page.html"
    path.write_text(html.render(fuse()), encoding="utf-8")
    page.goto(path.as_uri())
    assert page.locator("button:visible").count() == 0
    assert page.locator("#batchnorms tbody tr").count() == 6
    context.close()


def test_no_other_script_runs(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    path = tmp_path / "page.html"
    text = html.render(fuse()).replace("</body>", "<script>document.title = 'taken over'</script></body>")
    path.write_text(text, encoding="utf-8")
    page.goto(path.as_uri())
    assert page.title() != "taken over"
    assert any("Content Security Policy" in each for each in said)
    page.close()


def test_on_paper_everything_is_open(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    shown = fuse() | {"outcomes": [fold(f"norm{index}") for index in range(60)]}
    Watched(page, tmp_path / "page.html", shown)
    assert page.locator("svg.graph:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("svg.graph:visible").count() == 60
    page.emulate_media(media="print")
    assert not page.locator(".filter").first.is_visible()
    page.close()
