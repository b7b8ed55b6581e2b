"""Callbacks: the run's folder and checkpoints, what is printed, seeds, the recipe's records and proofs, predictions, pictures."""

from project.callbacks.checkpoints import BestAndLast
from project.callbacks.ema import EMA
from project.callbacks.freeze import FreezeAudit
from project.callbacks.interrupt import SafeInterrupt
from project.callbacks.learning_curve import LearningCurve
from project.callbacks.look_activations import LookAtActivations
from project.callbacks.look_data import LookAtData
from project.callbacks.look_predictions import LookAtPredictions
from project.callbacks.look_weights import LookAtWeights
from project.callbacks.plan import RatePlan
from project.callbacks.predictions import PredictionWriter
from project.callbacks.progress import EpochLine, StartTable, TerminalBar
from project.callbacks.report_trial import ReportTrial, this_trial
from project.callbacks.run_folder import RunFolder
from project.callbacks.seed import StepSeed
from project.callbacks.switch import SwitchLine

__all__ = [
    "EMA",
    "BestAndLast",
    "EpochLine",
    "FreezeAudit",
    "LearningCurve",
    "LookAtActivations",
    "LookAtData",
    "LookAtPredictions",
    "LookAtWeights",
    "PredictionWriter",
    "RatePlan",
    "ReportTrial",
    "RunFolder",
    "SafeInterrupt",
    "StartTable",
    "StepSeed",
    "SwitchLine",
    "TerminalBar",
    "this_trial",
]
