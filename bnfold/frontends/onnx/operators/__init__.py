"""What the operators of an ONNX model are, and what is known of their values."""
