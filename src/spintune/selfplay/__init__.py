"""Self-play: pairs of real and generated answers, iterations that learn from them, and diagnostics."""
