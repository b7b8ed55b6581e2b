"""A search for hyperparameters: many fits, each in a process of its own."""
