"""Hyperparameter search (advice A1, A2): the space, the study, its trials, nested evaluation and the summary."""
