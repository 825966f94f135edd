"""Running TensorRT engines: the full, lean and dispatch runtimes, and TensorRT-RTX; tensors stay on the GPU."""
