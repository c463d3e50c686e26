"""PyTorch models: modules, fx graphs, exported programs and files of these."""

from bnfold.frontends.torch.files.programs import load, save
from bnfold.frontends.torch.open import is_model, open_model
from bnfold.frontends.torch.view import TorchGraph

__all__ = ["TorchGraph", "is_model", "load", "open_model", "save"]
