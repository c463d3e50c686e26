"""Models with functions, as text: `L` is the domain of the functions."""

from __future__ import annotations

import onnx

DOMAIN = "L"


def parse(body: str, *functions: str, values: str = "double[2]", constants: str = "") -> onnx.ModelProto:
    """A model of one input `x` and one output `y`, both of the same kind of values."""
    header = '<ir_version: 10, opset_import: ["" : 18, "L" : 1]>'
    graph = f"g ({values} x) => ({values} y) {constants}\n{{ {body} }}"
    texts = [f'<domain: "L", opset_import: ["" : 18, "L" : 1]>\n{function}' for function in functions]
    return onnx.parser.parse_model("\n".join([header, graph, *texts]))
