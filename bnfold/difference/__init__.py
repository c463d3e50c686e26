"""What changed between two models, and where each BatchNorm of the first went, whatever tool made the second."""
