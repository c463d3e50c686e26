"""PyTorch models: modules, fx graphs, exported programs and files of these."""

from bnfold.frontends.torch.files.programs import count_nodes, load, save
from bnfold.frontends.torch.open import Opened, is_model, is_program, open_model
from bnfold.frontends.torch.view import TorchGraph

__all__ = ["Opened", "TorchGraph", "count_nodes", "is_model", "is_program", "load", "open_model", "save"]
