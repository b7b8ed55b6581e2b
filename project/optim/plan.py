"""The learning rates of a run before it starts, as numbers and as a figure (advice A13, A16)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from project.optim.groups import NO_DECAY
from project.optim.rates import Length, PlannedRates
from project.optim.schedules import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 2000  # of a curve: more than a screen shows
CURVES = 12  # that a legend can name


@dataclass(frozen=True)
class Plan:
    """The learning rate of every group (name -> values) at `epochs`, which may be fractions."""

    epochs: list[float]
    rates: dict[str, list[float]]

    @property
    def highest(self) -> float:
        return max(max(curve) for curve in self.rates.values())

    @property
    def decays(self) -> bool:
        """Whether any group ends at half its highest learning rate or below; True for a run of one epoch or step."""
        return self.epochs[-1] < 1 or any(curve[-1] <= max(curve) / 2 for curve in self.rates.values())


def planned_rates(scheduler: PlannedRates, length: Length) -> Plan:
    """What one of our schedules will do; Plateau is drawn as if its metric always improved."""
    last = length.steps - 1
    steps = [*range(0, last, max(1, last // POINTS)), last]
    table = [scheduler.rates_at(step) for step in steps]
    return _plan(scheduler.optimizer.param_groups, [step / length.steps_per_epoch for step in steps], table)


def simulated_rates(
    make: Callable[[Any], Any], groups: list[dict[str, Any]], interval: Interval, length: Length
) -> Plan:
    """What a scheduler of torch will do, by running it on an optimizer of its own.

    Args:
        make: Optimizer -> scheduler.
        groups: Parameter groups of the run's optimizer.
        interval: When the scheduler is stepped.
        length: Of the run.
    """
    copies = [{"lr": group.get("initial_lr", group["lr"]), "params": [torch.zeros(())]} for group in groups]
    optimizer = SGD(copies)
    scheduler = make(optimizer)
    optimizer.step()  # torch warns about a scheduler that is stepped first
    count, unit = (length.epochs, 1) if interval == "epoch" else (length.steps, length.steps_per_epoch)
    table = []
    for _ in range(count):
        table.append([group["lr"] for group in optimizer.param_groups])
        if not isinstance(scheduler, ReduceLROnPlateau):  # which is drawn as if its metric always improved
            scheduler.step()
    return _plan(groups, [place / unit for place in range(count)], table)


def _plan(groups: list[dict[str, Any]], epochs: list[float], table: list[list[float]]) -> Plan:
    names, columns = [group["name"] for group in groups], map(list, zip(*table, strict=True))
    return Plan(epochs, dict(zip(names, columns, strict=True)))


def draw_plan(plan: Plan, title: str = "planned learning rates") -> "Figure":
    """A figure of the plan; groups with the same learning rates share a line."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    curves: dict[tuple[float, ...], list[str]] = {}
    for name, curve in plan.rates.items():
        curves.setdefault(tuple(curve), []).append(name.removesuffix(NO_DECAY))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for i, (curve, names) in enumerate(curves.items()):
        label = " to ".join(dict.fromkeys((names[0], names[-1])))
        colour = colormaps["viridis"](0.9 * i / max(1, len(curves) - 1))
        axes.plot(plan.epochs, curve, color=colour, label=label, drawstyle="steps-post")
    peaks = [max(curve) for curve in curves]
    if max(peaks) > 50 * min(peaks):  # on a linear scale the lowest groups would lie on the axis
        axes.set_yscale("log", nonpositive="mask")
    if len(curves) <= CURVES:
        axes.legend(fontsize="small")
    axes.set(xlabel="epoch", ylabel="learning rate", title=title)
    return figure
