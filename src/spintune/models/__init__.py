"""Loading and saving of models, and low-rank adapters inside them."""
