"""A search for hyperparameters: many fits, each a process of its own."""
