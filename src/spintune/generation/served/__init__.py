"""Answers written by another engine: vLLM, or llama.cpp's server, met at an address or started here.

``wire`` knows what is sent and what comes back, ``replicas`` deals prompts over servers, ``handshake`` finds out
whether a server has the right model, ``process`` starts one and ends it (``guard``), ``pool`` holds
those of a run, ``generator`` is a :class:`spintune.generation.protocol.Generator` on top.

Written against vLLM 0.32.0 (``/v1/completions``, which knows ``return_token_ids`` since 0.10.2) and llama.cpp at ggml
0.25.3, commit 0c1e570 (``/completion`` of its server).
"""
