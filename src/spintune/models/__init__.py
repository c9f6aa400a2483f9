"""A language model in memory: loading, attention, log-probabilities, generation. torch starts here."""
