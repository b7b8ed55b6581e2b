"""Calibrated probabilities: one temperature for all logits, fitted on the validation images."""

import math
from typing import TYPE_CHECKING

from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

if TYPE_CHECKING:
    from project.tasks import MultiClass

BINS = 15  # as in the paper
LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor, task: "MultiClass") -> float:
    """The temperature whose probabilities fit the labels best (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    Dividing the logits by it changes how confident the network is, never which class it predicts.

    Args:
        logits: (N, outputs).
        labels: (N,).
        task: What the logits mean.

    Returns:
        The temperature of the lowest mean loss, from 0.05 to 20. 1 where none is better, and where every prediction is
        right (the lowest temperature would then seem best) or there are no labels.
    """
    if bool((task.probabilities(logits).argmax(dim=1) == labels).all()):
        return 1.0
    logits = logits.double()

    def loss(log_temperature: float) -> float:  # convex in 1 / temperature, so it has a single minimum
        return task.losses(logits / math.exp(log_temperature), labels).mean().item()

    found = minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), options={"xatol": 1e-6})
    return math.exp(found.x) if found.fun < loss(0.0) else 1.0


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3): how far confidence and accuracy are apart, 0 to 1."""
    return multiclass_calibration_error(probabilities, labels, probabilities.shape[1], n_bins=BINS).item()
