"""Honest probabilities: one temperature for all logits, fitted on the validation images."""

import math

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 15  # as in the paper
LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature whose probabilities fit the labels best (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    It divides the logits, so it changes how sure the network is and never which class it names.

    Args:
        logits: (N, classes).
        labels: (N,).

    Returns:
        The temperature with the least negative log-likelihood, from 0.05 to 20. 1 when all labels are right (any lower one would
        then seem better still) or there are none.
    """
    if not len(labels) or bool((logits.argmax(dim=1) == labels).all()):
        return 1.0
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], lr=0.1, max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(logits / log_temperature.exp(), labels)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    found = log_temperature.item()
    return min(max(math.exp(found), LOWEST), HIGHEST) if math.isfinite(found) else 1.0


def calibration_error(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3): how far confidence and accuracy lie apart, in [0, 1]."""
    probabilities = (logits.double() / temperature).softmax(dim=1)
    return multiclass_calibration_error(probabilities, labels, num_classes=logits.shape[1], n_bins=BINS).item()
