"""One run: its folder, record, checkpoints and terminal output; seeds, interruption, frozen layers, predictions."""

from project.run.ema import EMA

__all__ = ["EMA"]
