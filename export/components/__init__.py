"""Torch modules that compute exactly what one graph computes, built around the parameters of an eager model."""
