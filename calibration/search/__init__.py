"""Which layers to keep high: sensitivity, and the fastest mixture that holds a budget."""
