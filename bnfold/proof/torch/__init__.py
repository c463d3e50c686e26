"""The proof checker for PyTorch: exported programs and graph modules, evaluated node by node by torch in float64."""
