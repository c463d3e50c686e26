"""Runs models: inputs, sessions of ONNX Runtime and of PyTorch, the reference evaluator."""
