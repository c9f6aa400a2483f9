"""The stages of a recipe: each reads files of the run folder, writes files, and ends with a manifest."""
