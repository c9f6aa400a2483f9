"""The engine: log-probabilities of responses given their prompts, packed."""
