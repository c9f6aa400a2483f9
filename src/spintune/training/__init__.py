"""Losses, objectives, the training loop, optimizers and checkpoints."""
