"""Callbacks: the run's folder and checkpoints, what is printed, seeds, predictions."""

from project.callbacks.checkpoints import BestAndLast
from project.callbacks.interrupt import SafeInterrupt
from project.callbacks.predictions import PredictionWriter
from project.callbacks.progress import EpochLine, StartTable, TerminalBar
from project.callbacks.run_folder import RunFolder
from project.callbacks.seed import StepSeed

__all__ = ["BestAndLast", "EpochLine", "PredictionWriter", "RunFolder", "SafeInterrupt", "StartTable", "StepSeed", "TerminalBar"]
