"""What other tools take up: a pass over `onnx_ir` models, a pass of Olive, a plugin of pytest."""
