"""Building TensorRT engines from a bundle: with TensorRT and the base install alone, no torch and no onnx."""
