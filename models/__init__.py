"""Torch definitions of models that transformers lacks, and the loaders of their checkpoints."""
