"""Teachers answer written requests: endpoints, local models, scripts. Nothing here imports torch."""
