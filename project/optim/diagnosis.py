"""Which of four shapes a training-loss curve has, and what that says of the learning rate (advice A15).

The shapes are those of the CS231n notes ("Neural Networks Part 3", loss against epochs): with a good rate the loss falls fast and
levels off low; with one too low it falls along a straight line; with one too high it falls at once and then bounces about a
worse level; with a far too high one it grows, or the network learns nothing. One curve is weak evidence: a hard task and a low
rate look alike. "good" means no more than that nothing stands out; benchmarks/diagnosis.py counts how often it is right.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from project.errors import UserError

Shape = Literal["diverging", "too high", "good", "too low", "undecided"]

# The thresholds were set on small runs on scikit-learn's digits; moved by a fifth, they judge a few of those runs differently.
FEWEST = 4  # epochs: two halves of two points each
POINTS = 10  # longer curves are averaged down to 10 to 19 points, so that noise does not add up over epochs
NOTHING = 0.02  # a change by this share of the loss of guessing is none: a dead network's loss wanders that much
LITTLE = 0.1  # a fall by less than this share of it is too small to be a good rate's
AT_ONCE = 0.6  # share of the whole fall between the first two points
SPIKE = 1.5  # over the loss of guessing: fresh networks start at up to 1.15 of it, blown-up ones anywhere above
BOUNCE = 0.07  # share of all movement that is upward; good development runs stayed below 0.065
STUCK_BOUNCE = 0.15  # the same where nothing is learned, and noise is a larger part of the movement
LATE = 0.25  # share of the fall in the second half: a straight line has 0.5, an exponential 0.25 at 2.2 time constants
SPEED_UP = 1.5  # fall per unit of rate, after the decay over before it; a too low rate only slows down

MUCH_LOWER = "try a rate 10 to 100 times lower"
LOWER = "try a rate 3 to 10 times lower"
HIGHER = "try a rate 3 to 10 times higher"


@dataclass(frozen=True)
class Diagnosis:
    """A shape, a sentence with the numbers that decided, and what to try (empty where nothing is to be changed or said)."""

    shape: Shape
    evidence: str
    advice: str = ""


def diagnose(losses: Sequence[float], num_classes: int, rates: Sequence[float] | None = None) -> Diagnosis:
    """The shape of one run's curve.

    Args:
        losses: Mean training loss (cross-entropy) of each epoch, in order; may hold NaN or infinity.
        num_classes: ln(num_classes) is the loss of guessing.
        rates: Learning rate of each epoch, best its mean; None for a constant one. Time is counted in summed rate: a rate that is
            too low moves the weights by just that much, and what a decay explains is not held against the rate.

    Raises:
        UserError: fewer than two classes, rates that do not match the losses, or one that is negative or not finite.
    """
    if num_classes < 2:
        raise UserError(f"num_classes: a diagnosis needs 2 classes or more, not {num_classes}")
    rates = [1.0] * len(losses) if rates is None else list(rates)
    if len(rates) != len(losses):
        raise UserError(f"rates: {len(rates)} of them for {len(losses)} losses; give one for each epoch")
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise UserError(f"rates: they must be finite and 0 or more, not {rates}")
    bad = next((epoch for epoch, loss in enumerate(losses, 1) if not math.isfinite(loss)), None)
    if bad:
        return Diagnosis("diverging", f"the loss of epoch {bad} is {losses[bad - 1]}", MUCH_LOWER)
    if len(losses) < FEWEST:
        return Diagnosis("undecided", f"{len(losses)} epochs are too few; it takes {FEWEST}")
    if not any(rates):
        return Diagnosis("undecided", "the rate was 0 all along")

    guess, peak = math.log(num_classes), max(rates)
    points = _average([min(max(loss, 0.0), 100 * guess) for loss in losses])  # so that nothing overflows
    rates = _average([rate / peak for rate in rates])
    first, last, lowest, highest = points[0], points[-1], min(points), max(points)
    steps = [after - before for before, after in pairwise(points)]
    # an upward step while the rate goes up, in a warm-up or at a restart, has its reason
    up = sum(step for step, (before, after) in zip(steps, pairwise(rates), strict=True) if step > 0 and after <= before)
    bounce = up / (up - sum(step for step in steps if step < 0)) if up else 0.0

    saw = (
        f"from {first:.3g} to {last:.3g}, at least {lowest:.3g} and at most {highest:.3g}, {bounce:.0%} of its movement upward;"
        f" guessing has {guess:.3g}"
    )
    if last > (1 - NOTHING) * guess:
        moved = highest - lowest > NOTHING * guess
        lost = last - lowest > NOTHING * guess
        dropped = first - points[1] > AT_ONCE * (first - last)  # to guessing within an epoch, and stayed there
        if highest > SPIKE * guess or lost or (moved and (dropped or bounce > STUCK_BOUNCE)):
            return Diagnosis("diverging", f"the loss ended no better than guessing: {saw}", MUCH_LOWER)
    elif highest > SPIKE * guess or bounce > BOUNCE:
        return Diagnosis("too high", f"the loss {'shot up' if highest > SPIKE * guess else 'bounced'}: {saw}", LOWER)
    if last > (1 - LITTLE) * guess:
        return Diagnosis(
            "too low", f"the loss hardly fell: {saw}", f"{HIGHER}; if that changes nothing, look at the labels"
        )

    time = [sum(rates[:i]) + rate / 2 for i, rate in enumerate(rates)]  # of each point's middle, in summed rate
    late = (_at(time, points, (time[0] + time[-1]) / 2) - last) / (max(first, guess) - last)
    falls = f"{late:.0%} of the fall to {last:.3g} came in the second half" + (
        " (by summed rate)" if len(set(rates)) > 1 else ""
    )
    if late <= LATE:
        return Diagnosis("good", falls)
    knee = max(
        i for i, rate in enumerate(rates) if rate >= max(rates) / 2
    )  # below half of its peak the rate has decayed
    if 0 < knee < len(points) - 1 and time[-1] > time[knee]:
        middle = (time[0] + time[knee]) / 2
        before = (_at(time, points, middle) - points[knee]) / (time[knee] - middle)
        after = (points[knee] - last) / (time[-1] - time[knee])
        if after > SPEED_UP * before:
            return Diagnosis(
                "good", f"{falls}, because the rate decayed: per unit of rate the loss fell faster from then on"
            )
    return Diagnosis("too low", falls, f"{HIGHER}, or more epochs")


def _average(values: list[float]) -> list[float]:
    """Means of runs of values, 10 to 19 of them; fewer than 20 values stay as they are."""
    size = max(1, len(values) // POINTS)
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]


def _at(time: list[float], points: list[float], moment: float) -> float:
    """The loss at that moment, on the straight line between its two neighbours."""
    i = bisect_left(time, moment)
    if i == 0:
        return points[0]
    share = (moment - time[i - 1]) / (time[i] - time[i - 1])
    return points[i - 1] + share * (points[i] - points[i - 1])
