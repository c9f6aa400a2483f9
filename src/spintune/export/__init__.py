"""What leaves a run: a model with its card, and pairs as preference data."""
