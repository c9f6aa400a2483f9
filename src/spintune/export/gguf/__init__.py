"""Models as GGUF files, for llama.cpp, Ollama and what is built on them.

``families`` and ``rotation`` know how each architecture is stored, ``vocabulary`` and ``pretokenizers`` its tokenizer,
``tensors`` and ``writing`` stream the weights, ``quantizing`` makes K-quants, and ``checking`` holds a file against the
model that it was made of.
"""
