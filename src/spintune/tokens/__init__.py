"""Text to token ids: chat rendering with a loss mask. Nothing here imports torch."""
