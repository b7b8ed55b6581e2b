"""What the curve of a range test says: loss against learning rate, smoothed (advice A13, A15)."""

from typing import Any

import numpy as np

WIDTH = 0.03  # reach of the smoothing as a share of the planned steps: a fifth of a decade with the defaults
FEWEST = 5  # points
LITTLE = 0.02  # share of the first loss: a smaller fall is none
NOISES = 2.0  # standard deviations of one batch's loss: a smaller fall is none either
RISE = 0.1  # share of the fall by which the loss may be above its lowest and still counts as low


def reach_of(steps: int) -> float:
    """The reach of the smoothing, in steps, for a test planned over that many."""
    return max(1.0, WIDTH * steps)


def smooth(losses: list[float], reach: float) -> np.ndarray:
    """Mean of all losses, weighted with exp(-distance / reach): it does not shift the curve, as a running mean does."""
    places = np.arange(len(losses))
    weights = np.exp(-np.abs(places - places[:, None]) / reach)
    return weights @ losses / weights.sum(axis=1)


def read_curve(losses: list[float], steps: int) -> tuple[np.ndarray, int | None]:
    """Smooth a curve and find its edge.

    Args:
        losses: Of each step, finite; the learning rate rises evenly on a logarithmic scale.
        steps: Planned; there are fewer losses where the test stopped early.

    Returns:
        The smoothed losses, and the last step at which they are low; None where the loss does not fall.
    """
    if len(losses) < FEWEST:
        return np.array(losses), None
    first = np.median(losses[: max(FEWEST, steps // 10)])
    # How high the loss shoots up says nothing, and would pull up the means of the steps before.
    smoothed = smooth(np.minimum(losses, first), reach_of(steps))
    lowest = int(smoothed.argmin())
    noise = 1.4826 * np.median(np.abs(np.diff(losses))) / 2**0.5  # of one batch, however far the curve itself moves
    fall = first - smoothed[lowest]
    if lowest < FEWEST - 1 or fall <= max(LITTLE * abs(first), NOISES * noise):
        return smoothed, None
    risen = np.flatnonzero(smoothed[lowest:] > smoothed[lowest] + RISE * fall)
    return smoothed, lowest + int(risen[0]) - 1 if len(risen) else len(losses) - 1


def draw(rates: list[float], losses: list[float], smoothed: np.ndarray, chosen: float | None) -> Any:
    """A figure of the curve, raw and smoothed, with the learning rate that was chosen."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="0.7", label="loss of each step")
    axes.plot(rates, smoothed, label="smoothed")
    if chosen is not None:
        axes.axvline(chosen, color="C1", label=f"chosen: {chosen:g}")
    axes.set(xscale="log", xlabel="model.lr", ylabel="training loss", ylim=(0, 1.3 * max(smoothed, default=1)))
    axes.legend()
    return figure
