"""The rates of a run before it starts, as numbers and as a picture (advice A13, A16)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import SGD

from project.errors import UserError
from project.optim.groups import NO_DECAY
from project.optim.rates import Length, PlannedRates
from project.optim.schedules import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 2000  # of a curve: more than a screen shows
CURVES = 12  # that a legend can name


@dataclass(frozen=True)
class Plan:
    """The rate of every group: at `epochs` (fractions count), name -> rates."""

    epochs: list[float]
    rates: dict[str, list[float]]

    @property
    def highest(self) -> float:
        return max(max(curve) for curve in self.rates.values())

    @property
    def decays(self) -> bool:
        """Whether any group's rate ends well below its highest: by half, as the mildest of schedules does. In a run of a single
        epoch or step there is nothing to see.
        """
        return self.epochs[-1] < 1 or any(curve[-1] <= max(curve) / 2 for curve in self.rates.values())


def planned_rates(scheduler: PlannedRates, length: Length) -> Plan:
    """What one of our schedules will do; a plateau's metric is not known, so its rate is drawn as if none came."""
    steps = _some(length.steps)
    table = [scheduler.rates_at(step) for step in steps]
    names = [group["name"] for group in scheduler.optimizer.param_groups]
    return Plan([step / length.steps_per_epoch for step in steps], _curves(names, table))


def simulated_rates(
    make: Callable[[Any], Any], groups: list[dict[str, Any]], interval: Interval, length: Length
) -> Plan:
    """What a scheduler of torch will do, by running it on an optimizer of its own.

    Args:
        make: Optimizer -> scheduler.
        groups: name and rate of each group.
        interval: When it is stepped.
        length: Of the run.
    """
    copies = [{"name": g["name"], "lr": g.get("initial_lr", g["lr"]), "params": [torch.zeros(())]} for g in groups]
    optimizer = SGD(copies, lr=1.0, momentum=0.9)  # some schedulers move the momentum too
    scheduler = make(optimizer)
    optimizer.step()  # torch warns of a scheduler that is stepped first
    by_metric = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    count = length.epochs if interval == "epoch" else length.steps
    table = []
    for _ in range(count):
        table.append([group["lr"] for group in optimizer.param_groups])
        if not by_metric:
            try:
                scheduler.step()
            except Exception as error:  # of many kinds; OneCycleLR, for one, past the steps that it was made for
                raise UserError(f"model.schedule: in a run of {count} {interval}s: {error}") from error
    unit = 1 if interval == "epoch" else length.steps_per_epoch
    return Plan([place / unit for place in range(count)], _curves([g["name"] for g in groups], table))


def _some(steps: int) -> list[int]:
    """All steps, or as many as a picture can show, the last among them."""
    if steps <= POINTS:
        return list(range(steps))
    return [round(i * (steps - 1) / (POINTS - 1)) for i in range(POINTS)]


def _curves(names: list[str], table: list[list[float]]) -> dict[str, list[float]]:
    return {name: list(curve) for name, curve in zip(names, zip(*table, strict=True), strict=True)}


def draw_plan(plan: Plan, title: str = "planned learning rates") -> "Figure":
    """A picture of the plan; groups of one rate share a line."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    curves: dict[tuple[float, ...], list[str]] = {}
    for name, curve in plan.rates.items():
        curves.setdefault(tuple(curve), []).append(name.removesuffix(NO_DECAY))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for i, (curve, names) in enumerate(curves.items()):
        names = list(dict.fromkeys(names))
        shown = len(curves) <= CURVES or i in (0, len(curves) - 1)
        label = (names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more") if shown else None
        colour = colormaps["viridis"](0.9 * i / max(1, len(curves) - 1))
        axes.plot(plan.epochs, curve, color=colour, label=label, drawstyle="steps-post")
    positive = [rate for curve in curves for rate in curve if rate > 0]
    if positive and max(positive) > 50 * min(max(curve) for curve in curves):
        axes.set_yscale(
            "log", nonpositive="mask"
        )  # far apart: on a linear scale the lowest groups would lie on the axis
    axes.set(xlabel="epoch", ylabel="learning rate", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title=None if len(curves) <= CURVES else f"{len(curves)} rates, stem to head")
    return figure
