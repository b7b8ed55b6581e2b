"""Smoothing and the edge against brute force, formulas, and curves whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import _pylab_helpers

from project.extras.tune.curve import draw, reach_of, read_curve, smooth

STEPS = 100
RATES = np.geomspace(1e-6, 10, STEPS)
X = np.log10(RATES)


def descent(middle: float, width: float = 0.2, blow_up: float = 0.0) -> np.ndarray:
    """From 2.3 to 0.3, steepest at 10 ** middle; from 10 ** blow_up on it grows tenfold each half decade."""
    return 0.3 + 2 / (1 + np.exp((X - middle) / width)) + 10 ** (2 * np.maximum(X - blow_up, -3)) * (blow_up < X)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 10), min_size=5, max_size=40), st.floats(0.5, 10))
def test_smoothing_is_the_weighted_mean(losses, reach) -> None:
    for i, value in enumerate(smooth(losses, reach)):
        weights = [math.exp(-abs(i - j) / reach) for j in range(len(losses))]
        mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        assert value == pytest.approx(mean, abs=1e-9)


def test_smoothing_has_no_bias_at_the_ends_and_no_lag() -> None:
    assert smooth([3.0] * 20, 4) == pytest.approx([3.0] * 20)
    smoothed = smooth([0.0] * 15 + [1.0] + [0.0] * 15, 3)
    assert smoothed.argmax() == 15 and smoothed == pytest.approx(smoothed[::-1])


@settings(max_examples=30, deadline=None)
@given(st.floats(-4, -2), st.floats(0.1, 0.3), st.floats(1.0, 2.5))
def test_the_edge_of_a_known_curve(middle, width, plateau) -> None:
    blow_up = min(middle + 5 * width + plateau, 0.5)
    _, edge = read_curve(np.minimum(descent(middle, width, blow_up), 1e6).tolist(), STEPS)
    assert blow_up - 0.45 < math.log10(RATES[edge]) < blow_up + 0.2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_edge_by_hand_on_noisy_curves(seed) -> None:
    losses = np.minimum(descent(-3, blow_up=-0.5), 50) + np.random.default_rng(seed).normal(0, 0.1, STEPS)
    found, edge = read_curve(losses.tolist(), STEPS)
    first = sum(sorted(losses[:10])[4:6]) / 2
    smoothed = list(smooth([min(loss, first) for loss in losses], 3.0))
    assert found == pytest.approx(smoothed)
    expected = low = smoothed.index(min(smoothed))
    while smoothed[expected + 1] <= smoothed[low] + 0.1 * (first - smoothed[low]):
        expected += 1
    assert edge == expected


def test_the_unit_of_the_loss_does_not_matter() -> None:
    losses = np.minimum(descent(-3), 50)
    assert read_curve(losses, STEPS)[1] == read_curve(0.01 * losses, STEPS)[1] == read_curve(100 * losses, STEPS)[1]


def test_noise_alone_is_not_a_descent() -> None:
    random = np.random.default_rng(0)
    for level in (0.01, 0.1, 0.5):
        fooled = [read_curve(2.3 + random.normal(0, level, STEPS), STEPS)[1] is not None for _ in range(100)]
        assert sum(fooled) <= 2
    assert read_curve([2.3] * STEPS, STEPS)[1] is None


def test_a_curve_that_only_grows_has_no_edge() -> None:
    for length in (8, 20, 60):
        assert read_curve(2.3 * np.exp(np.arange(length) / 5), STEPS)[1] is None
    for losses in ([2.3, 9, 99], []):
        assert read_curve(losses, STEPS)[1] is None


def test_a_curve_that_falls_to_its_end() -> None:
    assert read_curve(3 - 0.2 * X, STEPS)[1] == STEPS - 1
    assert reach_of(100) == 3 and reach_of(1000) == 30 and reach_of(10) == 1


@pytest.mark.parametrize("losses", [np.minimum(descent(-3), 50), np.full(STEPS, 2.3), [], [1.0]])
def test_the_figure(losses) -> None:
    losses, others = list(losses), set(_pylab_helpers.Gcf.figs)  # of other tests in this process
    smoothed, edge = read_curve(losses, STEPS)
    figure = draw(list(RATES[: len(losses)]), losses, smoothed, None if edge is None else 0.01)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and len(axes.lines) == 2 + (edge is not None)
    assert set(_pylab_helpers.Gcf.figs) == others  # nothing to close
