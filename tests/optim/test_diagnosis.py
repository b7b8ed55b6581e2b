"""The diagnosis on curves given by formulas; benchmarks/diagnosis.py has the real ones."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from project.optim import diagnosis as module
from project.optim.diagnosis import Diagnosis

CLASSES = 10
GUESS = math.log(CLASSES)
LENGTHS = [6, 10, 15, 30, 100]


def diagnose(losses: list[float], num_classes: int = CLASSES, rates: list[float] | None = None) -> Diagnosis:
    """At a constant learning rate unless others are given."""
    return module.diagnose(losses, math.log(num_classes), rates or [0.1] * len(losses))


def decay(epochs: int, half_lives: float, floor: float = 0.1) -> list[float]:
    """From guessing to the floor, exponentially, so many half-lives in the run."""
    return [floor + (GUESS - floor) * 0.5 ** (half_lives * (epoch + 0.5) / epochs) for epoch in range(epochs)]


def cosine(epochs: int, low: float = 0.0) -> list[float]:
    return [low + (1 - low) * (1 + math.cos(math.pi * (epoch + 0.5) / epochs)) / 2 for epoch in range(epochs)]


def gradient_flow(rates: list[float], speed: float) -> list[float]:
    """A rate so low that the loss depends on the summed rate alone: exponential in that."""
    return [GUESS * math.exp(-speed * (sum(rates[:i]) + rate / 2) / sum(rates)) for i, rate in enumerate(rates)]


@pytest.mark.parametrize("epochs", LENGTHS)
@pytest.mark.parametrize("floor", [0.001, 0.5, 1.3])
def test_a_fast_fall_that_levels_off_is_good(epochs, floor) -> None:
    diagnosis = diagnose(decay(epochs, 8, floor), CLASSES)
    assert diagnosis.shape == "good" and diagnosis.advice == ""


@pytest.mark.parametrize("epochs", LENGTHS)
@pytest.mark.parametrize("end", [0.3, 1.0, 2.0])
def test_a_straight_fall_is_too_low(epochs, end) -> None:
    losses = [GUESS + (end - GUESS) * (epoch + 0.5) / epochs for epoch in range(epochs)]
    diagnosis = diagnose(losses, CLASSES)
    assert diagnosis.shape == "too low" and "higher" in diagnosis.advice
    if end < 2:
        assert "came in the second half" in diagnosis.evidence and "%" in diagnosis.evidence


def test_the_boundary_between_good_and_too_low_is_at_a_quarter() -> None:
    """A curve of two straight lines: the second half's share of the fall is what is judged."""
    for late, shape in ((0.2, "good"), (0.3, "too low")):
        end = GUESS - 1.5
        middle = end + late * 1.5
        losses = [GUESS + (middle - GUESS) * i / 5 for i in range(6)] + [
            middle + (end - middle) * i / 5 for i in range(1, 6)
        ]
        assert diagnose(losses, CLASSES).shape == shape
        assert f"{late:.0%}" in diagnose(losses, CLASSES).evidence


@pytest.mark.parametrize("epochs", LENGTHS)
def test_a_fast_fall_to_a_bouncing_plateau_is_too_high(epochs) -> None:
    draw = random.Random(0)
    period = max(1, epochs // 10)  # as wide as a point of an averaged curve: else the noise averages out
    noise = [draw.uniform(-0.3, 0.3) for _ in range(epochs // period + 1)]
    losses = [1.0 + 1.3 * 0.5 ** (2 * epoch) + noise[epoch // period] for epoch in range(epochs)]
    diagnosis = diagnose(losses, CLASSES)
    assert diagnosis.shape == "too high" and "lower" in diagnosis.advice and "upward" in diagnosis.evidence


def test_a_first_loss_far_above_guessing_is_too_high_if_it_learned_and_diverging_if_not() -> None:
    assert diagnose([10.0, 1.9, 1.7, 1.6, 1.55, 1.5], CLASSES).shape == "too high"
    assert diagnose([350.0, 2.33, 2.33, 2.32, 2.31, 2.31], CLASSES).shape == "diverging"


@pytest.mark.parametrize(
    "losses",
    [
        [2.5 * 1.5**epoch for epoch in range(10)],  # grows
        [1.0e300 * 10**epoch for epoch in range(8)],  # grows beyond what can be summed
        [2.1, 1.5, 1.2, 2.0, 2.4, 2.31, 2.3, 2.31],  # learned, and lost it
        [2.6, 2.31, 2.31, 2.3, 2.31, 2.3],  # fell to guessing at once, and is dead
        [2.4, 2.5, 2.3, 2.6, 2.35, 2.5, 2.4],  # nothing but noise
    ],
)
def test_growing_and_dead_curves_are_diverging(losses) -> None:
    diagnosis = diagnose(losses, CLASSES)
    assert diagnosis.shape == "diverging" and "lower" in diagnosis.advice


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_diverging_however_short_the_run(bad) -> None:
    for losses in ([2.0, bad], [2.2, 1.9, 1.5, 1.2, bad, 1.0, 0.9]):
        diagnosis = diagnose(losses, CLASSES)
        assert diagnosis.shape == "diverging" and f"epoch {losses.index(bad) + 1} is not finite" in diagnosis.evidence


def test_a_flat_curve_at_guessing_is_too_low_and_hints_at_the_labels() -> None:
    diagnosis = diagnose([2.303, 2.301, 2.304, 2.302, 2.3], CLASSES)
    assert diagnosis.shape == "too low" and "labels" in diagnosis.advice
    assert diagnose([GUESS] * 8, CLASSES).shape == "too low"


def test_an_untrained_networks_higher_loss_that_falls_evenly_is_too_low() -> None:
    assert diagnose([2.54 - 0.01 * epoch for epoch in range(10)], CLASSES).shape == "too low"


@pytest.mark.parametrize("losses", [[], [2.0], [2.0, 1.0, 0.5]])
def test_few_epochs_are_undecided(losses) -> None:
    diagnosis = diagnose(losses, CLASSES)
    assert diagnosis.shape == "undecided" and str(len(losses)) in diagnosis.evidence and diagnosis.advice == ""


def test_a_rate_of_zero_is_undecided() -> None:
    assert diagnose([2.3] * 5, CLASSES, [0.0] * 5).shape == "undecided"


@pytest.mark.parametrize("epochs", LENGTHS)
def test_a_flat_end_does_not_hide_a_too_low_rate_that_decays(epochs) -> None:
    """Half a cosine: the loss levels off because the rate vanishes. In summed rate it is as steep as ever."""
    rates = cosine(epochs)
    losses = gradient_flow(rates, speed=0.8)
    assert losses[-2] - losses[-1] < (losses[0] - losses[1]) or epochs < 10
    assert diagnose(losses, CLASSES, rates).shape == "too low"
    assert diagnose(losses, CLASSES, [rate * 1e-6 for rate in rates]).shape == "too low"  # the unit does not matter


def test_a_late_fall_that_the_decay_causes_is_not_held_against_the_rate() -> None:
    losses = [2.0, 1.75, 1.6, 1.55, 1.5, 1.48, 1.0, 0.85, 0.8]
    steps = [0.1] * 6 + [0.01] * 3
    assert diagnose(losses, CLASSES).shape == "too low"  # at a constant rate, such a curve has only begun to learn
    diagnosis = diagnose(losses, CLASSES, steps)
    assert diagnosis.shape == "good" and "decayed" in diagnosis.evidence


def test_a_rise_while_the_rate_rises_is_not_a_bounce() -> None:
    """Warm restarts: the loss jumps when the rate returns to its full height."""
    losses = [1.5, 0.8, 0.5, 0.4, 0.7, 0.45, 0.35, 0.3, 0.5, 0.35, 0.25, 0.2]
    rates = [1.0, 0.7, 0.3, 0.05] * 3
    assert diagnose(losses, CLASSES).shape == "too high"
    assert diagnose(losses, CLASSES, rates).shape != "too high"


def test_the_number_of_classes_says_what_guessing_is() -> None:
    losses = [0.69, 0.69, 0.68, 0.68, 0.67, 0.67]
    assert diagnose(losses, 2).shape == "too low"
    assert diagnose([1.6, 1.0, 0.72, 0.7, 0.68, 0.67], 1000).shape == "good"


FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 5)
RATES = st.floats(min_value=0, allow_nan=False, allow_infinity=False) | st.floats(0, 1)


@settings(max_examples=50)
@given(st.lists(st.tuples(FLOATS, RATES), max_size=60), st.integers(2, 1000))
def test_any_curve_gets_a_shape_and_a_reason(pairs, num_classes) -> None:
    losses, rates = [loss for loss, _ in pairs], [rate for _, rate in pairs]
    diagnosis = module.diagnose(losses, math.log(num_classes), rates)
    assert diagnosis.shape in ("diverging", "too high", "good", "too low", "undecided") and diagnosis.evidence
    assert (diagnosis.advice == "") == (diagnosis.shape in ("good", "undecided"))
    if not all(map(math.isfinite, losses)):
        assert diagnosis.shape == "diverging"


@settings(max_examples=50)
@given(st.lists(st.floats(0, 5), min_size=4, max_size=40), st.floats(1e-6, 1e3))
def test_the_height_of_a_constant_rate_does_not_matter(losses, rate) -> None:
    assert diagnose(losses, CLASSES, [rate] * len(losses)).shape == diagnose(losses).shape
