"""Trains the example networks in `models/` and exports them with BatchNorm unfolded.

Run `python scripts/tools/make_models.py` from the repository root. It needs torch, onnx, onnxscript,
onnxruntime and scikit-learn, uses only the CPU, and takes about a minute. It exits with
status 1 when a network misses the accuracy floor or an exported file is not what it should be.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_OUTPUT = REPOSITORY / "models"

CLASSES = 10
SPLIT_SEED = 20240
TRAINING_SEED = 7
HELD_OUT_FRACTION = 0.25
ACCURACY_FLOOR = 0.97
THREADS = 2
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-3
RECONSTRUCTION_WEIGHT = 2.0
OUTPUT_TOLERANCE = 1e-4
TOTAL_BYTES_LIMIT = 5_000_000
TORCHSCRIPT_OPSET = 17
DYNAMO_OPSET = 18

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class ModelError(Exception):
    """A trained network or an exported file that does not meet its requirements."""


@dataclass(frozen=True)
class Digits:
    """The fixed split of the digits data: images are [n, 1, 8, 8] in [0, 1]."""

    train_images: FloatArray
    train_labels: IntArray
    test_images: FloatArray
    test_labels: IntArray


@dataclass(frozen=True)
class Recipe:
    """How one file is made: its network, its exporter and how long it is trained."""

    file_name: str
    architecture: str
    build: Callable[[], nn.Module]
    exporter: str
    epochs: int
    output_names: tuple[str, ...] = ("logits",)


@dataclass(frozen=True)
class Result:
    """What a run measured for one file, as listed in the README."""

    recipe: Recipe
    batchnorms: int
    parameters: int
    accuracy: float
    file_bytes: int


def convolution_block(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    """A Conv-BatchNorm-ReLU block that keeps the spatial size at stride 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def plain_cnn() -> nn.Module:
    """A plain CNN; its convolutions have a bias and have none in turn."""
    return nn.Sequential(
        convolution_block(1, 16, bias=True),
        convolution_block(16, 32, bias=False),
        nn.MaxPool2d(2),
        convolution_block(32, 32, bias=True),
        convolution_block(32, 48, bias=False),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48 * 2 * 2, CLASSES),
    )


def separable_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


def separable_cnn() -> nn.Module:
    """A depthwise-separable CNN in the manner of MobileNet."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU6(),
        separable_block(24, 48),
        separable_block(48, 64, stride=2),
        separable_block(64, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )


class BasicBlock(nn.Module):
    """A residual block of two 3x3 convolutions; a strided one projects its shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = convolution_block(inputs, outputs, stride=stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, image: Tensor) -> Tensor:
        """The block's output: ReLU of the residual branch plus the shortcut."""
        branch: Tensor = self.second(self.first(image))
        return functional.relu(branch + self.shortcut(image))


def residual_cnn() -> nn.Module:
    """A residual CNN of three basic blocks, the second of them strided."""
    return nn.Sequential(
        convolution_block(1, 24),
        BasicBlock(24, 24),
        BasicBlock(24, 48, stride=2),
        BasicBlock(48, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, CLASSES),
    )


def linear_block(inputs: int, outputs: int, *, bias: bool = True) -> nn.Sequential:
    """A Linear-BatchNorm-ReLU block."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=bias), nn.BatchNorm1d(outputs), nn.ReLU())


def perceptron() -> nn.Module:
    """A multilayer perceptron on the flattened image; one hidden layer has no bias."""
    return nn.Sequential(
        nn.Flatten(),
        linear_block(64, 192),
        linear_block(192, 128, bias=False),
        linear_block(128, 64),
        nn.Linear(64, CLASSES),
    )


def transposed_block(inputs: int, outputs: int, *, groups: int = 1, bias: bool = False) -> nn.Sequential:
    """A ConvTranspose-BatchNorm-ReLU block that doubles the spatial size."""
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, groups=groups, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Autoencoder(nn.Module):
    """An encoder-decoder that also classifies its 64x2x2 bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            convolution_block(1, 24),
            convolution_block(24, 48, stride=2),
            convolution_block(48, 64, stride=2, bias=True),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 2 * 2, CLASSES))
        self.decoder = nn.Sequential(
            transposed_block(64, 32, bias=True),
            transposed_block(32, 16, groups=2),
            nn.Conv2d(16, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The class logits and the reconstructed image."""
        bottleneck = self.encoder(image)
        return self.classifier(bottleneck), self.decoder(bottleneck)


RECIPES = (
    Recipe(
        "digits_cnn.onnx",
        "plain CNN: 4 Conv-BatchNorm-ReLU, with and without conv bias; pooling; Linear",
        plain_cnn,
        "dynamo",
        50,
    ),
    Recipe(
        "digits_separable.onnx",
        "depthwise-separable CNN: 3 blocks of depthwise and pointwise Conv, ReLU6",
        separable_cnn,
        "torchscript",
        60,
    ),
    Recipe(
        "digits_residual.onnx",
        "residual CNN: 3 basic blocks, one strided with a 1x1 Conv-BatchNorm shortcut",
        residual_cnn,
        "torchscript",
        50,
    ),
    Recipe(
        "digits_mlp.onnx",
        "multilayer perceptron: 3 Linear-BatchNorm-ReLU, one without bias",
        perceptron,
        "dynamo",
        100,
    ),
    Recipe(
        "digits_autoencoder.onnx",
        "encoder-decoder: 3 Conv and 2 ConvTranspose (one grouped), each with BatchNorm",
        Autoencoder,
        "dynamo",
        60,
        ("logits", "reconstruction"),
    ),
)

EXPORTER_DESCRIPTIONS = {
    "dynamo": "`torch.onnx.export(dynamo=True, optimize=False)`",
    "torchscript": "`torch.onnx.export(dynamo=False, training=TrainingMode.PRESERVE)`",
}


def load_split() -> Digits:
    """The digits data, scaled to [0, 1] and split the same way every time."""
    images, labels = load_digits(return_X_y=True)
    scaled = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        scaled,
        labels.astype(np.int64),
        test_size=HELD_OUT_FRACTION,
        stratify=labels,
        random_state=SPLIT_SEED,
    )
    return Digits(train_images, train_labels, test_images, test_labels)


def make_deterministic() -> None:
    """Fixes the thread count and allows only deterministic algorithms."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)


def silence_exporters() -> None:
    """Hides the exporters' notes on optional packages, which say nothing about these models."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


def shift_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images, each shifted by -1, 0 or 1 pixel along each axis (0 half of the time)."""
    choices = torch.tensor([-1, 0, 0, 1])
    count = images.shape[0]
    offsets = choices[torch.randint(0, len(choices), (2, count), generator=generator)] + 1
    padded = functional.pad(images[:, 0], (1, 1, 1, 1))
    rows = (offsets[0, :, None] + torch.arange(8))[:, :, None]
    columns = (offsets[1, :, None] + torch.arange(8))[:, None, :]
    return padded[torch.arange(count)[:, None, None], rows, columns].unsqueeze(1)


def outputs_of(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The network's outputs as a tuple, whatever their number."""
    outputs: Tensor | tuple[Tensor, ...] = network(images)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The classification loss, plus the reconstruction loss where there is one."""
    logits, *reconstructions = outputs_of(network, images)
    loss = functional.cross_entropy(logits, labels, label_smoothing=0.05)
    for reconstruction in reconstructions:
        loss = loss + RECONSTRUCTION_WEIGHT * functional.mse_loss(reconstruction, images)
    return loss


def train(recipe: Recipe, digits: Digits) -> nn.Module:
    """A network of the recipe, trained from scratch and left in evaluation mode."""
    torch.manual_seed(TRAINING_SEED)
    generator = torch.Generator().manual_seed(TRAINING_SEED)
    network = recipe.build().train()
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    steps = len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=steps * recipe.epochs
    )
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE):
            optimizer.zero_grad()
            shifted = shift_images(images[chosen], generator)
            torch.autograd.backward(loss_of(network, shifted, labels[chosen]))
            optimizer.step()
            scheduler.step()
    return network.eval()


def predict(network: nn.Module, images: FloatArray) -> list[FloatArray]:
    """The network's outputs for the images, as arrays."""
    with torch.no_grad():
        return [output.numpy() for output in outputs_of(network, torch.from_numpy(images))]


def accuracy_of(logits: FloatArray, labels: IntArray) -> float:
    """The fraction of rows whose largest logit is at the label."""
    return float((logits.argmax(axis=1) == labels).mean())


def export_with_dynamo(recipe: Recipe, network: nn.Module, path: Path) -> None:
    """Exports through torch.export, unoptimised so that BatchNorm stays unfolded."""
    torch.onnx.export(
        network,
        (torch.zeros(2, 1, 8, 8),),
        path,
        input_names=["image"],
        output_names=list(recipe.output_names),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=DYNAMO_OPSET,
        dynamo=True,
        optimize=False,
        external_data=False,
        verbose=False,
    )


def export_with_torchscript(recipe: Recipe, network: nn.Module, path: Path) -> None:
    """Exports by tracing; PRESERVE keeps the exporter from folding BatchNorm itself."""
    torch.onnx.export(
        network,
        (torch.zeros(2, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=list(recipe.output_names),
        dynamic_axes={name: {0: "batch"} for name in ("image", *recipe.output_names)},
        opset_version=TORCHSCRIPT_OPSET,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )


def strip_traces(model: onnx.ModelProto) -> None:
    """Clears the metadata and doc strings, where exporters leave source paths and traces."""
    graph = model.graph
    if model.functions:
        raise ModelError("the exporter left local functions, which are not expected here")
    values = (*graph.input, *graph.output, *graph.value_info)
    for owner in (model, graph, *graph.node, *graph.initializer, *values):
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")


def export(recipe: Recipe, network: nn.Module, path: Path) -> None:
    """Writes the network to the path with the recipe's exporter, without source traces."""
    exporters = {"dynamo": export_with_dynamo, "torchscript": export_with_torchscript}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = Path(folder) / recipe.file_name
        exporters[recipe.exporter](recipe, network, raw)
        model = onnx.load(raw)
    strip_traces(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def batchnorms_of(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """The network's BatchNorm modules."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return [module for module in network.modules() if isinstance(module, kinds)]


def check_batchnorms(recipe: Recipe, network: nn.Module, model: onnx.ModelProto) -> int:
    """The number of BatchNorms, once the file is seen to hold all of them for inference."""
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    expected = len(batchnorms_of(network))
    if len(nodes) != expected:
        raise ModelError(f"{recipe.file_name}: {len(nodes)} BatchNorms, expected {expected}")
    for node in nodes:
        training = any(item.name == "training_mode" and item.i for item in node.attribute)
        if training or len(node.output) != 1:
            raise ModelError(f"{recipe.file_name}: {node.name} is not in inference form")
    return expected


def check_statistics(recipe: Recipe, network: nn.Module, model: onnx.ModelProto) -> None:
    """Raises unless the file's running statistics are the trained ones of the network."""
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    in_file = sorted(tuple(stored[node.input[place]].tobytes() for place in (3, 4)) for node in nodes)
    trained = []
    for module in batchnorms_of(network):
        mean, variance = module.running_mean, module.running_var
        if mean is None or variance is None or not mean.any():
            raise ModelError(f"{recipe.file_name}: a BatchNorm has no trained statistics")
        trained.append((mean.numpy().tobytes(), variance.numpy().tobytes()))
    if in_file != sorted(trained):
        raise ModelError(f"{recipe.file_name}: the running statistics differ from the network's")


def check_interface(recipe: Recipe, model: onnx.ModelProto) -> None:
    """Raises unless the inputs and outputs have the expected names and a dynamic batch."""
    names = tuple(value.name for value in model.graph.output)
    if [value.name for value in model.graph.input] != ["image"] or names != recipe.output_names:
        raise ModelError(f"{recipe.file_name}: unexpected input or output names")
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_param != "batch":
            raise ModelError(f"{recipe.file_name}: the batch of {value.name} is not dynamic")


def check_no_paths(recipe: Recipe, content: bytes) -> None:
    """Raises if the file's bytes mention a local folder or a stack trace."""
    folders = (REPOSITORY, Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix))
    found = [str(folder) for folder in folders if len(str(folder)) > 1]
    for text in (*found, "site-packages", 'File "', "Traceback", "stack_trace"):
        if text.encode() in content:
            raise ModelError(f"{recipe.file_name}: the file mentions {text!r}")


def check_outputs(recipe: Recipe, network: nn.Module, path: Path, images: FloatArray) -> None:
    """Raises unless the file, run without optimisation, gives the network's outputs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        actual = session.run(list(recipe.output_names), {"image": batch})
        for name, ours, theirs in zip(recipe.output_names, actual, predict(network, batch), strict=True):
            difference = float(np.abs(ours - theirs).max())
            if ours.shape != theirs.shape or difference > OUTPUT_TOLERANCE:
                raise ModelError(f"{recipe.file_name}: {name} is off by {difference:.2e}")


def make(recipe: Recipe, digits: Digits, output: Path) -> Result:
    """Trains, exports and checks one network; raises ModelError when it falls short."""
    started = time.perf_counter()
    network = train(recipe, digits)
    accuracy = accuracy_of(predict(network, digits.test_images)[0], digits.test_labels)
    seconds = time.perf_counter() - started
    print(f"{recipe.file_name}: held-out accuracy {accuracy:.2%} ({seconds:.0f} s)", flush=True)
    if accuracy < ACCURACY_FLOOR:
        raise ModelError(f"{recipe.file_name}: {accuracy:.2%} is below {ACCURACY_FLOOR:.0%}")
    path = output / recipe.file_name
    export(recipe, network, path)
    model = onnx.load(path)
    batchnorms = check_batchnorms(recipe, network, model)
    check_statistics(recipe, network, model)
    check_interface(recipe, model)
    check_no_paths(recipe, path.read_bytes())
    check_outputs(recipe, network, path, digits.test_images)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Result(recipe, batchnorms, parameters, accuracy, path.stat().st_size)


def table_row(result: Result) -> str:
    """The README's table row for one file."""
    recipe = result.recipe
    return (
        f"| `{recipe.file_name}` | {recipe.architecture} | {recipe.exporter} "
        f"| {result.batchnorms} | {result.parameters:,} | {result.accuracy:.2%} "
        f"| {result.file_bytes:,} |"
    )


def readme(results: list[Result], digits: Digits) -> str:
    """The text of `models/README.md` for the results of a run."""
    exporters = [f"- {name}: {text}" for name, text in EXPORTER_DESCRIPTIONS.items()]
    lines = [
        "# Example models",
        "",
        "Small networks trained on 8x8 handwritten digits and exported to ONNX with their",
        "BatchNormalization nodes unfolded. Everything here, this page included, is written by:",
        "",
        "    python scripts/tools/make_models.py",
        "",
        "| file | architecture | exporter | BatchNorms | parameters | held-out accuracy | bytes |",
        "|---|---|---|---:|---:|---:|---:|",
        *(table_row(result) for result in results),
        "",
        "The input `image` is float32 [batch, 1, 8, 8] with values in [0, 1]; the first output is",
        "`logits`, [batch, 10]. The autoencoder's second output is `reconstruction`,",
        "[batch, 1, 8, 8]. The parameters are the trained ones, without running statistics.",
        "",
        "The exporters, both with the network in evaluation mode (source traces were then removed",
        "from the files' metadata):",
        "",
        *exporters,
        "",
        f"`digits_test.npz` holds the {len(digits.test_labels)} held-out images (`image`, float32) and their labels",
        f"(`label`, int64). The other {len(digits.train_labels)} images are the training set; the"
        " held-out ones had no part",
        "in training or in choosing when to stop.",
        "",
        "The data is scikit-learn's bundled copy (`sklearn.datasets.load_digits`) of the test set",
        "of the UCI Optical Recognition of Handwritten Digits data set (E. Alpaydin and C. Kaynak,",
        "1998, <https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits>),",
        "split by this script with a fixed seed.",
        "",
        f"Made with torch {torch.__version__.split('+')[0]} and onnx {onnx.__version__}."
        " A run with other versions or on",
        "another processor may give slightly different weights.",
        "",
    ]
    return "\n".join(lines)


def make_all(output: Path) -> None:
    """Writes every file of `models/` into the output folder."""
    make_deterministic()
    silence_exporters()
    digits = load_split()
    output.mkdir(parents=True, exist_ok=True)
    results = [make(recipe, digits, output) for recipe in RECIPES]
    total = sum(result.file_bytes for result in results)
    if total > TOTAL_BYTES_LIMIT:
        raise ModelError(f"the models take {total:,} bytes, over {TOTAL_BYTES_LIMIT:,}")
    np.savez_compressed(output / "digits_test.npz", image=digits.test_images, label=digits.test_labels)
    (output / "README.md").write_text(readme(results, digits), encoding="utf-8")
    print(f"{len(results)} models, {total:,} bytes in all")


def main() -> int:
    """The command line: 0 when every file was made, 1 when one fell short."""
    parser = argparse.ArgumentParser(description="Train and export the example models.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="default: models/")
    try:
        make_all(parser.parse_args().output)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
