"""Calibrated probabilities: one temperature for all logits, fitted on the validation images."""

import math

from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from project.classifier import ImageClassifier
from project.tasks import Task

BINS = 15  # as in the paper
LOWEST, HIGHEST = 0.05, 20.0


def calibrated(model: ImageClassifier, logits: Tensor, labels: Tensor) -> float:
    """The temperature that suits these logits (N, outputs) best; prints the expected calibration error (equation 3)."""
    if not len(labels):
        print(f"Temperature {model.temperature:.4g}: without validation images there is nothing to calibrate on.")
        return model.temperature
    found = fit_temperature(logits, labels, model.task)
    before, after = (
        multiclass_calibration_error(model.task.probabilities(logits / t), labels, logits.shape[1], n_bins=BINS)
        for t in (1.0, found)
    )
    print(f"Temperature {found:.3f} ({len(labels)} images): calibration error {before:.4f} before, {after:.4f} after.")
    return found


def fit_temperature(logits: Tensor, labels: Tensor, task: Task) -> float:
    """The temperature of the lowest mean loss, 0.05 to 20 (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    Dividing the logits (N, outputs) by it changes how confident the network is, never which class it predicts. It is 1
    where none is better, and where every prediction is right: the lowest temperature would then seem best.
    """
    if bool((task.probabilities(logits).argmax(dim=1) == labels).all()):
        return 1.0
    logits = logits.double()

    def loss(log_temperature: float) -> float:  # convex in 1 / temperature, so it has a single minimum
        return task.losses(logits / math.exp(log_temperature), labels).mean().item()

    found = minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), options={"xatol": 1e-8})
    return math.exp(found.x) if found.fun < loss(0.0) else 1.0
