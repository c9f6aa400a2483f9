"""Sweeps: one recipe with many seeds and settings, a run folder for each, and one report over all of them."""
