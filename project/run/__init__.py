"""One run: its folder and record, checkpoints, the terminal, seeds, interruption, the audit of what is frozen, predictions."""

from project.run.ema import EMA

__all__ = ["EMA"]
