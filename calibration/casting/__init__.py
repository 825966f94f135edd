"""FP16 and BF16 variants: what may be cast, what stays FP32, and how numbers pass from graph to graph."""
