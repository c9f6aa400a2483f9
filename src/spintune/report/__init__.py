"""A run folder as one HTML file, or as a model card. Reads files only: no torch, no network."""
