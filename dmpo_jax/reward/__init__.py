"""Training of reward models: scorers of images that learn from preference pairs."""
