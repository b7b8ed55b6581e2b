"""The temperature and the calibration error, against brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from project.extras.export.calibration import HIGHEST, LOWEST, calibration_error, fit_temperature


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


@settings(max_examples=40, deadline=None)
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
    grid = np.geomspace(LOWEST, HIGHEST, 300)
    assert likelihood(logits, labels, found) <= min(likelihood(logits, labels, t) for t in grid) + 1e-6


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_of_drawn_labels_is_found(temperature) -> None:
    logits, labels = draw(0, 20_000, 8, 3.0, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.04)
    assert calibration_error(logits, labels, temperature) < 0.015
    assert calibration_error(logits, labels, 3 * temperature) > 0.1


def test_nothing_to_learn_from_leaves_one() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert fit_temperature(logits, logits.argmax(dim=1)) == 1
    assert fit_temperature(logits[:0], torch.zeros(0, dtype=torch.int64)) == 1
    assert fit_temperature(torch.zeros(9, 3), torch.arange(9) % 3) == 1  # logits that say nothing


def test_all_wrong_is_as_unsure_as_can_be() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert fit_temperature(logits, logits.argmin(dim=1)) == HIGHEST


@pytest.mark.parametrize("value", [1e4, 1e30, float("nan"), float("inf")])
def test_extreme_logits_give_a_usable_temperature(value) -> None:
    logits = torch.tensor([[value, 0.0], [0.0, 1.0], [value, 0.0], [2.0, 0.0]])
    found = fit_temperature(logits, torch.tensor([1, 1, 0, 1]))
    assert math.isfinite(found) and LOWEST <= found <= HIGHEST


def test_the_gradient_mode_outside_does_not_matter() -> None:
    logits, labels = draw(3, 200, 5, 2.0, 3.0)
    expected = fit_temperature(logits, labels)
    with torch.no_grad():
        assert fit_temperature(logits, labels) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(2, 9), st.floats(0.1, 10))
def test_the_calibration_error_is_that_of_a_loop_over_the_bins(seed, count, classes, temperature) -> None:
    logits, labels = draw(seed, count, classes, 3.0, 1.0)
    probabilities = torch.softmax(logits.double() / temperature, dim=1)
    confidence, guess = probabilities.max(dim=1)
    expected = 0.0
    for b in range(15):
        inside = [i for i in range(count) if b / 15 < confidence[i] <= (b + 1) / 15]
        if inside:
            sure = sum(float(confidence[i]) for i in inside) / len(inside)
            right = sum(bool(guess[i] == labels[i]) for i in inside) / len(inside)
            expected += len(inside) / count * abs(sure - right)
    assert calibration_error(logits, labels, temperature) == pytest.approx(expected, abs=1e-6)
