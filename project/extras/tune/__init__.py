"""Learning rate and batch size from a short measurement."""
