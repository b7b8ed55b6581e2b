"""All figures, for notebooks, TensorBoard and reports: plain tensors in, a matplotlib figure out.

They make `matplotlib.figure.Figure` directly: no display, no state of pyplot, nothing to close. `pixels` turns one into
an image. Those made of small pictures are in project.extras.look.sheets.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, average_precision_score
from torch import Tensor

from project.extras.look.sheets import SMALL, feature_maps, filters, image_grid, mistakes, shorten  # noqa: F401
from project.extras.look.watch import LayerSpread


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as uint8 (H, W, 3), as TensorBoard's `add_image` takes it with dataformats="HWC"."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def confusion(matrix: Tensor, class_names: Sequence[str]) -> Figure:
    """A confusion matrix in shares of the row, so that small classes show as well (advice A25).

    Args:
        matrix: (K, K) counts: rows true, columns predicted.
        class_names: K names; with up to 30 they and the shares are written.
    """
    counts = _numpy(matrix)
    share = counts / counts.sum(1, keepdims=True).clip(1)
    named = len(class_names) <= 30
    side = min(14, 0.42 * len(class_names) + 2)
    figure, axes = _plot(side, side)
    # Of many classes each takes a few of the mistakes: the root shows small shares too.
    display = ConfusionMatrixDisplay(share, display_labels=[shorten(name) for name in class_names])
    display.plot(
        ax=axes, cmap="Blues", im_kw={"norm": PowerNorm(0.5, 0, 1), "interpolation": "antialiased"}, colorbar=not named,
        include_values=named, values_format=".0%", text_kw={"fontsize": SMALL}, xticks_rotation=90,
    )  # fmt: skip
    if not named:
        axes.set(xticks=[], yticks=[])
    axes.set(title=f"{counts.trace():,.0f} of {counts.sum():,.0f} right", xlabel="predicted", ylabel="true")
    return figure


def per_class(matrix: Tensor, class_names: Sequence[str]) -> Figure:
    """Accuracy of each class, the worst on top; arguments as for `confusion`."""
    counts, right = _numpy(matrix).sum(1), _numpy(matrix).diagonal()
    values = {f"{name} ({n:,.0f})": r / n for name, n, r in zip(class_names, counts, right, strict=True) if n}
    return _dots({"accuracy": values}, "accuracy (recall) of the class, with its images")


def precision_recall(probabilities: Tensor, labels: Tensor, class_names: Sequence[str]) -> Figure:
    """One curve for each class against all others, of the ten classes with the lowest average precision.

    Args:
        probabilities: (N, K), or any scores that grow with them.
        labels: int64 (N,).
        class_names: K names.
    """
    scores, labels = _numpy(probabilities), _numpy(labels).astype(int)
    area = {k: average_precision_score(labels == k, scores[:, k]) for k in np.unique(labels)}
    worst = sorted(area, key=area.__getitem__)[:10]
    figure, axes = _plot(6.5, 4.6)
    for k in worst:
        PrecisionRecallDisplay.from_predictions(labels == k, scores[:, k], ax=axes, name=shorten(class_names[k]))
    title = (
        f"mean average precision (AP) {np.mean([*area.values()]):.3f}; the worst {len(worst)} of {len(area)} classes"
    )
    axes.set(xlabel="recall", ylabel="precision", title=title)
    _finish(axes)
    return figure


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Figure:
    """Accuracy and share of the images by confidence (Guo et al. 2017, arXiv:1706.04599).

    Points below the diagonal are overconfident: of the images given 0.9, fewer than 90 % are right.

    Args:
        probabilities: (N, K).
        labels: int64 (N,).
        bins: Of equal width; each holds its upper edge.
    """
    confidence, right = _confidence(probabilities, labels)
    figure, axes = _plot(6.5, 4.6)
    share = np.full(len(confidence), 1 / len(confidence))
    axes.hist(confidence, bins, range=(0, 1), weights=share, color="#cccccc", label="share of the images")
    CalibrationDisplay.from_predictions(right, confidence, n_bins=bins, name="model", ax=axes)
    title = f"calibration error {calibration_error(probabilities, labels, bins):.4f} ({len(confidence):,} images)"
    axes.set(xlabel="confidence (probability of the predicted class)", ylabel="accuracy", title=title)
    _finish(axes)
    return figure


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: mean over the images of |accuracy - confidence| of their bin (Guo et al.
    2017, equation 3); arguments as for `reliability`.
    """
    confidence, right = _confidence(probabilities, labels)
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    return float(np.abs(np.bincount(place, right - confidence)).sum() / len(right))


def layer_spread(rows: Sequence[LayerSpread]) -> Figure:
    """Mean and standard deviation of each layer's outputs, and the share of dead ReLUs.

    Read from top to bottom: a deviation that shrinks or grows from layer to layer is that of a bad initialisation
    (advice A7).
    """
    figure = Figure(figsize=(9, 0.19 * len(rows) + 1.6), layout="constrained")
    panels = {"mean": "mean", "std": "standard deviation", "dead": "share of dead ReLU units"}
    for axes, (key, title) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        axes.plot([getattr(row, key) for row in rows], range(len(rows)), "o", markersize=3)
        axes.set(title=title)
        axes.grid(alpha=0.3)
    first, second, third = figure.axes
    second.set_xscale("log", base=2)
    third.set(xlim=(-0.05, 1.05), ylim=(len(rows), -1))
    first.set_yticks(range(len(rows)), [shorten(row.name, 30) for row in rows], fontsize=SMALL)
    return figure


def curves(series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> Figure:
    """Lines over one x axis, name -> points (x, y), with gaps where a value is not finite."""
    figure, axes = _plot(7, 3.6)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=shorten(name, 30))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no epoch 1.5
    _finish(axes)
    return figure


def class_counts(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Images of each class in each split (split -> class -> images), the rarest class on top."""
    return _dots(counts, "images")


def _dots(series: Mapping[str, Mapping[str, float]], xlabel: str) -> Figure:
    """A row of dots for each of the 40 names with the lowest values: series -> name -> value."""
    total = Counter()
    for values in series.values():
        total.update(values)
    lowest = sorted(total, key=total.__getitem__)[:40]
    figure, axes = _plot(7, 0.2 * len(lowest) + 1.4)
    for label, values in series.items():
        axes.plot([values.get(name, 0) for name in lowest], range(len(lowest)), "o", markersize=4, label=label)
    axes.set_yticks(range(len(lowest)), [shorten(name, 30) for name in lowest], fontsize=SMALL)
    axes.axvline(0, color="black", linewidth=1)
    axes.set(xlabel=xlabel, title=f"{len(lowest)} of {len(total)} classes", ylim=(len(lowest), -1))
    _finish(axes)
    return figure


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(style.library["tableau-colorblind10"]["axes.prop_cycle"])
    return figure, axes


def _finish(axes: Axes) -> None:
    """A grid, and a legend beside it."""
    axes.grid(alpha=0.3)
    axes.legend(fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.01, 1))


def _numpy(values: Tensor) -> np.ndarray:
    """On any device and of any type, as float64."""
    return values.detach().cpu().double().numpy()


def _confidence(probabilities: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each image's probability of its predicted class, (N,), and whether that class is right."""
    scores = _numpy(probabilities)
    return scores.max(1), scores.argmax(1) == _numpy(labels)
