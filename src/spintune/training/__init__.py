"""Objectives, the one training loop, checkpoints."""
