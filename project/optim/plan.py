"""The learning rates of a run before it starts, as numbers and as a figure (advice A13, A16)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from project.optim.groups import NO_DECAY, ParamGroup
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
    rates: dict[str, Sequence[float]]

    @property
    def highest(self) -> float:
        return max(map(max, self.rates.values()))

    @property
    def decays(self) -> bool:
        """Whether any group ends at half its highest learning rate or below; True for a run of one epoch or step."""
        return self.epochs[-1] < 1 or any(curve[-1] <= max(curve) / 2 for curve in self.rates.values())


def planned_rates(scheduler: PlannedRates, length: Length) -> Plan:
    """What one of our schedules will do; Plateau is drawn as if its metric always improved."""
    steps = np.linspace(0, length.steps - 1, min(length.steps, POINTS)).round().astype(int).tolist()
    names = [group["name"] for group in scheduler.optimizer.param_groups]
    curves = zip(*map(scheduler.rates_at, steps), strict=True)
    return Plan([step / length.steps_per_epoch for step in steps], dict(zip(names, curves, strict=True)))


def simulated_rates(make: Callable[[Any], Any], groups: list[ParamGroup], interval: Interval, length: Length) -> Plan:
    """What a scheduler of torch will do, by running it on an optimizer of its own; by metric: as if that improved.

    Args:
        make: Optimizer -> scheduler.
        groups: Parameter groups of the run's optimizer.
        interval: When the scheduler is stepped.
        length: Of the run.
    """
    optimizer = SGD(
        [
            {"name": group["name"], "lr": group.get("initial_lr", group["lr"]), "params": [torch.zeros(())]}
            for group in groups
        ]
    )
    scheduler = make(optimizer)
    optimizer.step()  # torch warns about a scheduler that is stepped first
    count, unit = (length.epochs, 1) if interval == "epoch" else (length.steps, length.steps_per_epoch)
    rates: dict[str, list[float]] = {}
    for _ in range(count):
        for group in optimizer.param_groups:
            rates.setdefault(group["name"], []).append(group["lr"])
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
    return Plan([place / unit for place in range(count)], rates)


def draw_plan(plan: Plan, title: str = "planned learning rates") -> "Figure":
    """A figure of the plan; groups with the same learning rates share a line."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    curves: dict[tuple[float, ...], list[str]] = {}
    for name, curve in plan.rates.items():
        curves.setdefault(tuple(curve), []).append(name.removesuffix(NO_DECAY))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["viridis"](np.linspace(0, 0.9, len(curves))))
    for curve, names in curves.items():
        label = " to ".join(dict.fromkeys((names[0], names[-1])))
        axes.plot(plan.epochs, curve, label=label, drawstyle="steps-post")
    peaks = [max(curve) for curve in curves]
    if max(peaks) > 50 * min(peaks):  # on a linear scale the lowest groups would lie on the axis
        axes.set_yscale("log", nonpositive="mask")
    if len(curves) <= CURVES:
        axes.legend(fontsize="small")
    axes.set(xlabel="epoch", ylabel="learning rate", title=title)
    axes.grid(alpha=0.3)
    return figure
