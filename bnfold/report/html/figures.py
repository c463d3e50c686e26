"""The plots of a page, as inline SVG that takes its colours and its font from the page's style sheet."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

from bnfold.errors import plural
from bnfold.report.html.parts import Figure, Mood
from bnfold.report.html.text import finite, number, scientific, shown

INK, MUTED, LINE, GOOD, BAD = (f"#0000{code:02x}" for code in range(1, 6))
SERIES = tuple(f"#0000{code:02x}" for code in range(16, 22))
VARIABLES = dict(zip((INK, MUTED, LINE, GOOD, BAD), ("ink", "muted", "line", "good", "bad"), strict=True)) | {
    code: f"series-{index}" for index, code in enumerate(SERIES)
}
"""Colours that stand for variables of the style sheet until the drawing is done."""

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))

MOST_POINTS = 500
"""How many points a plot over graph order has. The worst of each stretch is kept."""

MOST_STEPS = 160
"""How many steps a distribution curve has."""

LONG_TAIL = 5
"""The ratio of slowest to fastest latency from which the axis is logarithmic."""

LETTERS = 44

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Value:
    """One value of the graph, with its error and budget.

    Attributes:
        share: the share of its allowance that it uses, in the worst of all tests; None where the record has none.
    """

    name: str
    position: int
    error: float
    budget: float
    passes: bool
    share: float | None = None


@dataclass(frozen=True)
class Ratio:
    """One comparison with the baseline, with its interval; `noise` is how far chance alone reaches."""

    label: str
    middle: float
    low: float
    high: float
    mood: Mood
    noise: tuple[float, float] | None = None


@contextmanager
def _canvas(height: float, key: str) -> Iterator[tuple[Axes, list[Markup]]]:
    """Axes to draw on; afterwards the list holds the SVG. Sizes are in inches, of which a page shows 72 to the em."""
    drawn: list[Markup] = []
    with matplotlib.style.context(["default", STYLE, {"svg.hashsalt": key}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        canvas = Canvas(figsize=(4.9, height), layout="constrained")
        FigureCanvasSVG(canvas)
        yield canvas.subplots(), drawn
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn.append(Markup(buffer.getvalue()))  # matplotlib escapes text


def _figure(svg: Markup, key: str, title: str, caption: str) -> Figure:
    """Make an SVG fit for a page: unique identifiers, colours by variable, and a text alternative."""
    body = str(svg[svg.index("<svg") :])
    view = re.search(r'viewBox="[^"]*"', body)
    assert view
    body = body[body.index(">") + 1 :]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", body)
    body = re.sub(r"#0000[0-9a-f]{2}\b", lambda found: f"var(--{VARIABLES[found[0]]})", body)
    body = re.sub(r"<!--.*?-->|font-family: [^;\"]*;? ?", "", body)
    head = Markup('<svg class="plot" role="img" aria-labelledby="{0}-title {0}-desc" {1}>').format(key, Markup(view[0]))
    words = Markup('<title id="{0}-title">{1}</title><desc id="{0}-desc">{2}</desc>').format(key, title, caption)
    return Figure(title, caption, head + words + Markup(body))


def errors(values: Sequence[Value], key: str) -> Figure:
    """Error of each value against its budget, in graph order; logarithmic."""
    drawn = _thinned(values)
    positive = [value.error for value in drawn if 0 < value.error < np.inf] + [
        value.budget for value in drawn if value.budget
    ]
    low, high = min(positive, default=1e-9) / 4, max(positive, default=1.0) * 4

    def level(error: float) -> float:
        return high if not np.isfinite(error) else max(error, low)

    with _canvas(2.9, key) as (axes, svg):
        budgets = [(value.position, value.budget) for value in drawn if value.budget > 0]
        if budgets:
            axes.step(
                *zip(*budgets, strict=True), where="mid", color=MUTED, linewidth=1, linestyle="--", label="budget"
            )
        for passes, colour, marker, label in ((True, GOOD, "o", "within"), (False, BAD, "X", "beyond")):
            group = [value for value in drawn if value.passes is passes]
            if group:
                x, y = [value.position for value in group], [level(value.error) for value in group]
                axes.plot(x, y, marker, color=colour, markersize=3.5 if passes else 6, markeredgewidth=0, label=label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda error, _: f"{error:.0e}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.5, high * 1.5)
        axes.set_xlabel("position in the graph")
        axes.set_ylabel("error, relative")
        axes.grid(visible=True, axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    failing = sum(not value.passes for value in values)
    worst = max(values, key=badness)
    caption = (
        f"{plural(len(values), 'value')} in graph order; {failing:,} beyond the budget. Closest to it or furthest "
        f"beyond: {shown(worst.name, LETTERS)}, error {scientific(worst.error)}, budget {scientific(worst.budget)}. "
        "Values without any error lie on the lower edge, values that are not finite on the upper."
    )
    if any(value.error <= value.budget and not value.passes for value in values):
        caption += " Those beyond in single channels alone lie below the line."
    if len(drawn) < len(values):
        caption += f" Of each stretch of the graph the worst is drawn: {len(drawn):,} points."
    return _figure(svg[0], key, "Error of each value against its budget", caption)


def _thinned(values: Sequence[Value]) -> list[Value]:
    """The worst values of each stretch of the graph, about `MOST_POINTS` at most."""
    ordered = sorted(values, key=lambda value: value.position)
    stretch = -(-len(ordered) // MOST_POINTS)

    return [max(ordered[start : start + stretch], key=badness) for start in range(0, len(ordered), stretch)]


def badness(value: Value) -> tuple[bool, float]:
    """The rank of a value: values beyond their budget first, then by the share of it that they use."""
    share = value.error / value.budget if value.budget else value.error
    return not value.passes, share if value.share is None else value.share


def distributions(samples: Mapping[str, Sequence[float]], where: str, key: str) -> Figure:
    """Latency of each model as the share of runs that were as fast or faster."""
    names = list(samples)[: len(SERIES)]
    curves = {name: np.sort(np.asarray(samples[name], np.float64)) for name in names}
    with _canvas(2.7, key) as (axes, svg):
        for index, (name, curve) in enumerate(curves.items()):
            share, time = _steps(curve)
            label = shown(name, LETTERS)
            axes.plot(time, share, color=SERIES[index], linestyle=DASHES[index], drawstyle="steps-post", label=label)
        slowest = max(float(np.quantile(curve, 0.99)) for curve in curves.values())
        fastest = min(float(curve[0]) for curve in curves.values())
        room = max(slowest - fastest, slowest * 0.01) * 0.05
        if slowest > LONG_TAIL * fastest:
            axes.set_xscale("log")
            axes.set_xlim(fastest / 1.1, slowest * 1.1)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda time, _: f"{time:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(fastest - room, slowest + room)
        axes.set_ylim(0, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("runs as fast or faster")
        axes.grid(visible=True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=1)
    medians = "; ".join(f"{shown(name, LETTERS)} {np.median(curve):.3g} ms" for name, curve in curves.items())
    caption = f"Medians: {medians}. Left is faster; the slowest hundredth may lie beyond the right edge."
    if len(samples) > len(names):
        caption += f" The first {len(names)} of {len(samples)} models are drawn."
    return _figure(svg[0], key, f"Latency distribution, {where}", caption)


def _steps(curve: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    shares = np.linspace(0, 1, min(MOST_STEPS, len(curve) + 1))
    return shares, np.quantile(curve, shares, method="inverted_cdf")


def forest(ratios: Sequence[Ratio], key: str) -> Figure:
    """Latency relative to the baseline, with 95 % intervals."""
    with _canvas(0.75 + 0.5 * len(ratios), key) as (axes, svg):
        axes.axvline(1, color=MUTED, linewidth=1, linestyle="--")
        for row, comparison in enumerate(ratios):
            colour = {"good": GOOD, "bad": BAD}.get(comparison.mood, MUTED)
            marker = "D" if comparison.mood == "plain" else "o"
            if comparison.noise:
                axes.fill_betweenx([row - 0.13, row + 0.13], *comparison.noise, color=LINE, linewidth=0)
            axes.plot([comparison.low, comparison.high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
            axes.plot([comparison.middle], [row], marker, color=colour, markersize=6)
            axes.annotate(
                comparison.label,
                (0, row),
                (2, 9),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=10,
            )
        ends = [1.0, *(end for ratio in ratios for end in (ratio.low, ratio.high, *(ratio.noise or ())))]
        room = max(0.06 * (max(ends) - min(ends)), 0.01)
        axes.set_xlim(min(ends) - room, max(ends) + room)
        axes.set_ylim(len(ratios) - 0.5, -0.9)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("latency relative to the baseline: left of 1 is faster")
        axes.grid(visible=True, axis="x")
    said = "; ".join(
        f"{ratio.label}: {ratio.middle:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" for ratio in ratios[:12]
    )
    bands = ", and grey bands for how far chance alone reaches" if any(ratio.noise for ratio in ratios) else ""
    caption = f"Ratios with 95 % intervals. Diamonds stand for no detectable change{bands}. {said}."
    return _figure(svg[0], key, "Latency relative to the baseline", caption)


def read_ratio(entry: Mapping[str, Any], label: str) -> Ratio | None:
    """Read the ratio of a record's entry; None where it has none with an interval.

    No change is detected where the interval holds 1, or where the record's own verdict says so.
    """
    middle, low, high = (finite(entry.get(name)) for name in ("ratio", "ratio_low", "ratio_high"))
    if middle is None or low is None or high is None:
        return None
    is_undecided = low <= 1 <= high or str(entry.get("verdict")).startswith("no ")
    mood: Mood = "plain" if is_undecided else "good" if high < 1 else "bad"
    floor, ceiling = finite(entry.get("noise_low")), finite(entry.get("noise_high"))
    noise = None if floor is None or ceiling is None else (floor, ceiling)
    return Ratio(shown(label, 60), middle, low, high, mood, noise)


def read_value(value: Mapping[str, Any], position: int) -> Value:
    """Read a value of a record. An error that is missing, or is no number, counts as not finite."""
    error, budget = number(value.get("error")), finite(value.get("budget")) or 0.0
    known = float("inf") if error is None or np.isnan(error) else error
    verdict = value.get("equivalent")
    passes = known <= budget if verdict is None else bool(verdict)
    share = finite(value.get("excess"))
    if share is None and "excess" in value and not passes:
        share = float("inf")
    return Value(str(value.get("name", "")), position, known, budget, passes, share)
