"""Learning rate and batch size from short measurements."""
