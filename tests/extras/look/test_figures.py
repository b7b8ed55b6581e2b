"""The numbers in the figures against scikit-learn, torchmetrics and loops; every odd input is drawn."""

import matplotlib.pyplot
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, confusion_matrix
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from project.errors import UserError
from project.extras.look import figures, sheets
from project.extras.look.sheets import shorten
from project.extras.look.watch import LayerSpread


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def guesses(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits.softmax(1), labels


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def draw(figure: Figure) -> np.ndarray:
    picture = figures.pixels(figure, 40)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 0
    return picture


def test_a_confusion_matrix_contains_the_numbers_of_scikit_learn() -> None:
    probabilities, labels = guesses(300, 4)
    matrix = torch.tensor(confusion_matrix(labels, probabilities.argmax(1)))
    share = confusion_matrix(labels, probabilities.argmax(1), normalize="true")
    figure = figures.confusion(matrix, ["ant", "bee", "cat", "dog"])
    axes = figure.axes[0]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert {(column, row): f"{share[row, column]:.0%}" for row in range(4) for column in range(4)} == cells
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cat", "dog"]
    assert axes.get_ylabel() == "true" and f"{int(matrix.trace())} of 300 right" in words(figure)


@pytest.mark.parametrize(
    "classes",
    [
        2,
        pytest.param(10, marks=pytest.mark.slow),
        pytest.param(100, marks=pytest.mark.slow),
        pytest.param(1000, marks=pytest.mark.slow),
    ],
)
def test_results_of_any_number_of_classes(classes) -> None:
    probabilities, labels = guesses(200, classes)
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    matrix.index_put_((labels, probabilities.argmax(1)), torch.ones(200, dtype=torch.long), accumulate=True)
    long = [f"a rather long name of species number {i}" for i in range(classes)]
    draw(figures.confusion(matrix, long))
    draw(figures.per_class(matrix, long))
    draw(figures.precision_recall(probabilities, labels, long))
    draw(figures.reliability(probabilities, labels))
    draw(figures.class_counts({"train": dict.fromkeys(long, 3), "val": dict.fromkeys(long[1:], 1)}))


def test_results_of_one_image_and_of_a_class_without_images() -> None:
    probabilities, labels = guesses(1, 3)
    draw(figures.precision_recall(probabilities, labels, names(3)))
    draw(figures.reliability(probabilities, labels))
    draw(figures.confusion(torch.zeros(2, 2), names(2)))
    draw(figures.per_class(torch.tensor([[0, 0], [1, 3]]), names(2)))


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 60), classes=st.integers(2, 6), bins=st.integers(1, 20), seed=st.integers(0, 999))
def test_calibration_error_is_that_of_a_loop(count, classes, bins, seed) -> None:
    probabilities, labels = guesses(count, classes, seed)
    error = 0.0
    for m in range(bins):
        inside = [i for i in range(count) if m / bins < float(probabilities[i].max()) <= (m + 1) / bins]
        if inside:
            right = sum(int(probabilities[i].argmax()) == int(labels[i]) for i in inside) / len(inside)
            sure = sum(float(probabilities[i].max()) for i in inside) / len(inside)
            error += len(inside) / count * abs(right - sure)
    assert figures.calibration_error(probabilities, labels, bins) == pytest.approx(error, abs=1e-6)


def test_calibration_error_is_torchmetrics_and_in_the_title() -> None:
    probabilities, labels = guesses(2000, 7)
    expected = float(multiclass_calibration_error(probabilities, labels, 7, n_bins=15, norm="l1"))
    assert figures.calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-5)
    assert f"calibration error {expected:.4f} (2,000 images)" in words(figures.reliability(probabilities, labels))


def test_a_bin_holds_its_upper_edge_and_the_curve_is_that_of_the_bins() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.6, 0.4], [0.9, 0.1]])
    labels = torch.tensor([0, 0, 1, 1])
    # Two bins of (0.5, 1] and (0, 0.5]: 3 images of confidence 2.5 with 1 right, and 1 of confidence 0.5, right.
    assert figures.calibration_error(probabilities, labels, 2) == pytest.approx((1.5 + 0.5) / 4)
    line = figures.reliability(probabilities, labels, 2).axes[0].lines[-1]
    assert np.allclose(line.get_xydata(), [[0.5, 1], [2.5 / 3, 1 / 3]])


def test_average_precision_is_scikit_learns() -> None:
    probabilities, labels = guesses(500, 5)
    probabilities = (probabilities * 20).round() / 20  # with ties
    figure = figures.precision_recall(probabilities, labels, list("abcde"))
    area = {k: average_precision_score(labels == i, probabilities[:, i]) for i, k in enumerate("abcde")}
    legend = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert legend == {f"{k} (AP = {value:.2f})" for k, value in area.items()}
    assert f"(AP) {np.mean(list(area.values())):.3f}" in figure.axes[0].get_title()


def test_precision_recall_of_many_classes_draws_the_worst_ten() -> None:
    probabilities, labels = guesses(600, 12)
    area = [average_precision_score(labels == k, probabilities[:, k]) for k in range(12)]
    axes = figures.precision_recall(probabilities, labels, names(12)).axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text.split(" (")[0] for text in legend] == [f"class {k}" for k in np.argsort(area)[:10]]
    assert axes.get_title().endswith(f"{np.mean(area):.3f}; the worst 10 of 12 classes")


def test_per_class_shows_the_worst_first_and_leaves_out_those_without_images() -> None:
    matrix = torch.tensor([[9, 1, 0, 0], [4, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 2]])
    axes = figures.per_class(matrix, list("abcd")).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b (5)", "d (4)", "a (10)"]
    assert list(axes.lines[0].get_xdata()) == pytest.approx([0.2, 0.5, 0.9])


@pytest.mark.parametrize(("channels", "kind"), [(1, "uint8"), (3, "float"), (4, "nan"), (3, "constant"), (4, "one")])
def test_grids_of_any_images(channels, kind) -> None:
    images = torch.rand(3, channels, 9, 6)
    images = {"uint8": (images * 255).byte(), "constant": images * 0, "nan": images * torch.nan, "one": images[:1]}.get(
        kind, images
    )
    titles = ["a very long name of a class $x$"] * len(images)
    draw(figures.image_grid(images, titles, 3))
    draw(figures.mistakes(images, titles, titles, torch.arange(len(images)), torch.rand(len(images), 9, 6)))
    draw(figures.mistakes(images, titles, titles, torch.full((len(images),), torch.nan)))


def picture(figure: Figure, i: int = 0, columns: int = 8) -> np.ndarray:
    """The middle of the i-th picture of a sheet in one row, float (3,)."""
    (sheet,) = figure.axes[0].images
    pixels = sheet.get_array()
    side = pixels.shape[0] - (sheets.LINE if figure.axes[0].texts else 0)
    return pixels[side // 2, i * side + side // 2]


def test_pixels_of_a_grid_are_those_of_the_image_and_alpha_lies_on_white() -> None:
    image = torch.zeros(1, 4, 1, 1)
    image[0, 0], image[0, 3] = 1, 0.25  # a quarter of red
    assert np.allclose(picture(figures.image_grid(image)), [1, 0.75, 0.75])
    assert np.allclose(picture(figures.image_grid(torch.full((1, 1, 2, 2), 51, dtype=torch.uint8))), 0.2)
    row = torch.tensor([0.1, 0.5, 0.9])[:, None, None, None].expand(-1, 3, 300, 300)
    assert np.allclose([picture(figures.image_grid(row, list("abc")), i)[0] for i in range(3)], [0.1, 0.5, 0.9])


def test_mistakes_have_their_words_and_their_map_beside_them() -> None:
    images, maps = torch.zeros(2, 1, 4, 4), torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    figure = figures.mistakes(images, list("ab"), list("xy"), torch.tensor([3.0, 1.0]), maps)
    assert words(figure) == ["true a\npredicted x\nloss 3.00", "true b\npredicted y\nloss 1.00"]
    pixels = figure.axes[0].images[0].get_array()
    width = pixels.shape[1] // 2  # of an image with its map
    low, high = (pixels[width // 4, i * width + 3 * width // 4] for i in (0, 1))
    assert np.allclose(low, 0.55 * np.array([0.267, 0.005, 0.329]), atol=0.01)  # viridis begins dark blue
    assert np.allclose(high, 0.55 * np.array([0.993, 0.906, 0.144]), atol=0.01)  # and ends yellow


@pytest.mark.parametrize("shape", [(7, 3, 3, 3), (5, 1, 7, 7), (2, 4, 3, 3), (1, 3, 1, 1)])
def test_filters_in_colour_or_channel_by_channel(shape) -> None:
    weight = torch.randn(shape)
    middle = shape[2] // 2
    first = picture(figures.filters(weight))
    expected = weight[0, :, middle, middle] if shape[1] == 3 else weight[0, :1, middle, middle].expand(3)
    assert np.allclose(first, expected / (2 * weight.abs().max()) + 0.5, atol=1e-5)
    draw(figures.filters(weight * torch.nan))
    figures.pixels(figures.filters(weight * 0))


def test_feature_maps_say_which_channel_is_dead() -> None:
    activation = torch.rand(40, 5, 4)
    activation[3] = 0
    figure = figures.feature_maps(activation, limit=8)
    shown = [f"{channel.min():.2g} to {channel.max():.2g}" for channel in activation[:8]]
    assert words(figure) == shown and shown[3] == "0 to 0"
    draw(figures.feature_maps(torch.full((1, 1, 1), torch.nan)))
    with pytest.raises(UserError, match="feature maps have shape"):
        figures.feature_maps(torch.rand(3, 3))


def test_spread_by_layer() -> None:
    figure = figures.layer_spread([LayerSpread("conv", 0.1, 2.0), LayerSpread("relu", 0.5, 1.0, 0.25)])
    mean, std, dead = (axes.lines[0].get_xdata(orig=False) for axes in figure.axes)
    assert list(mean) == [0.1, 0.5] and list(std) == [2.0, 1.0] and np.isnan(dead[0]) and dead[1] == 0.25
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["conv", "relu"]
    draw(figure)


def test_curves_keep_a_gap_where_a_value_is_not_finite() -> None:
    figure = figures.curves({"a": [(0, 1.0), (1, float("inf")), (2, 2.0)], "b": [(0, 0.0)]}, "epoch", "loss")
    assert list(figure.axes[0].lines[0].get_xdata()) == [0, 1, 2] and figure.axes[0].get_xlabel() == "epoch"
    draw(figure)
    assert figure.axes[0].get_ylim()[1] < 3


def test_class_counts_are_the_dots_and_the_rarest_are_on_top() -> None:
    axes = figures.class_counts({"train": {"a": 7, "b": 5}, "val": {"a": 2}}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[5, 7], [0, 2]]
    many = figures.class_counts({"train": {f"c{i}": i for i in range(41)}}).axes[0]
    assert list(many.lines[0].get_xdata()) == list(range(40)) and many.get_title() == "40 of 41 classes"


@given(text=st.text(alphabet=st.characters(exclude_characters="$\n"), max_size=60), length=st.integers(4, 40))
@settings(max_examples=50)
def test_a_shortened_name_keeps_both_ends(text, length) -> None:
    short = shorten(text, length)
    assert len(short) <= length and (short == text or (short[0] == text[0] and short[-1] == text[-1] and "…" in short))


def test_nothing_is_left_open_in_pyplot() -> None:
    draw(figures.confusion(torch.eye(3), names(3)))
    assert not matplotlib.pyplot.get_fignums()
