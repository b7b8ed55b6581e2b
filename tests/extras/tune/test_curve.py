"""Smoothing and suggestions against brute force, formulas, and curves whose answer is known."""

import bisect
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import _pylab_helpers

from project.extras.tune.curve import draw, reach_of, read_curve, smooth, valley

LOSSES = st.lists(st.floats(0, 10), min_size=5, max_size=40)
STEPS = 100
RATES = np.geomspace(1e-6, 10, STEPS)
X = np.log10(RATES)


def descent(middle: float, width: float = 0.2, blow_up: float = 0.0) -> np.ndarray:
    """From 2.3 to 0.3, steepest at 10 ** middle; from 10 ** blow_up on it grows tenfold each half decade."""
    return 0.3 + 2 / (1 + np.exp((X - middle) / width)) + 10 ** (2 * np.maximum(X - blow_up, -3)) * (blow_up < X)


@given(LOSSES, st.floats(0.5, 10))
def test_smoothing_is_the_weighted_mean(losses, reach) -> None:
    for i, value in enumerate(smooth(losses, reach)):
        weights = [math.exp(-abs(i - j) / reach) for j in range(len(losses))]
        assert value == pytest.approx(
            sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights), abs=1e-9
        )


def test_smoothing_has_no_bias_at_the_ends_and_no_lag() -> None:
    assert smooth([3.0] * 20, 4) == pytest.approx([3.0] * 20)
    peak = [0.0] * 15 + [1.0] + [0.0] * 15
    smoothed = smooth(peak, 3)
    assert smoothed.argmax() == 15 and smoothed == pytest.approx(smoothed[::-1])


def longest_to(losses, place: int) -> int:
    """Length of the longest falling subsequence that ends at a place, with a sorted list of tails."""
    tails: list[float] = []
    for loss in [*[loss for loss in losses[:place] if loss > losses[place]], losses[place]]:
        spot = bisect.bisect_left(tails, -loss)
        tails[spot : spot + 1] = [-loss]
    return len(tails)


@given(st.lists(st.integers(0, 30).map(float), min_size=1, max_size=30))
def test_the_valley_is_the_middle_of_a_longest_fall(losses) -> None:
    place = valley(losses)
    whole = max(longest_to(losses, i) for i in range(len(losses)))
    before = longest_to(losses, place)
    after = longest_to([-loss for loss in reversed(losses)], len(losses) - 1 - place)  # from the end, upward
    assert before + after - 1 == whole and abs(before - after) <= 1


@settings(max_examples=40, deadline=None)
@given(st.floats(-4, -2), st.floats(0.1, 0.3), st.floats(1.0, 2.5))
def test_suggestions_of_a_known_curve(middle, width, plateau) -> None:
    blow_up = min(middle + 5 * width + plateau, 0.5)
    reading = read_curve(RATES, np.minimum(descent(middle, width, blow_up), 1e6), STEPS)
    found = {suggestion.name: math.log10(suggestion.rate) for suggestion in reading.suggestions}
    assert found["steepest"] == pytest.approx(middle, abs=0.15)  # two steps
    assert found["valley"] < found["minimum/10"] + 1 < blow_up + 0.1
    assert blow_up - 1.45 < found["edge/10"] < blow_up - 0.8
    assert reading.chosen.name == "edge/10" and not reading.falling and reading.why


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_suggestions_by_hand_on_noisy_curves(seed) -> None:
    losses = np.minimum(descent(-3, blow_up=-0.5), 50) + np.random.default_rng(seed).normal(0, 0.1, STEPS)
    reading = read_curve(RATES, losses, STEPS)
    first = sorted(losses[:10])[4:6]
    clipped = [min(loss, sum(first) / 2) for loss in losses]
    smoothed = list(smooth(clipped, 3.0))
    assert reading.smoothed == pytest.approx(smoothed)
    low = smoothed.index(min(smoothed))
    edge = low
    while smoothed[edge + 1] <= smoothed[low] + 0.1 * (sum(first) / 2 - smoothed[low]):
        edge += 1
    slopes = [(smoothed[i + 1] - smoothed[i - 1]) / math.log(RATES[i + 1] / RATES[i - 1]) for i in range(1, low)]
    found = {suggestion.name: suggestion.rate for suggestion in reading.suggestions}
    assert found["minimum/10"] == pytest.approx(RATES[low] / 10) and found["edge/10"] == pytest.approx(RATES[edge] / 10)
    assert found["steepest"] == pytest.approx(RATES[1 + slopes.index(min(slopes))])
    assert found["valley"] == pytest.approx(RATES[valley(smoothed[: low + 1])])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100))
def test_the_unit_of_the_loss_does_not_matter(scale) -> None:
    losses = np.minimum(descent(-3), 50)
    one, other = read_curve(RATES, losses, STEPS), read_curve(RATES, scale * losses, STEPS)
    assert [s.rate for s in one.suggestions] == [s.rate for s in other.suggestions]


def test_long_tests_are_read_soon() -> None:
    steps = 50_000
    rates, x = np.geomspace(1e-6, 10, steps), np.linspace(-6, 1, steps)
    losses = 0.3 + 2 / (1 + np.exp((x + 3) / 0.2)) + np.random.default_rng(0).normal(0, 0.1, steps)
    began = time.process_time()
    assert read_curve(rates, losses, steps).chosen is not None
    assert time.process_time() - began < 5  # a matrix of all steps by all would take 20 GB


def test_noise_alone_is_no_descent() -> None:
    random = np.random.default_rng(0)
    for level in (0.01, 0.1, 0.5):
        fooled = [read_curve(RATES, 2.3 + random.normal(0, level, STEPS), STEPS).chosen is not None for _ in range(200)]
        assert sum(fooled) <= 4
    reading = read_curve(RATES, [2.3] * STEPS, STEPS)
    assert reading.chosen is None and not reading.suggestions and "does not fall" in reading.why


def test_a_curve_that_only_grows_says_so() -> None:
    for length in (8, 20, 60):
        reading = read_curve(RATES[:length], 2.3 * np.exp(np.arange(length) / 5), STEPS)
        assert reading.chosen is None and "lowest at step 1 " in reading.why
    reading = read_curve(RATES[:3], [2.3, 9, 99], STEPS)
    assert reading.chosen is None and "blew up at step 4" in reading.why
    assert read_curve([], [], STEPS).chosen is None


def test_a_curve_that_still_falls_at_its_end_says_so() -> None:
    assert read_curve(RATES, 3 - 0.2 * X, STEPS).falling
    assert not read_curve(RATES[:60], 3 - 0.2 * X[:60], STEPS).falling  # it was stopped


def test_the_reach_is_a_share_of_the_test() -> None:
    assert reach_of(100) == 3 and reach_of(1000) == 30 and reach_of(10) == 1


@pytest.mark.parametrize("losses", [np.minimum(descent(-3), 50), np.full(STEPS, 2.3), np.array([]), np.array([1.0])])
def test_the_picture_has_curve_and_suggestions_and_no_global_state(losses) -> None:
    reading = read_curve(RATES[: len(losses)], losses, STEPS)
    figure = draw(RATES[: len(losses)], losses, reading, "title")
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and len(axes.lines) == 2 + len(reading.suggestions)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sum("(chosen)" in label for label in labels) == (reading.chosen is not None)
    for suggestion, line in zip(reading.suggestions, axes.lines[2:], strict=True):
        assert line.get_xdata()[0] == suggestion.rate and line.get_label().startswith(suggestion.name)
    assert not _pylab_helpers.Gcf.figs
