"""`fuse` of programs and graph modules proves what it did, and verifies nothing that it did not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import fx, nn
from torch.export import ExportedProgram

import bnfold
from bnfold import NotEquivalentError
from bnfold.cli.commands import cli
from bnfold.frontends.torch.change.program import ProgramStore


class Branches(nn.Module):
    """Folds on both sides, through a carrier, and a merge."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.last = nn.Conv2d(6, 4, 1)
        for norm in self.norms:
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr, operator]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norms[0](self.one(x)) + self.norms[1](self.two(x)))
        z: torch.Tensor = self.last(self.norms[2](torch.max_pool2d(torch.sigmoid(y), 2)))
        return z


X = (torch.randn(2, 3, 8, 8),)


def program() -> ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Branches().eval(), X)


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first of the weights that a fold writes be off by an eighth."""
    write = ProgramStore.write

    def write_wrong(self: ProgramStore, node: fx.Node, arrays: dict, old: dict, pattern: object) -> None:  # type: ignore[type-arg]
        arrays["weight"].reshape(-1)[0] += arrays["weight"].dtype.type(0.125)
        write(self, node, arrays, old, pattern)

    monkeypatch.setattr(ProgramStore, "write", write_wrong)


def test_a_program_whose_weight_is_wrong_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = program()
    wrong(monkeypatch)
    with pytest.raises(NotEquivalentError, match="it is not proved"):
        bnfold.fuse(model)
    assert isinstance(bnfold.fuse(model, prove=False), ExportedProgram)


def test_a_file_is_proved_and_its_certificate_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.export.save(program(), "model.pt2")
    runner = CliRunner()
    done = runner.invoke(cli, ["fuse", "model.pt2", "-o", "out.pt2", "--proof", "proof.json"])
    assert done.exit_code == 0, done.output
    assert "ran once in torch" in done.output
    done = runner.invoke(cli, ["verify", "model.pt2", "out.pt2", "--proof", "proof.json"])
    assert (done.exit_code, done.output.startswith("proved: ")) == (0, True), done.output
    torch.export.save(program(), "other.pt2")
    monkeypatch.setattr("sys.argv", ["bnfold"])
    with pytest.raises(bnfold.BnfoldError, match="the certificate is of another result"):
        runner.invoke(cli, ["verify", "model.pt2", "other.pt2", "--proof", "proof.json"], catch_exceptions=False)


def test_nothing_is_written_of_a_file_that_is_not_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.export.save(program(), tmp_path / "model.pt2")
    wrong(monkeypatch)
    with pytest.raises(NotEquivalentError):
        CliRunner().invoke(
            cli, ["fuse", str(tmp_path / "model.pt2"), "-o", str(tmp_path / "out.pt2")], catch_exceptions=False
        )
    assert not (tmp_path / "out.pt2").exists()


def test_a_graph_module_is_proved_for_keyword_inputs_too() -> None:
    torch.manual_seed(0)
    module = fx.symbolic_trace(Branches().eval())
    fused, outcomes = bnfold.fuse(module, example_inputs={"x": X[0]}, return_outcomes=True)
    assert isinstance(fused, fx.GraphModule)
    assert sum(isinstance(each, bnfold.Fold) for each in outcomes) == 3
    assert torch.allclose(fused(*X), module(*X), atol=1e-5)
