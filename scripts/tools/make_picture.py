"""Draws docs/images/fold.svg: models/blocks/repvgg.onnx beside what `bnfold.fuse` makes of it."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from statistics import mean

import matplotlib as mpl
import onnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bnfold

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "blocks" / "repvgg.onnx"
TARGET = ROOT / "docs" / "images" / "fold.svg"

COLOURS = {"BatchNormalization": "#f9d7a8", "Conv": "#bcd8f5"}
LABELS = {"BatchNormalization": "BatchNorm"}
WIDTH, HEIGHT = 1.5, 0.6

Place = tuple[float, float]


def label(node: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    """The operator, of a convolution with its window."""
    if node.op_type != "Conv":
        return LABELS.get(node.op_type, node.op_type)
    (kernel,) = (each for each in graph.initializer if each.name == node.input[1])
    return "Conv " + " x ".join(map(str, kernel.dims[2:]))


def places(graph: onnx.GraphProto) -> dict[str, Place]:
    """Where each value is made: one row for each step from the input, below what is read, branches side by side."""
    steps = {"x": 0}
    for node in graph.node:
        steps[node.output[0]] = 1 + max(steps[name] for name in node.input if name in steps)
    columns = {"x": 0.0}
    for node in graph.node:
        read = [name for name in node.input if name in columns]
        twins = [each.output[0] for each in graph.node if [n for n in each.input if n in steps] == read]
        columns[node.output[0]] = mean(columns[name] for name in read)
        columns[node.output[0]] += twins.index(node.output[0]) - (len(twins) - 1) / 2
    return {name: (1.8 * columns[name], -1.1 * step) for name, step in steps.items()}


def draw(axes: Axes, graph: onnx.GraphProto, title: str) -> None:
    """One graph, from the input down."""
    where = places(graph)
    boxes = {"x": ("input", "#eeeeee")}
    boxes |= {n.output[0]: (label(n, graph), COLOURS.get(n.op_type, "#eeeeee")) for n in graph.node}
    for node in graph.node:
        for name in node.input:
            if name in where:
                (x, y), (to_x, to_y) = where[name], where[node.output[0]]
                ends = {"xy": (to_x, to_y + HEIGHT / 2), "xytext": (x, y - HEIGHT / 2)}
                axes.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": "#555555"})
    for name, (text, colour) in boxes.items():
        x, y = where[name]
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        axes.add_patch(mpl.patches.FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=0.12", fc=colour))
        axes.text(x, y, text, ha="center", va="center", fontsize=10)
    axes.text(0, 0.7, title, ha="center", fontsize=11)
    axes.set_xlim(-2.8, 2.8)
    axes.set_ylim(-6.0, 1.1)
    axes.set_aspect("equal")
    axes.axis("off")


def picture() -> str:
    """The picture, the same on every run."""
    before = onnx.load(MODEL)
    after = bnfold.fuse(before)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bnfold", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        for axes, model, what in zip(figure.subplots(1, 2), (before, after), ("before", "after"), strict=True):
            draw(axes, model.graph, f"{what}: {len(model.graph.node)} nodes")
        made = StringIO()
        figure.savefig(made, format="svg", metadata={"Date": None}, facecolor="white")
    return "\n".join(line.rstrip() for line in made.getvalue().splitlines()) + "\n"


def main() -> None:
    TARGET.write_text(picture())


if __name__ == "__main__":
    main()
