"""A folded module where PyTorch deploys it: compiled, packaged ahead of time, quantised (`docs/hosts.md`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import bnfold

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of torch's own compilers
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compilers need a C++ compiler"),
]


@pytest.fixture(scope="module")
def example() -> Any:
    torch.manual_seed(0)
    return torch.rand(1, 3, 32, 32)


@pytest.fixture(scope="module")
def model(example: Any) -> Any:
    """Two BatchNorms that fold upstream, and one that folds downstream."""
    nn = torch.nn
    layers = [nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(8))
    model(torch.rand(64, *example.shape[1:]))
    return model.eval()


@pytest.fixture(scope="module")
def folded(model: Any, example: Any) -> Any:
    folded = bnfold.fuse(model, example_inputs=example)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    return folded


def test_compile_takes_a_folded_module(model: Any, folded: Any, example: Any) -> None:
    torch.testing.assert_close(torch.compile(folded)(example), model(example))


def test_aot_inductor_takes_a_folded_module(model: Any, folded: Any, example: Any, tmp_path: Path) -> None:
    program = torch.export.export(folded, (example,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(package)(example), model(example))


def test_pt2e_quantises_no_batchnorm_of_a_folded_module(model: Any, folded: Any, example: Any) -> None:
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e", reason="needs torchao")
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")

    def quantise(module: Any) -> Any:
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = pt2e.prepare_pt2e(torch.export.export(module, (example,)).module(), quantizer)
        for _ in range(8):
            prepared(torch.rand_like(example))
        return pt2e.convert_pt2e(prepared)

    def batchnorms(module: Any) -> int:
        return sum("batch_norm" in str(node.target) for node in module.graph.nodes)

    quantised = quantise(folded)
    assert (batchnorms(quantise(model)), batchnorms(quantised)) == (2, 0)
    error, signal = quantised(example) - model(example), model(example)
    assert 20 * torch.log10(signal.norm() / error.norm()) > 30
