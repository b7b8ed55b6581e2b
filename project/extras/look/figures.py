"""All figures in one place, for notebooks, TensorBoard and reports: plain tensors in, a matplotlib figure out.

They make `matplotlib.figure.Figure` directly: no display, no state of pyplot, nothing to close. `pixels` turns one into an image.
"""

from project.extras.look.drawing import pixels
from project.extras.look.figures_images import feature_maps, filters, image_grid, mistakes
from project.extras.look.figures_numbers import class_counts, curves, histograms, layer_spread
from project.extras.look.figures_results import calibration_error, confusion, per_class, precision_recall, reliability

__all__ = [
    "calibration_error",
    "class_counts",
    "confusion",
    "curves",
    "feature_maps",
    "filters",
    "histograms",
    "image_grid",
    "layer_spread",
    "mistakes",
    "per_class",
    "pixels",
    "precision_recall",
    "reliability",
]
