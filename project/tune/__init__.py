"""Finding hyperparameters: rate and batch size by short measurements, the rest by search (advice A1, A8, A11, A12)."""
