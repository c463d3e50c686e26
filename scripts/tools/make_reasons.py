"""Writes docs/reasons.md: each reason why a BatchNorm stays, a model that has it, what bnfold says, what helps."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import helper, numpy_helper

from bnfold.cli import cli
from bnfold.graph.outcome import ADVICE, Reason

TARGET = Path(__file__).parents[2] / "docs" / "reasons.md"

LISTED = 20
"""From how many nodes on a graph is shown in part."""

Array = np.ndarray


@dataclass(frozen=True)
class Graph:
    """An ONNX model with the input `x`: nodes in ONNX's text form, the constants that they name, a command."""

    nodes: str
    constants: Mapping[str, Array] = field(default_factory=dict)
    shape: str = "2, 4, 8, 8"
    outputs: tuple[str, ...] = ("y",)
    overridable: tuple[str, ...] = ()
    opset: int = 17
    dtype: str = "float"
    function: str = ""
    command: str = "inspect model.onnx"

    def build(self) -> onnx.ModelProto:
        """The model."""
        kind = {"float": np.float32, "float16": np.float16}[self.dtype]
        ends = ", ".join(f"{self.dtype} {name}" for name in self.outputs)
        head = f'<ir_version: 8, opset_import: ["" : {self.opset}, "local" : 1]>\n'
        graph = f"g ({self.dtype}[{self.shape}] x) => ({ends}) {{\n{self.nodes}\n}}\n"
        model = onnx.parser.parse_model(head + graph + self.function)
        for name, array in self.constants.items():
            tensor = numpy_helper.from_array(array.astype(kind) if array.dtype == np.float64 else array, name)
            model.graph.initializer.append(tensor)
            if name in self.overridable:
                model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        return model

    def show(self) -> Iterator[str]:
        """The nodes, and what bnfold says of each BatchNorm."""
        nodes = self.nodes.splitlines()
        shown = nodes if len(nodes) < LISTED else [*nodes[:3], "...", *nodes[-2:]]
        yield from ("```text", *shown, *self.function.splitlines(), "```", "")
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            onnx.save(self.build(), "model.onnx")
            done = CliRunner().invoke(cli, shlex.split(self.command))
        assert done.exit_code == 0, done.output
        said = [line for line in done.output.splitlines() if line.startswith("kept ")]
        yield from ("```text", f"$ bnfold {self.command}", *said, "```", "")


@dataclass(frozen=True)
class Code:
    """Python that makes the module `net`, and the options of `bnfold.plan`."""

    lines: str
    options: str = ""

    def show(self) -> Iterator[str]:
        """The code, and what it prints."""
        call = f"(refusal,) = bnfold.plan(net, example_inputs=torch.rand(1, 4, 8, 8){self.options})"
        code = "\n".join(
            [
                "import bnfold",
                "import torch",
                "from torch import nn",
                dedent(self.lines).rstrip(),
                "",
                call,
                'print(f"{refusal.reason} at {refusal.at}: {refusal.detail}")',
            ]
        )
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(code, {"__name__": "__main__"})
        yield from ("```python", code, "```", "", "```text", printed.getvalue().rstrip(), "```", "")


@dataclass(frozen=True)
class Example:
    """A reason: when it is given, a model that has it (None where none can), and what helps beside bnfold's advice."""

    meaning: str
    model: Graph | Code | None
    helps: str = ""

    @property
    def first(self) -> str:
        """The first statement of the meaning."""
        return re.split(r"[.:]( |$)", self.meaning)[0]


def batchnorm(channels: int, **changed: Any) -> dict[str, Array]:
    """Parameters of a BatchNorm with positive scales, apart from those that are given."""
    ramp = np.linspace(0.5, 1.5, channels)
    return {"gamma": ramp, "beta": ramp - 1, "mean": 1 - ramp, "var": ramp} | changed


def kernel(*shape: int) -> Array:
    """Weights without a pattern."""
    return np.random.default_rng(0).standard_normal(shape)


CONV = {"w": kernel(3, 4, 1, 1)}
FOLDABLE = CONV | batchnorm(3)
BLOCK = """
<domain: "local", opset_import: ["" : 14]>
Block (x, gamma) => (y) {
  w = Constant <value = float[3, 4, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> ()
  zeros = Constant <value = float[3] {0, 0, 0}> ()
  ones = Constant <value = float[3] {1, 1, 1}> ()
  c = Conv (x, w)
  y = BatchNormalization (c, gamma, zeros, zeros, ones)
}"""


def behind(*nodes: str, last: str = "c") -> str:
    """A convolution, further nodes, and a BatchNorm of the last value."""
    return "\n".join(["c = Conv (x, w)", *nodes, f"y = BatchNormalization ({last}, gamma, beta, mean, var)"])


EXAMPLES: dict[Reason, Example] = {
    Reason.TRAINING_MODE: Example(
        "It normalises with the statistics of each batch, so it is no fixed map.",
        Graph("c = Conv (x, w)\ny = BatchNormalization <training_mode = 1> (c, gamma, beta, mean, var)", FOLDABLE),
        "In PyTorch that is `model.eval()` before the export.",
    ),
    Reason.PER_ACTIVATION: Example(
        "It has a mean and a variance for each position (`spatial=0`, in opsets below 9), and a convolution has one "
        "weight for all positions.",
        Graph(
            "c = Conv (x, w)\ny = BatchNormalization <spatial = 0> (c, gamma, beta, mean, var)",
            CONV | {name: np.ones((3, 8, 8)) for name in ("gamma", "beta", "mean", "var")},
            opset=7,
        ),
    ),
    Reason.NOT_CONSTANT: Example(
        "A parameter is computed from an input, so it is another one for each input, as in conditional BatchNorm.",
        Graph(
            "c = Conv (x, w)\ng = ReduceMean <axes = [0, 2, 3], keepdims = 0> (c)\n"
            "y = BatchNormalization (c, g, beta, mean, var)",
            FOLDABLE,
        ),
    ),
    Reason.FUNCTION_INPUT: Example(
        "It is in an ONNX function, and the call gives one of its parameters. bnfold writes such calls out, unless the "
        "function asks for another opset than the model does.",
        Graph("y = local.Block (x, gamma)", batchnorm(3), function=BLOCK),
    ),
    Reason.OVERRIDABLE: Example(
        "A parameter is a graph input as well, so a caller may replace it. Exporters for IR version 3 list all "
        "parameters as inputs.",
        Graph(behind(), FOLDABLE, overridable=("gamma",)),
    ),
    Reason.INVALID_PARAMETERS: Example(
        "A parameter is missing, has a shape that does not fit, or holds what is no number: here a negative variance.",
        Graph(behind(), CONV | batchnorm(3, var=np.array([1.0, -1.0, 1.0]))),
        "Mend the model: what it computes there is undefined, or NaN.",
    ),
    Reason.NOT_LINEAR: Example(
        "What is next to it neither absorbs nor carries a per-channel map.",
        Graph(behind("s = Sigmoid (c)", last="s"), FOLDABLE),
        "Nothing, where the operator has to stay: between two nonlinear operators a BatchNorm is part of what the "
        "model computes. A linear operator behind it, without zero padding, takes it.",
    ),
    Reason.NONLINEAR: Example(
        "Relu, LeakyRelu and PRelu let a positive scale through, but no shift.",
        Graph(behind("r = Relu (c)", last="r"), FOLDABLE),
        "A linear operator behind it, without zero padding: then it folds downstream.",
    ),
    Reason.SECOND_USE: Example(
        "Something else reads the value that would change, and has to see it as it was.",
        Graph(
            "c = Conv (x, w)\nb = BatchNormalization (c, gamma, beta, mean, var)\ns = Sigmoid (c)\ny = Mul (b, s)",
            FOLDABLE,
        ),
    ),
    Reason.GRAPH_OUTPUT: Example(
        "The value that would change is an output of the model as well.",
        Graph(behind(), FOLDABLE, outputs=("y", "c")),
    ),
    Reason.GRAPH_INPUT: Example(
        "It reads an input of the model, and nothing behind it takes it either.",
        Graph("b = BatchNormalization (x, gamma, beta, mean, var)\ny = Sigmoid (b)", batchnorm(4)),
        "Normalise the data before they reach the model, or put a linear operator without zero padding behind it.",
    ),
    Reason.SCOPE_BOUNDARY: Example(
        "What would absorb it is in another graph: outside of the body of an If, a Loop or a Scan.",
        Graph(
            "c = Conv (x, w)\n"
            "y = If (condition) <\n"
            "  then_branch = yes () => (float[2, 3, 8, 8] t) { t = BatchNormalization (c, gamma, beta, mean, var) },\n"
            "  else_branch = no () => (float[2, 3, 8, 8] e) { e = Identity (c) }\n"
            ">",
            FOLDABLE | {"condition": np.array(True)},
        ),
    ),
    Reason.AXIS_MISMATCH: Example(
        "Its channels lie on another axis than those of the operator.",
        Graph(
            "c = MatMul (x, w)\ny = BatchNormalization (c, gamma, beta, mean, var)",
            {"w": kernel(6, 5)} | batchnorm(4),
            shape="2, 4, 6",
        ),
        "A Transpose in between, if the model means the other axis. If not, nothing: no weight belongs to that "
        "channel alone.",
    ),
    Reason.MIXED_CHANNELS: Example(
        "One channel of the operator becomes several channels of the BatchNorm, each with a scale and a shift of its"
        " own.",
        Graph(behind("f = Flatten (c)", last="f"), CONV | batchnorm(192)),
        "A linear layer behind it; or, before training, a BatchNorm in front of the reshape.",
    ),
    Reason.UNKNOWN_SHAPE: Example(
        "Whether channels stay channels depends on a size that the file does not tell.",
        Graph(
            behind("s = Shape (c)", "sizes = Max (s, least)", "r = Reshape (c, sizes)", last="r"),
            FOLDABLE | {"least": np.array([1, 1, 8, 8])},
            shape="N, 4, H, W",
        ),
    ),
    Reason.QUANTIZED: Example(
        "The weight is stored as integers, and their scales cannot take it in: here there is one scale for all "
        "channels, in an opset below 13.",
        Graph(
            "w = DequantizeLinear (q, s, z)\n" + behind(),
            {"q": np.arange(12, dtype=np.int8).reshape(3, 4, 1, 1), "s": np.array(0.1), "z": np.array(0, np.int8)}
            | batchnorm(3),
            opset=12,
        ),
    ),
    Reason.NEGATIVE_SCALE: Example(
        "MaxPool, Relu and their like carry positive scales alone: with a negative one the largest value would be the "
        "smallest.",
        Graph(
            behind("m = MaxPool <kernel_shape = [2, 2]> (c)", last="m"),
            CONV | batchnorm(3, gamma=np.array([0.5, -1.0, 1.5])),
        ),
        "A linear operator behind it, without zero padding: that takes any sign.",
    ),
    Reason.SHIFT: Example(
        "What carries the scale does not carry the shift. Behind a sum whose weights need not add up to one, or an "
        "average that counts padding, as PyTorch's does unless told otherwise, the scale goes alone and an addition "
        "stays, unless that would change the type of the data, as here. On a residual stream, where a shift in front "
        "of the scale stands for the one behind it, a scale of zero has none.",
        Code(
            """

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.conv, self.pool = nn.Conv2d(4, 3, 1).half(), nn.AvgPool2d(3, padding=1)
                    self.norm = nn.BatchNorm2d(3)  # in float32

                def forward(self, x):
                    return self.norm(self.pool(self.conv(x.half())))


            net = Net()
            net(1 + torch.rand(64, 4, 8, 8))  # stands for the training
            net.eval()
            """
        ),
        "Train with `count_include_pad=False`, or give the BatchNorm the type of the data.",
    ),
    Reason.BORDER: Example(
        "Zero padding lies in between: it is zero before and after, and does not see the shift. The same is told of "
        "a padded convolution behind the BatchNorm (*its outputs near the border do not see the shift through every "
        "tap*).",
        Graph(
            behind("p = Pad (c, pads)", last="p"),
            FOLDABLE | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        ),
    ),
    Reason.CONFLICT: Example(
        "The readers of one value need it to change in different ways.",
        Graph(behind("d = Concat <axis = 1> (c, c)", last="d"), CONV | batchnorm(6)),
        "Two operators in place of the one that is read twice.",
    ),
    Reason.NO_BIAS: Example(
        "A plain Add, Mul, Sub or Div by constants stays where folding it would need a new operator for a bias, "
        "which costs what it saves. No BatchNorm stays for this reason: its own work ends.",
        None,
        "Nothing is lost.",
    ),
    Reason.OVERFLOW: Example(
        "A folded weight would be larger than its type can hold: float16 ends at 65,504.",
        Graph(
            behind(),
            {"w": np.full((3, 4, 1, 1), 1000.0)} | batchnorm(3, gamma=np.array([1.0, 100.0, 1.0])),
            dtype="float16",
        ),
    ),
    Reason.PRECISION_LOSS: Example(
        "A folded weight would be so small that its type keeps few digits of it: float16 below 0.00006.",
        Graph(
            behind(),
            {"w": np.full((3, 4, 1, 1), 1e-3)} | batchnorm(3, gamma=np.array([1.0, 1e-4, 1.0])),
            dtype="float16",
        ),
    ),
    Reason.CANCELLATION: Example(
        "The data lie far from zero beside their deviation (timestamps, raw sensor counts). The BatchNorm takes "
        "their mean away before digits are lost; folded, the operator would multiply first.",
        Graph(
            "b = BatchNormalization (x, gamma, beta, mean, var)\ny = Conv (b, w)",
            CONV | batchnorm(4, mean=np.full(4, 1e6), var=np.ones(4)),
        ),
    ),
    Reason.SEARCH_LIMIT: Example(
        "What would absorb it is more than 256 operators away: here, 300 Identity nodes.",
        Graph(
            behind("a0 = Identity (c)", *(f"a{index + 1} = Identity (a{index})" for index in range(299)), last="a299"),
            FOLDABLE,
        ),
        "Let another optimiser remove what does nothing first.",
    ),
    Reason.FORWARD_CODE: Example(
        'A PyTorch module would need other forward code than it has, and `code="keep"` forbids that.',
        Code(
            """

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.conv = nn.Conv2d(4, 3, 1)
                    self.register_buffer("mean", torch.zeros(3))
                    self.register_buffer("var", torch.ones(3))

                def forward(self, x):
                    return nn.functional.batch_norm(self.conv(x), self.mean, self.var)


            net = Net().eval()
            """,
            ', code="keep"',
        ),
    ),
    Reason.HOOK: Example(
        "A hook of a PyTorch module would see something else than before.",
        Code(
            """

            def watch(module, args, output):
                print(output.mean())


            net = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)).eval()
            net[0].register_forward_hook(watch)
            """,
            ', code="keep"',
        ),
    ),
    Reason.PARAMETRIZED: Example(
        "A weight of a PyTorch module is computed from other parameters at each call, so it cannot be changed itself.",
        Code(
            """
            conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 1))
            net = nn.Sequential(conv, nn.BatchNorm2d(3)).eval()
            """,
            ', code="keep"',
        ),
    ),
    Reason.SKIPPED: Example(
        "`--only` or `--skip` left it out.",
        Graph(behind(), FOLDABLE, command="fuse model.onnx -o fused.onnx --no-verify --skip 'Batch*'"),
        "Another pattern. The patterns are about the names of the BatchNorm nodes.",
    ),
}


def helps(reason: Reason) -> str:
    """What helps, in a sentence or two."""
    advice = ADVICE.get(reason, "")
    sentences = [f"{advice[0].upper()}{advice[1:]}." if advice else "", EXAMPLES[reason].helps]
    return " ".join(sentence for sentence in sentences if sentence)


def section(reason: Reason) -> Iterator[str]:
    """What the page says of a reason."""
    example = EXAMPLES[reason]
    yield from (f"## {reason}", "", example.meaning, "")
    if example.model is not None:
        lines = list(example.model.show())
        assert any(f"{reason} at " in line for line in lines), (reason, lines)
        yield from lines
    yield from (f"**What helps.** {helps(reason)}", "")


def document() -> str:
    """The page."""
    table = [f"| [`{reason}`](#{reason}) | {EXAMPLES[reason].first} |" for reason in Reason]
    return "\n".join(
        [
            "# Why a BatchNorm stays",
            "",
            "Written by `python scripts/tools/make_reasons.py`, which runs bnfold on each example; a test keeps it "
            "true.",
            "",
            "`bnfold inspect MODEL` tells the reason of each BatchNorm that stays, and the place that stops it. It "
            "looks",
            "upstream first and then downstream, and the reason is that of the way upstream; the line tells both. A "
            "graph",
            "here is in ONNX's own text form: `x` is the input, `y` the output, and other names that no line makes are",
            "stored weights. What stays is not lost: [a runtime without BatchNormalization](howto/no-batchnorm.md) "
            "gets it",
            "as other operators.",
            "",
            "| reason | when |",
            "|---|---|",
            *table,
            "",
            *(line for reason in Reason for line in section(reason)),
        ]
    )


def main() -> None:
    """Write the page, or with --check, fail if it is not what would be written."""
    assert EXAMPLES.keys() == set(Reason), set(Reason) - EXAMPLES.keys()
    os.environ.setdefault("COLUMNS", "200")
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text() != document())
    TARGET.write_text(document())


if __name__ == "__main__":
    main()
