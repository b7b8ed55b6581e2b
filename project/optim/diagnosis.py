"""Which of four shapes a training-loss curve has, and what that says about the learning rate (advice A15).

The shapes are those of the CS231n notes ("Neural Networks Part 3", loss against epochs): with a good learning rate the
loss falls fast and levels off low; with one too low it falls along a straight line; with one too high it falls at once
and then bounces around a worse level; with a far too high one it grows, or the network learns nothing. "good" means no
more than that nothing stands out: a hard task looks the same. benchmarks/diagnosis.py counts how often it is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Set on small runs on scikit-learn's digits; moved by a fifth, the thresholds judge a few of those differently.
FEWEST = 4  # epochs: two halves of two points each
POINTS = 10  # longer curves are averaged down to 10 to 19 points, so that noise does not add up over epochs
NOTHING = 0.02  # share of the chance loss: a smaller change is none, the loss of a dead network wanders that much
LITTLE = 0.1  # share of the chance loss: a smaller fall is too little for a good learning rate
AT_ONCE = 0.6  # share of the whole fall between the first two points
SPIKE = 1.5  # times the chance loss: fresh networks start at up to 1.15, diverged ones anywhere above
BOUNCE = 0.07  # share of all movement that is upward; good runs stayed below 0.065
STUCK_BOUNCE = 0.15  # the same where nothing is learned, and noise is a larger part of the movement
LATE = 0.25  # share of the fall in the second half: a straight line has 0.5, an exponential 0.25 at 2.2 time constants
SPEED_UP = 1.5  # fall per unit of learning rate after the decay, over that before it; one too low only slows down

MUCH_LOWER = "try a learning rate 10 to 100 times lower"
LOWER = "try a learning rate 3 to 10 times lower"
HIGHER = "try a learning rate 3 to 10 times higher"


@dataclass(frozen=True)
class Diagnosis:
    """What a curve says.

    Attributes:
        shape: diverging, too high, good, too low or undecided.
        evidence: The numbers that decided it, as a sentence.
        advice: What to try; empty where there is nothing to change.
    """

    shape: str
    evidence: str
    advice: str = ""


def diagnose(losses: Sequence[float], chance: float, rates: Sequence[float]) -> Diagnosis:
    """The shape of one run's curve.

    Args:
        losses: Mean training loss (cross-entropy) of each epoch, in order; may contain NaN or infinity.
        chance: The loss of a network that knows nothing, ln C for C classes.
        rates: Mean learning rate of each epoch. Progress is measured against their sum: their decay flattens any curve.
    """
    finite = np.isfinite(losses)
    if not finite.all():
        return Diagnosis("diverging", f"the loss of epoch {finite.argmin() + 1} is not finite", MUCH_LOWER)
    if len(losses) < FEWEST or not any(rates):
        return Diagnosis("undecided", f"too few epochs ({len(losses)}); it takes {FEWEST}, at a learning rate above 0")

    points = _average(np.clip(losses, 0.0, 100 * chance))
    rates = _average(np.divide(rates, max(rates)))
    first, last, lowest, highest = points[0], points[-1], min(points), max(points)
    moves = np.diff(points)
    # A rise of the loss while the learning rate rises, in a warm-up or at a restart, has its reason.
    up, down = moves[(moves > 0) & (np.diff(rates) <= 0)].sum(), -moves[moves < 0].sum()
    bounce = up / (up + down) if up else 0.0
    saw = f"from {first:.3g} to {last:.3g} (lowest {lowest:.3g}, highest {highest:.3g}, chance {chance:.3g}), "
    saw += f"{bounce:.0%} of its movement upward"
    spiked, nothing = highest > SPIKE * chance, NOTHING * chance
    if last > chance - nothing:
        dropped = first - points[1] > AT_ONCE * (first - last)  # to chance level within an epoch, and stayed there
        if spiked or last - lowest > nothing or (highest - lowest > nothing and (dropped or bounce > STUCK_BOUNCE)):
            return Diagnosis("diverging", f"the loss ended no better than guessing: {saw}", MUCH_LOWER)
    elif spiked or bounce > BOUNCE:
        return Diagnosis("too high", f"the loss {'shot up' if spiked else 'bounced'}: {saw}", LOWER)
    if last > (1 - LITTLE) * chance:
        return Diagnosis("too low", f"the loss hardly fell: {saw}", f"{HIGHER}, then check the labels")

    time = np.cumsum(rates) - rates / 2  # of each point's middle, in summed learning rate
    late = (np.interp((time[0] + time[-1]) / 2, time, points) - last) / (max(first, chance) - last)
    fell = f"{late:.0%} of the fall to {last:.3g} came in the second half (by summed learning rate)"
    if late <= LATE:
        return Diagnosis("good", fell)
    knee = np.flatnonzero(rates >= rates.max() / 2)[-1]  # the last point before the decay
    if 0 < knee < len(rates) - 1:
        middle = (time[0] + time[knee]) / 2
        before = (np.interp(middle, time, points) - points[knee]) / (time[knee] - middle)
        if (points[knee] - last) / (time[-1] - time[knee]) > SPEED_UP * before:
            return Diagnosis("good", f"{fell}, because the learning rate decayed: the loss fell faster from then on")
    return Diagnosis("too low", fell, f"{HIGHER}, or more epochs")


def _average(values: np.ndarray) -> np.ndarray:
    """Means of runs of values, 10 to 19 of them; fewer than 20 values stay as they are."""
    size = max(1, len(values) // POINTS)
    return np.array([values[i : i + size].mean() for i in range(0, len(values), size)])
