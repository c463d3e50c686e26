"""PyTorch models: modules, fx graphs and exported programs."""

from bnfold.frontends.torch.open import Opened, is_model, open_model
from bnfold.frontends.torch.view import TorchGraph

__all__ = ["Opened", "TorchGraph", "is_model", "open_model"]
