"""A run in the browser while it goes on: follows the files of a run folder, and never writes into it."""
