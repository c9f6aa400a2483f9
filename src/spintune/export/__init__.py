"""What leaves a run: a model with its card, as a folder, a GGUF file or a Modelfile, and pairs as preference data."""
