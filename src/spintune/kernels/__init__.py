"""Faster layers for stock transformers models, with the same results.

``native`` holds compiled C++ for CPUs, ``fused`` norms and gated blocks, ``linear`` matrix products, ``rotary``
position embeddings, ``allocator`` the settings of malloc.
"""
