"""Figures of a result: confusion matrix, accuracy by class, precision and recall, calibration."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from project.errors import UserError
from project.extras.look.drawing import COLOURS, SMALL, numbers, shorten, style

NAMED = 30  # classes whose names and numbers a confusion matrix can show
DRAWN = 10  # precision-recall curves


def confusion(matrix: Tensor, class_names: Sequence[str]) -> Figure:
    """A confusion matrix; the colour is the share of the row, so that small classes show as well (advice A25).

    Args:
        matrix: (K, K) counts: rows true, columns predicted.
        class_names: K names; with up to 30 they and the numbers are written.
    """
    counts = numbers(matrix).astype(np.int64)
    classes = len(class_names)
    if counts.shape != (classes, classes) or not classes:
        raise UserError(
            f"confusion: a matrix of {classes} x {classes} for {classes} class names, not {tuple(counts.shape)}"
        )
    rows = counts.sum(1, keepdims=True)
    share = counts / np.maximum(rows, 1)
    named = classes <= NAMED
    letters = min(24, max(len(str(name)) for name in class_names))
    side, margin = (max(1.4, 0.42 * classes), 0.6 + 0.085 * letters) if named else (6.0, 0.8)
    figure = Figure(
        figsize=(max(2.8, side + margin + (0.1 if named else 1.0)), side + margin + 0.3), layout="constrained"
    )
    axes = figure.subplots()
    # Of many classes each takes a few of the mistakes: the root shows small shares too.
    scale = PowerNorm(1.0 if named else 0.5, 0, 1)
    picture = axes.imshow(share, cmap="Blues", norm=scale, interpolation="nearest" if classes < 400 else "antialiased")
    total = int(counts.sum())
    axes.set_title(f"{np.trace(counts):,} of {total:,} right" if total else "no images", fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    if not named:
        bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label("share of the true class", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
        return figure
    names = [shorten(name) for name in class_names]
    slanted = 90 if max(map(len, names)) > 4 else 0
    axes.set_xticks(range(classes), names, rotation=slanted, fontsize=8)
    axes.set_yticks(range(classes), names, fontsize=8)
    points = min(8, 40 / max(1, len(str(counts.max()))))  # 0.42 inches are 30 points
    for row, column in np.ndindex(counts.shape):
        count = counts[row, column]
        colour = "white" if share[row, column] > 0.5 else "#333333" if count else "#bbbbbb"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=points, color=colour)
    return figure


def per_class(accuracy: Tensor, counts: Tensor, class_names: Sequence[str], limit: int = 30) -> Figure:
    """Accuracy of each class as bars, the worst on top.

    Args:
        accuracy: (K,) in [0, 1]; nan where there is no image.
        counts: (K,) images of each class.
        class_names: K names.
        limit: At most so many classes, the worst.
    """
    accuracy, counts = numbers(accuracy).astype(float), numbers(counts).astype(int)
    if not len(accuracy) == len(counts) == len(class_names):
        raise UserError(
            f"per_class: {len(accuracy)} accuracies, {len(counts)} counts, {len(class_names)} names; one each, please"
        )
    known = np.flatnonzero(np.isfinite(accuracy))
    order = known[np.argsort(accuracy[known], kind="stable")][:limit]
    figure = Figure(figsize=(6.5, max(1.6, 0.2 * len(order) + 0.9)), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(order))
    axes.barh(place, accuracy[order], 0.75, color=COLOURS[4])
    for y, i in zip(place, order, strict=True):
        axes.text(0.01, y, f"{accuracy[i]:.1%} of {counts[i]:,}", va="center", fontsize=SMALL)
    axes.set_yticks(place, [shorten(class_names[i], 32) for i in order], fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(order) - 0.4, -0.6), xlabel="accuracy (recall) of the class")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    every = "1 class" if len(order) == 1 else f"{len(order)} classes"
    title = f"the worst {len(order)} of {len(accuracy)} classes" if len(order) < len(known) else every
    without = len(accuracy) - len(known)
    axes.set_title(title + (f"; {without} without an image" if without else ""), fontsize=9)
    return figure


def precision_recall(probabilities: Tensor, labels: Tensor, class_names: Sequence[str]) -> Figure:
    """One curve for each class against all others; beyond ten classes the ten worst and the mean over all.

    The area is the average precision, sum over thresholds of (R_n - R_n-1) P_n, as in scikit-learn.

    Args:
        probabilities: (N, K), or any scores that grow with them.
        labels: int64 (N,).
        class_names: K names.
    """
    probabilities, labels = _finite(probabilities, labels, class_names)
    present = sorted(set(labels.tolist()))
    found = {k: recall_precision(probabilities[:, k], labels == k) for k in present}
    area = {k: float((np.diff(recall, prepend=0) * precision).sum()) for k, (recall, precision) in found.items()}
    drawn = sorted(present, key=area.__getitem__)[:DRAWN]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, k in enumerate(drawn):
        recall, precision = (np.concatenate([values[:1], values]) for values in found[k])
        recall[0] = 0
        axes.plot(
            recall, precision, drawstyle="steps-pre", label=f"{area[k]:.3f}  {shorten(class_names[k])}", **style(i)
        )
    if len(present) > DRAWN:
        grid = np.linspace(0, 1, 101)
        mean = np.mean([_at_recall(grid, *found[k]) for k in present], axis=0)
        axes.plot(
            grid,
            mean,
            color="#555555",
            linewidth=3,
            alpha=0.6,
            label=f"{np.mean(list(area.values())):.3f}  mean of all",
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
    worst = f", the worst {len(drawn)} drawn" if len(present) > DRAWN else ""
    mean_area = f"mean average precision {np.mean(list(area.values())):.3f}" if area else "no images"
    axes.set_title(f"{mean_area} of {len(present)} classes{worst}", fontsize=9)
    axes.grid(alpha=0.3)
    if area:
        axes.legend(
            fontsize=SMALL, title="average precision", title_fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.01, 1)
        )
    return figure


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Figure:
    """Confidence against accuracy, counts below, the calibration error in the title (Guo et al. 2017, arXiv:1706.04599).

    Bars below the diagonal are overconfident: of the images given 0.9, fewer than 90 % are right.

    Args:
        probabilities: (N, K).
        labels: int64 (N,).
        bins: Of equal width.
    """
    probabilities, labels = _finite(probabilities, labels)
    count, confidence, accuracy = confidence_bins(probabilities, labels, bins)
    middle = (np.arange(bins) + 0.5) / bins
    full = count > 0
    figure = Figure(figsize=(4.6, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(middle, np.where(full, accuracy, 0), 0.92 / bins, color=COLOURS[4], label="accuracy")
    upper.plot(confidence[full], accuracy[full], "o", markersize=3.5, color=COLOURS[0], label="at its mean confidence")
    upper.plot([0, 1], [0, 1], "--", color="#555555", linewidth=1, label="well calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    error = calibration_error(probabilities, labels, bins)
    upper.set_title(f"calibration error {error:.4f} ({len(labels):,} images, {bins} bins)", fontsize=9)
    upper.legend(fontsize=SMALL, loc="upper left")
    lower.bar(middle, count, 0.92 / bins, color="#777777")
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean over the images of |accuracy - confidence| of their bin (Guo et al. 2017, equation 3).

    Args:
        probabilities: (N, K).
        labels: int64 (N,).
        bins: Of equal width; each holds its upper edge.

    Returns:
        0 to 1; nan without images.
    """
    count, confidence, accuracy = confidence_bins(probabilities, labels, bins)
    full = count > 0
    total = count.sum()
    return float((count * np.abs(accuracy - confidence))[full].sum() / total) if total else float("nan")


def confidence_bins(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, mean confidence and accuracy of each bin, (bins,) each; nan where a bin is empty."""
    if bins < 1:
        raise UserError(f"bins must be 1 or more, not {bins}")
    confidence, predicted = torch.as_tensor(probabilities).detach().cpu().double().max(1)
    right = (predicted == torch.as_tensor(labels).cpu()).double()
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    place = torch.bucketize(confidence, inner)  # the m-th bin is (m / bins, (m + 1) / bins]
    count = torch.bincount(place, minlength=bins)
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, place, values) for values in (confidence, right)]
    mean_confidence, accuracy = (torch.where(count > 0, total / count, torch.nan).numpy() for total in sums)
    return count.numpy(), mean_confidence, accuracy


def recall_precision(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at every threshold, from the highest score down; (thresholds,) each, recall ends at 1."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(positive[order])
    last = np.append(
        np.flatnonzero(np.diff(scores)), len(scores) - 1
    )  # of equal scores: they pass a threshold together
    return hits[last] / hits[-1], hits[last] / (last + 1)


def _at_recall(grid: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Precision at given recalls: of the first threshold that reaches each."""
    return precision[np.searchsorted(recall, grid).clip(max=len(recall) - 1)]


def _finite(
    probabilities: Tensor, labels: Tensor, class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As numpy, without the images whose probabilities are not finite; Raises UserError where the shapes do not match."""
    scores, labels = numbers(probabilities), numbers(labels).astype(np.int64)
    classes = scores.shape[1] if scores.ndim == 2 else 0
    if (
        scores.ndim != 2
        or labels.shape != scores.shape[:1]
        or (class_names is not None and len(class_names) != classes)
    ):
        names = "" if class_names is None else f" and {len(class_names)} class names"
        raise UserError(f"probabilities (N, K) and labels (N,) do not match: {scores.shape}, {labels.shape}{names}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"labels must be 0 to {classes - 1}, not {labels.min()} to {labels.max()}")
    keep = np.isfinite(scores).all(1)
    return scores[keep], labels[keep]
