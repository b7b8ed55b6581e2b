"""All figures, for notebooks, TensorBoard and reports: plain tensors in, a matplotlib figure out.

They make `matplotlib.figure.Figure` directly: no display, no state of pyplot, nothing to close. `pixels` turns one into
an image. Those made of small pictures are in project.extras.look.sheets.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.calibration import CalibrationDisplay, calibration_curve
from sklearn.metrics import ConfusionMatrixDisplay, average_precision_score, precision_recall_curve
from torch import Tensor

from project.extras.look.sheets import SMALL, feature_maps, filters, image_grid, mistakes, shorten  # noqa: F401
from project.extras.look.watch import LayerSpread

# Colours that the colour-blind can tell apart (Okabe & Ito 2008, without the yellow, which white paper swallows).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
NAMED = 40  # layers or classes, at most, whose names are written
CELLS = 30  # classes, at most, whose numbers a confusion matrix shows
DRAWN = 10  # precision-recall curves, at most


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as uint8 (H, W, 3), as TensorBoard's `add_image` takes it with dataformats="HWC"."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():  # of letters that the font lacks; they are boxes (docs/look.md)
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def confusion(matrix: Tensor, class_names: Sequence[str]) -> Figure:
    """A confusion matrix; the colour is the share of the row, so that small classes show as well (advice A25).

    Args:
        matrix: (K, K) counts: rows true, columns predicted.
        class_names: K names; with up to 30 they and the counts are written.
    """
    counts, classes = _numpy(matrix).astype(int), len(class_names)
    share = counts / counts.sum(1, keepdims=True).clip(1)
    named = classes <= CELLS
    side = max(2.8, 0.42 * classes + 1.5) if named else 6.5
    figure, axes = _plot(side, side)
    # Of many classes each takes a few of the mistakes: the root shows small shares too.
    style = {"norm": PowerNorm(1.0 if named else 0.5, 0, 1), "interpolation": "antialiased"}
    display = ConfusionMatrixDisplay(share, display_labels=[shorten(name) for name in class_names])
    display.plot(include_values=named, cmap="Blues", xticks_rotation=90, ax=axes, colorbar=not named, im_kw=style)
    if named:
        for text, count in zip(display.text_.flat, counts.flat, strict=True):
            text.set(text=count, fontsize=8)
    else:
        axes.set(xticks=[], yticks=[])
    axes.set(title=f"{counts.trace():,} of {counts.sum():,} right", xlabel="predicted", ylabel="true")
    axes.grid(False)
    return figure


def per_class(matrix: Tensor, class_names: Sequence[str]) -> Figure:
    """Accuracy of each class as bars, the worst on top; of the worst 40, where there are more.

    Args:
        matrix: (K, K) counts: rows true, columns predicted.
        class_names: K names.
    """
    counts = _numpy(matrix).sum(1)
    accuracy = _numpy(matrix).diagonal() / counts.clip(1)
    order = [i for i in accuracy.argsort(kind="stable") if counts[i]][:NAMED]
    figure, axes = _plot(6.5, 0.2 * len(order) + 0.9)
    bars = axes.barh(range(len(order)), accuracy[order], color=COLOURS[4])
    axes.bar_label(bars, [f"{accuracy[i]:.1%} of {counts[i]:,.0f}" for i in order], fontsize=SMALL, padding=2)
    axes.set_yticks(range(len(order)), [shorten(class_names[i]) for i in order], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.2), xlabel="accuracy (recall) of the class", title=f"{len(order)} of {len(counts)} classes")
    return figure


def precision_recall(probabilities: Tensor, labels: Tensor, class_names: Sequence[str]) -> Figure:
    """One curve for each class against all others, of the ten classes with the lowest average precision.

    Args:
        probabilities: (N, K), or any scores that grow with them.
        labels: int64 (N,).
        class_names: K names.
    """
    scores, labels = _numpy(probabilities), _numpy(labels).astype(int)
    area = {k: average_precision_score(labels == k, scores[:, k]) for k in np.unique(labels)}
    worst = sorted(area, key=area.__getitem__)[:DRAWN]
    figure, axes = _plot(7.5, 4.2)
    for k in worst:
        precision, recall, _ = precision_recall_curve(labels == k, scores[:, k])
        axes.step(recall, precision, where="post", label=f"{area[k]:.3f}  {shorten(class_names[k])}")
    mean = f"mean average precision {np.mean(list(area.values())):.3f}"
    axes.set(xlabel="recall", ylabel="precision", title=f"{mean}; the worst {len(worst)} of {len(area)} classes")
    _legend(axes)
    return figure


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Figure:
    """Confidence against accuracy, counts below, the calibration error in the title (Guo et al. 2017,
    arXiv:1706.04599).

    Points below the diagonal are overconfident: of the images given 0.9, fewer than 90 % are right.

    Args:
        probabilities: (N, K).
        labels: int64 (N,).
        bins: Of equal width.
    """
    confidence, mean, accuracy = _confidence(probabilities, labels, bins)
    figure = Figure(figsize=(4.6, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    CalibrationDisplay(accuracy, mean, confidence).plot(ax=upper, name="model", color=COLOURS[0])
    error = calibration_error(probabilities, labels, bins)
    upper.set(xlabel="", ylabel="accuracy", title=f"calibration error {error:.4f} ({len(confidence):,} images)")
    lower.hist(confidence, bins, (0, 1), color="#777777")
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    return figure


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: mean over the images of |accuracy - confidence| of their bin (Guo et al. 2017,
    equation 3).

    Args:
        probabilities: (N, K).
        labels: int64 (N,).
        bins: Of equal width; each holds its upper edge.
    """
    confidence, mean, accuracy = _confidence(probabilities, labels, bins)
    count = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence))  # as calibration_curve bins
    return float(np.average(np.abs(accuracy - mean), weights=count[count > 0]))


def layer_spread(rows: Sequence[LayerSpread]) -> Figure:
    """Mean and standard deviation of each layer's outputs, and the share of dead ReLUs.

    Read from top to bottom: a deviation that shrinks or grows from layer to layer is that of a bad initialisation
    (advice A7).
    """
    figure = Figure(figsize=(9, min(14, 0.19 * len(rows) + 1.6)), layout="constrained")
    panels = {"mean": "mean", "std": "standard deviation", "dead": "share of dead ReLU units"}
    for axes, (key, title) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        values = np.array([getattr(row, key) for row in rows], float)
        axes.plot(values, range(len(rows)), "o-" if key == "std" else "o", markersize=3, color=COLOURS[0])
        if key == "std" and (values > 0).any():
            axes.set_xscale("log", nonpositive="mask")
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
    axes.set(xlim=(-0.05, 1.05), ylim=(len(rows), -1))
    names = [shorten(row.name, 30) for row in rows] if len(rows) <= NAMED else []
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    return figure


def curves(series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> Figure:
    """Lines over one x axis, with gaps where a value is not finite.

    Args:
        series: Name -> points (x, y).
        xlabel: Under the x axis.
        ylabel: Beside the y axis.
    """
    figure, axes = _plot(7, 3.6)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) == 1 else None, label=shorten(name, 30))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no epoch 1.5
    _legend(axes)
    return figure


def class_counts(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Images of each class in each split; of more than 40 classes without their names, sorted by size.

    Args:
        counts: Split -> class -> images.
    """
    names = list(dict.fromkeys(name for classes in counts.values() for name in classes))
    if len(names) > NAMED:
        names.sort(key=lambda name: [classes.get(name, 0) for classes in counts.values()])
    figure, axes = _plot(7, 0.2 * min(NAMED, len(names)) + 1.3)
    for split, classes in counts.items():
        axes.plot([classes.get(name, 0) for name in names], range(len(names)), "o", markersize=4, label=split)
    if len(names) > NAMED:
        axes.set_ylabel(f"{len(names)} classes")
    else:
        axes.set_yticks(range(len(names)), [shorten(name, 28) for name in names], fontsize=8)
    axes.set(xlabel="images", xlim=(0, None), ylim=(len(names), -1))
    _legend(axes)
    return figure


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS))
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(axes: Axes) -> None:
    """Beside the axes, of the first 12 lines."""
    axes.legend(handles=axes.lines[:12], fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.01, 1))


def _numpy(values: Tensor) -> np.ndarray:
    """On any device and of any type, as float64."""
    return values.detach().cpu().double().numpy()


def _confidence(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image's probability of its predicted class, (N,); their mean, and the accuracy, in each bin with images."""
    scores = _numpy(probabilities)
    confidence = scores.max(1)
    accuracy, mean = calibration_curve(scores.argmax(1) == _numpy(labels), confidence, n_bins=bins)
    return confidence, mean, accuracy
