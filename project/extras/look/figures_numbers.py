"""Figures made of numbers by layer, step or class: histograms, spread, curves, class counts."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from project.errors import UserError
from project.extras.look.drawing import COLOURS, LINES, SMALL, numbers, shorten, style
from project.extras.look.watch import LayerSpread

HISTOGRAMS = 24  # at most drawn
LAYERS = 40  # with their names
CURVES = 12  # with a legend
CLASSES = 40  # with their names


def histograms(values: Mapping[str, Tensor], title: str) -> Figure:
    """One small histogram for each tensor, such as weights or gradients by layer.

    Args:
        values: Name -> tensor of any shape. Of more than 24, evenly chosen ones, the first and the last among them.
        title: Of the figure.
    """
    names = list(values)
    if len(names) > HISTOGRAMS:
        names = [names[round(i * (len(names) - 1) / (HISTOGRAMS - 1))] for i in range(HISTOGRAMS)]
        title = f"{title} ({HISTOGRAMS} of {len(values)})"
    columns = max(1, min(4, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(max(4, 2.3 * columns), 1.35 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[len(names) :]:
        axes.axis("off")
    for name, axes in zip(names, places, strict=False):
        flat = numbers(values[name]).astype(float).reshape(-1)
        finite = flat[np.isfinite(flat)]
        missing = len(flat) - len(finite)
        if len(finite):
            low, high = float(finite.min()), float(finite.max())
            room = max(high - low, abs(low) * 1e-3, 1e-12) * 0.02
            counts, edges = np.histogram(finite, bins=30, range=(low - room, high + room))
            axes.stairs(counts, edges, fill=True, color=COLOURS[0])
            axes.set_xticks([low, high] if high > low else [low])
            axes.set_xticklabels([f"{low:.2g}", f"{high:.2g}"] if high > low else [f"{low:.2g}"], fontsize=6.5)
        else:
            axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(shorten(name, 30) + (f"\n{missing} not finite" if missing else ""), fontsize=SMALL)
    return figure


def layer_spread(rows: Sequence[LayerSpread]) -> Figure:
    """Mean with standard deviation of each layer's outputs, the deviation on a logarithmic scale, and the share of dead ReLUs.

    Read from top to bottom: a deviation that shrinks or grows from layer to layer is that of a bad initialisation (advice A7).
    """
    if not rows:
        raise UserError("layer_spread: there is no layer to draw")
    place = np.arange(len(rows))
    mean, std = (np.array([getattr(row, key) for row in rows], float) for key in ("mean", "std"))
    dead = [(i, row.dead) for i, row in enumerate(rows) if row.dead is not None]
    panels = 3 if dead else 2
    figure = Figure(figsize=(3 + 2.4 * panels, min(14, max(2.4, 0.19 * len(rows) + 1.2))), layout="constrained")
    plots = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    plots[0].errorbar(mean, place, xerr=std, fmt="o", markersize=3, color=COLOURS[0], ecolor=COLOURS[4], elinewidth=1.5)
    plots[0].set_title("mean ± standard deviation", fontsize=9)
    plots[1].plot(std, place, "o-", markersize=3, color=COLOURS[1])
    plots[1].set_title("standard deviation", fontsize=9)
    if (std > 0).any():
        plots[1].set_xscale("log", nonpositive="mask")
        low, high = std[std > 0].min(), std[std > 0].max()
        plots[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,), numticks=5))
        plots[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        plots[1].xaxis.set_minor_formatter(NullFormatter())
    if dead:
        plots[2].barh([i for i, _ in dead], [share for _, share in dead], color=COLOURS[0])
        plots[2].set(xlim=(0, 1))
        plots[2].xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        plots[2].set_title(
            "dead units of ReLUs" if any(share for _, share in dead) else "dead units of ReLUs: none", fontsize=9
        )
    for axes in plots:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=SMALL)
        axes.locator_params(axis="x", nbins=4) if axes.get_xscale() == "linear" else None
    plots[0].set_ylim(len(rows) - 0.4, -0.6)
    if len(rows) <= LAYERS:
        plots[0].set_yticks(place, [shorten(row.name, 30) for row in rows], fontsize=SMALL)
    else:
        plots[0].set_ylabel(f"{len(rows)} layers, the first on top")
    return figure


def curves(series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> Figure:
    """Lines over one x axis, with gaps where a value is not finite.

    Args:
        series: Name -> points (x, y). Names are told up to 12.
        xlabel: Under the x axis.
        ylabel: Beside the y axis.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    lost = 0
    for i, (name, points) in enumerate(series.items()):
        x = [float(point[0]) for point in points]
        y = [float(point[1]) if math.isfinite(point[1]) else math.nan for point in points]
        lost += sum(map(math.isnan, y))
        axes.plot(x, y, marker="o" if len(points) < 2 else None, label=shorten(name, 30), **style(i))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if all(float(point[0]).is_integer() for points in series.values() for point in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no epoch 1.5
    if lost:
        axes.set_title(f"{lost} values are not finite: gaps", fontsize=9)
    axes.grid(alpha=0.3)
    if 0 < len(series) <= CURVES:
        outside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)} if len(series) > 4 else {}
        axes.legend(fontsize=SMALL, **outside)
    return figure


def class_counts(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Images of each class in each split.

    Args:
        counts: Split -> class -> images. Up to 40 classes are bars with names; of more, each split is a line, sorted by size.
    """
    names = list(dict.fromkeys(name for classes in counts.values() for name in classes))
    if not names:
        raise UserError("class_counts: there is no class to draw")
    if len(names) > CLASSES:
        return _sorted_counts(counts, names)
    height = max(2.2, 0.13 * len(names) * (len(counts) + 0.7) + 0.9)
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    bar = 0.85 / len(counts)
    highest = max(max(classes.values(), default=0) for classes in counts.values())
    for i, (split, classes) in enumerate(counts.items()):
        y = np.arange(len(names)) - 0.425 + (i + 0.5) * bar
        values = [classes.get(name, 0) for name in names]
        axes.barh(y, values, bar, color=COLOURS[i % len(COLOURS)], label=split)
        for place, value in zip(y, values, strict=True):
            axes.text(value + highest * 0.008, place, f"{value:,}", va="center", fontsize=min(SMALL, 6.5))
    axes.set_yticks(range(len(names)), [shorten(name, 28) for name in names], fontsize=8)
    axes.set(xlabel="images", ylim=(len(names) - 0.5, -0.5), xlim=(0, max(1, highest) * 1.1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _sorted_counts(counts: Mapping[str, Mapping[str, int]], names: list[str]) -> Figure:
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    highest, lowest = 0, math.inf
    for i, (split, classes) in enumerate(counts.items()):
        values = sorted((classes.get(name, 0) for name in names), reverse=True)
        highest, lowest = max(highest, values[0]), min(lowest, values[-1])
        label = f"{split}: {values[-1]:,} to {values[0]:,}"
        axes.plot(
            range(1, len(values) + 1), values, label=label, color=COLOURS[i % len(COLOURS)], linestyle=LINES[i % 3]
        )
    if lowest > 0 and highest > 20 * lowest:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, max(1, highest) * 1.08)
    axes.set(xlabel=f"{len(names)} classes, each split sorted by size", ylabel="images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
