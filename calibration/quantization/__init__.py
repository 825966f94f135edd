"""INT8, FP8 and INT4 variants: placement, scales, smoothing, and the record of what each layer costs."""
