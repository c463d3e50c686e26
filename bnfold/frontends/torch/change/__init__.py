"""How a model is changed: parameters, submodules, nodes."""
