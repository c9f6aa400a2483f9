"""Compiled layers and matrix products for processors, and where a model's forwards are patched to use them."""
