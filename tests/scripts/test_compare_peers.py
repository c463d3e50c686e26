"""The comparison with other tools judges rightly, and writes only where it may."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from scripts.benchmarks import compare_peers


def test_bnfold_is_right_on_every_trap(tmp_path: Path) -> None:
    subjects = compare_peers.traps(tmp_path)
    assert len(subjects) >= 20
    for subject in subjects:
        fused = tmp_path / "fused.onnx"
        onnx.save(bnfold.fuse(onnx.load(subject.path)), fused)
        sessions = [compare_peers.session(path, "ORT_DISABLE_ALL") for path in (subject.path, fused)]
        for feed in subject.feeds:
            expected, actual = (each.run(None, feed) for each in sessions)
            assert max(map(compare_peers.scaled_error, expected, actual)) < 1e-5, subject.name


def test_a_trap_that_is_optimised_wrongly_counts_as_wrong(tmp_path: Path) -> None:
    """onnxruntime folds along the wrong axis here; where it no longer does, the page must be made anew."""
    (subject,) = (each for each in compare_peers.traps(tmp_path) if each.name == "MatMul, Reshape, BatchNorm")
    expected = compare_peers.session(subject.path, "ORT_DISABLE_ALL").run(None, subject.feeds[0])
    target = tmp_path / "optimised.onnx"
    compare_peers.TOOLS["onnxruntime basic"][1](subject.path, target)
    actual = compare_peers.session(target, "ORT_DISABLE_ALL").run(None, subject.feeds[0])
    result = compare_peers.Result(error=compare_peers.scaled_error(expected[0], actual[0]))
    assert result.is_wrong
    assert not compare_peers.Result(error=1e-6).is_wrong
    assert compare_peers.Result(error=float("nan")).is_wrong
    assert not compare_peers.Result(failure="killed by signal 11").is_wrong


@pytest.mark.slow
def test_one_broken_batchnorm_in_an_architecture_counts_as_wrong(tmp_path: Path) -> None:
    """Outputs must depend on inputs and on every layer, or no fold could be seen to be wrong."""
    for subject in compare_peers.architectures(tmp_path):
        proto = onnx.load(subject.path)
        variances = [each.input[4] for each in proto.graph.node if each.op_type == "BatchNormalization"]
        original = compare_peers.session(subject.path, "ORT_DISABLE_ALL")
        expected = [original.run(None, feed)[0] for feed in subject.feeds]
        assert compare_peers.scaled_error(expected[0], expected[1]) > 5 * compare_peers.WRONG, subject.name
        for name in (variances[0], variances[len(variances) // 2], variances[-1]):
            broken = onnx.ModelProto()
            broken.CopyFrom(proto)
            (variance,) = (each for each in broken.graph.initializer if each.name == name)
            variance.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(variance), name))
            onnx.save(broken, tmp_path / "broken.onnx")
            session = compare_peers.session(tmp_path / "broken.onnx", "ORT_DISABLE_ALL")
            error = max(
                compare_peers.scaled_error(want, session.run(None, feed)[0])
                for want, feed in zip(expected, subject.feeds, strict=True)
            )
            assert compare_peers.Result(error=error).is_wrong, f"{subject.name}: {name}"


@pytest.mark.parametrize(
    ("actual", "error"),
    [([1.0, -4.0], 0.0), ([1.0, -3.0], 0.25), ([1.0, np.nan], np.inf), ([1.0, np.inf], np.inf), ([1.0], np.inf)],
)
def test_the_error_is_scaled_by_the_largest_value(actual: list[float], error: float) -> None:
    assert compare_peers.scaled_error(np.asarray([1.0, -4.0]), np.asarray(actual)) == error


def test_what_others_wrote_around_the_section_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "comparison.md"
    monkeypatch.setattr(compare_peers, "PAGE", page)
    page.write_text(f"# Before\n\n{compare_peers.BEGIN}\nold\n{compare_peers.END}\n\n## After\n")
    compare_peers.write(f"{compare_peers.BEGIN}\nnew\n{compare_peers.END}")
    assert page.read_text() == f"# Before\n\n{compare_peers.BEGIN}\nnew\n{compare_peers.END}\n\n## After\n"
    page.unlink()
    compare_peers.write(f"{compare_peers.BEGIN}\nnew\n{compare_peers.END}")
    assert "new" in page.read_text()


def test_the_interval_holds_the_median_of_the_paired_ratios() -> None:
    baseline = np.linspace(1, 2, 50)
    middle, low, high = compare_peers.interval(list(baseline * 0.8), list(baseline))
    assert (middle, low, high) == pytest.approx((0.8, 0.8, 0.8))
    generator = np.random.default_rng(0)
    middle, low, high = compare_peers.interval(list(baseline * generator.lognormal(0, 0.1, 50)), list(baseline))
    assert low < middle < high
    assert low < 1 < high
