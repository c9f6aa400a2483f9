"""Looks at a model and data before a recipe is there, and drafts one that fits both and this machine."""
