"""Readers of ONNX operators, and the shapes, types and constants that they need."""
