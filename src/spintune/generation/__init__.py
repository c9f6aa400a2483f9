"""Text generation: continuous batching with a preallocated key-value cache, sampling, stopping."""
