"""What a range test's curve says: loss against learning rate, smoothed, with suggestions (advice A13, A15).

The test and its curve are those of Smith 2017, arXiv:1506.01186, section 3.3; the suggestions are the ones that fastai made usual.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 0.03  # reach of the smoothing as a share of the planned steps: a fifth of a decade with the defaults
FEWEST = 5  # points that can have a slope
LITTLE = 0.02  # a fall by less than this share of the first loss is none
RISE = 0.1  # share of the fall by which the loss may be above its lowest and still counts as low
NOISES = 2.0  # nor is one by less than this many standard deviations of one batch's loss
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
)  # Okabe and Ito's, which the colour-blind can tell apart


@dataclass(frozen=True)
class Suggestion:
    """A rate, the rule that gives it, and the rule in words."""

    name: str
    rate: float
    words: str


@dataclass(frozen=True)
class Reading:
    """What a curve says.

    `smoothed` has a value for each loss; `suggestions` is empty and `chosen` None where the loss does not fall, which `why` says;
    `why` else says why the chosen one was. `falling` is true where the loss is still low at the highest rate, so that how much the
    network bears is not known.
    """

    smoothed: np.ndarray
    suggestions: list[Suggestion]
    chosen: Suggestion | None
    why: str
    falling: bool = False


def smooth(losses: Sequence[float], reach: float) -> np.ndarray:
    """Mean of all losses, weighted with exp(-distance / reach); reach in steps.

    It looks both ways, so that it shifts nothing to higher rates, as a running mean does by its reach. The weights of each mean
    add up to 1, at the ends too, so that it begins without a bias.
    """
    values, keep = np.asarray(losses, dtype=float), math.exp(-1 / reach)

    def before(sequence: np.ndarray) -> np.ndarray:
        """For each place the weighted sum of what is there and before."""
        return np.fromiter(accumulate(sequence, lambda total, value: keep * total + value), float, len(sequence))

    def both(sequence: np.ndarray) -> np.ndarray:
        return before(sequence) + before(sequence[::-1])[::-1] - sequence

    return both(values) / both(np.ones(len(values)))


def reach_of(steps: int) -> float:
    """The reach of the smoothing, in steps, for a test planned over that many."""
    return max(1.0, WIDTH * steps)


def read_curve(rates: Sequence[float], losses: Sequence[float], steps: int) -> Reading:
    """Smooth a curve and make suggestions.

    Args:
        rates: Rising evenly on a logarithmic scale.
        losses: Of the batches trained with them, finite.
        steps: Planned; there are fewer losses where the test stopped early.

    Returns:
        Four suggestions, the last of which is chosen. The other three depend on how soon the loss falls: in a hundred steps an
        easy task is learned before the rate is high, and their rates were 10 to 100 times too low on the digits.
    """
    if len(losses) < FEWEST:
        return Reading(np.asarray(losses, dtype=float), [], None, f"the loss blew up at step {len(losses) + 1}")
    rates, raw = np.asarray(rates, dtype=float), np.asarray(losses, dtype=float)
    first = float(np.median(raw[: max(FEWEST, steps // 10)]))
    # How high it shoots up tells nothing, and would pull up the means of the steps before.
    smoothed = smooth(np.minimum(raw, first), reach_of(steps))
    low = int(smoothed.argmin())
    noise = float(1.4826 * np.median(np.abs(np.diff(raw))) / 2**0.5)  # of one batch, however far the curve itself moves
    fall = first - float(smoothed[low])
    if low < FEWEST - 1 or fall <= max(LITTLE * abs(first), NOISES * noise):
        return Reading(smoothed, [], None, _no_fall(first, fall, noise, raw, low))
    risen = np.flatnonzero(smoothed[low:] > smoothed[low] + RISE * fall)
    edge = low + int(risen[0]) - 1 if len(risen) else len(raw) - 1
    slope = np.gradient(smoothed[: low + 1], np.log(rates[: low + 1]))
    found = [
        Suggestion("steepest", float(rates[slope.argmin()]), "where the loss falls fastest"),
        Suggestion(
            "valley", float(rates[valley(smoothed[: low + 1])]), "the middle of the longest run of falling losses"
        ),
        Suggestion("minimum/10", float(rates[low] / 10), "a tenth of the rate of the lowest loss"),
        Suggestion("edge/10", float(rates[edge] / 10), "a tenth of the rate up to which the loss stays low"),
    ]
    why = "the others depend on how soon the loss falls, this one only on how much the network bears"
    return Reading(smoothed, found, found[-1], why, falling=edge == steps - 1)


def _no_fall(first: float, fall: float, noise: float, raw: np.ndarray, low: int) -> str:
    moved = (
        f"{first:.3g} at the start, at best {fall:.2g} lower"
        if fall > 0
        else f"{first:.3g} at the start, and never lower"
    )
    if low < FEWEST - 1 and np.median(raw[-FEWEST:]) - np.median(raw[:FEWEST]) > NOISES * noise:
        return f"the loss was lowest at step {low + 1} of {len(raw)}, too soon to have fallen, and then grew"
    return f"the loss does not fall by more than single batches differ ({moved}; batches differ by {noise:.2g})"


def valley(losses: Sequence[float]) -> int:
    """Place of the middle of the longest strictly falling subsequence of losses; of equally long ones, one that ends first."""
    tails: list[float] = []  # of the subsequences of each length, the highest last loss, with its sign turned
    ends: list[int] = []  # its place
    before: list[int | None] = []  # for each place, the one before it in its subsequence
    place: int | None = None
    for i, loss in enumerate(losses):
        length = bisect_left(tails, -loss)
        before.append(ends[length - 1] if length else None)
        if length == len(tails):
            place = i
        tails[length : length + 1], ends[length : length + 1] = [-loss], [i]
    chain = []
    while place is not None:
        chain.append(place)
        place = before[place]
    return chain[len(chain) // 2]  # from its end to its start, but the middle is the middle


def draw(rates: Sequence[float], losses: Sequence[float], reading: Reading, title: str) -> "Figure":
    """The curve, raw and smoothed, with the suggestions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="0.7", linewidth=1, label="loss of each step")
    axes.plot(rates, reading.smoothed, color=COLOURS[0], label="smoothed")
    for suggestion, colour, line in zip(reading.suggestions, COLOURS[1:], ("--", ":", "-.", "-"), strict=False):
        bold = suggestion is reading.chosen
        label = f"{suggestion.name} {suggestion.rate:.3g}" + (" (chosen)" if bold else "")
        axes.axvline(suggestion.rate, color=colour, linestyle=line, linewidth=2.5 if bold else 1.2, label=label)
    low, high = float(min(reading.smoothed, default=0)), float(max(reading.smoothed, default=1))
    room = 0.3 * (high - low) or 0.1 * abs(high) or 1
    axes.set(xscale="log", xlabel="model.lr", ylabel="training loss", title=title, ylim=(low - room, high + room))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    return figure
