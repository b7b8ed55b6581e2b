"""The temperature, against brute force; the printed calibration error, against a loop over the bins."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from project.extras.export.calibration import HIGHEST, LOWEST, calibrated
from project.extras.export.calibration import fit_temperature as fit
from project.tasks import MultiClass


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    return fit(logits, labels, MultiClass([str(k) for k in range(logits.shape[1])]))


def draw(seed: int, count: int, classes: int, scale: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from the probabilities that the temperature gives."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator)
    return logits, torch.multinomial((logits.double() / temperature).softmax(dim=1), 1, generator=generator)[:, 0]


def likelihood(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean negative log-likelihood, in numpy."""
    values = logits.double().numpy() / temperature
    top = values.max(axis=1)
    return float(
        (
            np.log(np.exp(values - top[:, None]).sum(axis=1)) + top - values[np.arange(len(values)), labels.numpy()]
        ).mean()
    )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 12),
    st.sampled_from([0.01, 0.3, 1, 5, 30, 1000]),
    st.sampled_from([0.3, 1, 4]),
)
def test_no_other_temperature_is_more_likely(seed, classes, scale, temperature) -> None:
    logits, labels = draw(seed, 60, classes, scale, temperature * scale)
    found = fit_temperature(logits, labels)
    assert LOWEST <= found <= HIGHEST
    if (logits.argmax(dim=1) == labels).all():
        assert found == 1
        return
    best = min(likelihood(logits, labels, t) for t in np.geomspace(LOWEST, HIGHEST, 100))
    assert likelihood(logits, labels, found) <= best * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_of_drawn_labels_is_found(temperature) -> None:
    logits, labels = draw(0, 20_000, 8, 3.0, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.04)


def test_nothing_to_learn_from_leaves_one() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert fit_temperature(logits, logits.argmax(dim=1)) == 1
    assert fit_temperature(torch.zeros(9, 3), torch.arange(9) % 3) == 1  # logits that say nothing


def test_all_wrong_is_as_uncertain_as_can_be() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert fit_temperature(logits, logits.argmin(dim=1)) == pytest.approx(HIGHEST, rel=1e-4)


@pytest.mark.parametrize("value", [1e4, 1e30, float("nan"), float("inf")])
def test_extreme_logits_give_a_usable_temperature(value) -> None:
    logits = torch.tensor([[value, 0.0], [0.0, 1.0], [value, 0.0], [2.0, 0.0]])
    found = fit_temperature(logits, torch.tensor([1, 1, 0, 1]))
    assert math.isfinite(found) and LOWEST <= found <= HIGHEST


class Model:
    """As much of a classifier as is calibrated."""

    def __init__(self, classes: int, temperature: float = 1.0) -> None:
        self.task, self.temperature = MultiClass([str(k) for k in range(classes)]), temperature


def bins(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error of 15 bins."""
    confidence, guess = logits.double().softmax(dim=1).max(dim=1)
    expected = 0.0
    for b in range(15):
        inside = [i for i in range(len(labels)) if b / 15 < confidence[i] <= (b + 1) / 15]
        if inside:
            sure = sum(float(confidence[i]) for i in inside) / len(inside)
            right = sum(bool(guess[i] == labels[i]) for i in inside) / len(inside)
            expected += len(inside) / len(labels) * abs(sure - right)
    return expected


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(2, 80), st.integers(2, 9))
def test_the_calibration_error_is_that_of_a_loop_over_the_bins(capsys, seed, count, classes) -> None:
    logits, labels = draw(seed, count, classes, 3.0, 1.0)
    found = calibrated(Model(classes), logits, labels)
    said = re.fullmatch(
        r"Temperature (.*) \((.*) images\): calibration error (.*) before, (.*) after.\n", capsys.readouterr().out
    )
    assert (said[1], said[2]) == (f"{found:.3f}", str(count))
    assert float(said[3]) == pytest.approx(bins(logits, labels), abs=1e-4)
    assert float(said[4]) == pytest.approx(bins(logits / found, labels), abs=1e-4)


def test_without_labels_the_temperature_stays(capsys) -> None:
    assert calibrated(Model(3, 1.7), torch.randn(5, 3), torch.zeros(0, dtype=torch.int64)) == 1.7
    assert "without validation images there is nothing to calibrate on" in capsys.readouterr().out
