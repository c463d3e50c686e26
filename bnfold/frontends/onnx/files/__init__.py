"""ONNX files: checked, loaded, and written whole or not at all."""
