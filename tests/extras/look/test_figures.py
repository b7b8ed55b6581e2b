"""The numbers in the figures against scikit-learn, torchmetrics and loops; every odd input drawn, or refused in words."""

import subprocess
import sys

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
from project.extras.look import figures
from project.extras.look.drawing import shorten
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
    figure = figures.confusion(matrix, ["ant", "bee", "cat", "dog"])
    axes = figure.axes[0]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert {(column, row): str(int(matrix[row, column])) for row in range(4) for column in range(4)} == cells
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cat", "dog"]
    assert axes.get_ylabel() == "true" and f"{int(matrix.trace())} of 300 right" in words(figure)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_results_of_any_number_of_classes(classes) -> None:
    probabilities, labels = guesses(200, classes)
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    matrix.index_put_((labels, probabilities.argmax(1)), torch.ones(200, dtype=torch.long), accumulate=True)
    long = [f"a rather long name of species number {i}" for i in range(classes)]
    draw(figures.confusion(matrix, long))
    draw(figures.per_class(matrix.diag() / matrix.sum(1), matrix.sum(1), long))
    draw(figures.precision_recall(probabilities, labels, long))
    draw(figures.reliability(probabilities, labels))
    draw(figures.class_counts({"train": dict.fromkeys(long, 3), "val": dict.fromkeys(long[1:], 1)}))


def test_results_of_one_image_and_of_none() -> None:
    probabilities, labels = guesses(1, 3)
    draw(figures.precision_recall(probabilities, labels, names(3)))
    draw(figures.reliability(probabilities, labels))
    nothing = torch.full((2, 3), torch.nan), torch.tensor([0, 1])
    assert any("no images" in text for text in words(figures.precision_recall(*nothing, names(3))))
    draw(figures.reliability(*nothing))
    draw(figures.confusion(torch.zeros(2, 2), names(2)))
    draw(figures.per_class(torch.full((2,), torch.nan), torch.zeros(2), names(2)))


@settings(max_examples=40, deadline=None)
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
    assert f"calibration error {expected:.4f} (2,000 images, 15 bins)" in words(
        figures.reliability(probabilities, labels)
    )


def test_average_precision_is_scikit_learns() -> None:
    probabilities, labels = guesses(500, 5)
    probabilities = (probabilities * 20).round() / 20  # with ties
    legend = figures.precision_recall(probabilities, labels, list("abcde")).axes[0].get_legend().get_texts()
    found = {text.get_text().split()[1]: float(text.get_text().split()[0]) for text in legend}
    for k, name in enumerate("abcde"):
        assert found[name] == pytest.approx(average_precision_score(labels == k, probabilities[:, k]), abs=6e-4)


def test_precision_recall_of_many_classes_draws_the_worst_ten_and_the_mean() -> None:
    probabilities, labels = guesses(600, 12)
    area = [average_precision_score(labels == k, probabilities[:, k]) for k in range(12)]
    legend = [
        text.get_text()
        for text in figures.precision_recall(probabilities, labels, names(12)).axes[0].get_legend().get_texts()
    ]
    assert len(legend) == 11 and legend[-1].endswith("mean of all")
    assert {text.split("  ")[1] for text in legend[:-1]} == {f"class {k}" for k in np.argsort(area)[:10]}
    assert float(legend[-1].split()[0]) == pytest.approx(np.mean(area), abs=6e-4)


def test_per_class_shows_the_worst_first_and_counts_those_without_images() -> None:
    figure = figures.per_class(
        torch.tensor([0.9, 0.2, torch.nan, 0.5]), torch.tensor([10, 5, 0, 4]), list("abcd"), limit=2
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "d"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.2, 0.5])
    assert "the worst 2 of 4 classes; 1 without an image" in words(figure) and "20.0% of 5" in words(figure)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["uint8", "float", "constant", "nan", "one"])
def test_grids_of_any_images(channels, kind) -> None:
    images = torch.rand(5, channels, 9, 6)
    images = {"uint8": (images * 255).byte(), "constant": images * 0, "nan": images * torch.nan, "one": images[:1]}.get(
        kind, images
    )
    titles = ["a very long name of a class $x$"] * len(images)
    draw(figures.image_grid(images, titles, 3))
    draw(figures.mistakes(images, titles, titles, torch.arange(len(images)), torch.rand(len(images), 9, 6)))
    draw(figures.mistakes(images, titles, titles, [float("nan")] * len(images)))


def test_pixels_of_a_grid_are_those_of_the_image_and_alpha_lies_on_white() -> None:
    image = torch.zeros(1, 4, 1, 1)
    image[0, 0], image[0, 3] = 1, 0.25  # a quarter of red
    (picture,) = figures.image_grid(image).axes[0].images
    assert np.allclose(picture.get_array()[0, 0], [1, 0.75, 0.75])
    (picture,) = figures.image_grid(torch.full((1, 1, 2, 2), 51, dtype=torch.uint8)).axes[0].images
    assert np.allclose(picture.get_array(), 0.2)


def test_the_worst_mistake_comes_first() -> None:
    figure = figures.mistakes(torch.rand(3, 1, 4, 4), list("abc"), list("xyz"), [0.5, 3.0, 1.0])
    assert [text for text in words(figure) if text.startswith("true")] == [
        "true b\npredicted y\nloss 3.00",
        "true c\npredicted z\nloss 1.00",
        "true a\npredicted x\nloss 0.50",
    ]


@pytest.mark.parametrize(
    ("shape", "pictures"), [((80, 3, 3, 3), 64), ((5, 1, 7, 7), 5), ((6, 4, 3, 3), 24), ((1, 3, 1, 1), 1)]
)
def test_filters_in_colour_or_channel_by_channel(shape, pictures) -> None:
    weight = torch.randn(shape)
    figure = figures.filters(weight)
    assert len(figure.axes[0].images) == pictures
    top = weight.abs().max()
    first = figure.axes[0].images[0].get_array()[0, 0]
    expected = weight[0, :, 0, 0] if shape[1] == 3 else weight[0, :1, 0, 0].expand(3)
    assert np.allclose(first, expected / (2 * top) + 0.5, atol=1e-5)
    draw(figures.filters(weight * 0))
    draw(figures.filters(weight * torch.nan))


def test_feature_maps_say_which_channel_is_dead() -> None:
    activation = torch.rand(40, 5, 4)
    activation[3] = 0
    figure = figures.feature_maps(activation, limit=8)
    assert len(figure.axes[0].images) == 8 and words(figure).count("all 0") == 1
    assert any(text.startswith("the first 8 of 40 channels, 5x4") for text in words(figure))
    draw(figures.feature_maps(torch.full((1, 1, 1), torch.nan)))


def test_histograms_count_every_value_and_say_what_is_not_finite() -> None:
    values = {
        "a": torch.randn(500),
        "b": torch.tensor([1.0, torch.nan, torch.inf]),
        "c": torch.zeros(3),
        "d": torch.empty(0),
    }
    figure = figures.histograms(values, "weights")
    drawn = list(figure.axes[0].patches)
    assert sum(drawn[0].get_data().values) == 500 and "b\n2 not finite" in words(figure)
    draw(figure)
    many = figures.histograms({f"layer {i}": torch.randn(3) for i in range(100)}, "weights")
    assert {"weights (24 of 100)", "layer 0", "layer 99"} <= set(words(many))
    draw(figures.histograms({}, "nothing"))


def test_spread_by_layer() -> None:
    rows = [LayerSpread("conv", 0.1, 2.0), LayerSpread("relu", 0.5, 1.0, 0.25)]
    figure = figures.layer_spread(rows)
    assert len(figure.axes) == 3 and figure.axes[2].patches[0].get_width() == 0.25
    assert list(figure.axes[1].lines[0].get_xdata()) == [2.0, 1.0]
    draw(figure)
    draw(figures.layer_spread([LayerSpread(f"layer {i}", float("nan"), 0.0) for i in range(200)]))
    assert len(figures.layer_spread(rows[:1]).axes) == 2


def test_curves_keep_a_gap_where_a_value_is_not_finite() -> None:
    figure = figures.curves({"a": [(0, 1.0), (1, float("inf")), (2, 2.0)], "b": [(0, 0.0)]}, "epoch", "loss")
    line = figure.axes[0].lines[0]
    assert np.isnan(line.get_ydata()[1]) and "1 values are not finite: gaps" in words(figure)
    draw(figure)
    draw(figures.curves({f"s{i}": [(0, i), (1, i)] for i in range(50)}, "x", "y"))
    draw(figures.curves({}, "x", "y"))


def test_class_counts_are_the_lengths_of_the_bars() -> None:
    axes = figures.class_counts({"train": {"a": 5, "b": 7}, "val": {"b": 2}}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [5, 7, 0, 2]
    many = figures.class_counts({"train": {f"c{i}": i for i in range(41)}})
    assert not many.axes[0].patches and list(many.axes[0].lines[0].get_ydata()) == list(range(40, -1, -1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.image_grid(torch.rand(2, 2, 4, 4)), "1, 3 or 4 channels"),
        (lambda: figures.image_grid(torch.rand(3, 4, 4)), "shape"),
        (lambda: figures.image_grid(torch.rand(2, 1, 4, 4), ["a"]), "titles: 1 of them for 2 images"),
        (lambda: figures.image_grid(torch.rand(2, 1, 4, 4), columns=0), "columns must be 1 or more"),
        (lambda: figures.filters(torch.rand(3, 3)), "weight of a convolution"),
        (lambda: figures.feature_maps(torch.rand(3, 3)), "feature maps have shape"),
        (lambda: figures.feature_maps(torch.rand(3, 3, 3), limit=0), "limit must be 1"),
        (lambda: figures.mistakes(torch.rand(2, 1, 4, 4), ["a"], ["b", "c"], [1, 2]), "true: 1 of them for 2"),
        (lambda: figures.layer_spread([]), "no layer"),
        (lambda: figures.confusion(torch.zeros(2, 3), ["a", "b"]), "a matrix of 2 x 2"),
        (lambda: figures.per_class(torch.zeros(2), torch.zeros(3), ["a", "b"]), "one each"),
        (lambda: figures.precision_recall(torch.rand(4, 3), torch.zeros(4), ["a"]), "do not match"),
        (lambda: figures.reliability(torch.rand(4, 3), torch.full((4,), 3)), "labels must be 0 to 2"),
        (lambda: figures.reliability(torch.rand(4, 3), torch.zeros(4), 0), "bins must be 1"),
        (lambda: figures.class_counts({}), "no class"),
    ],
)
def test_bad_input_is_refused_in_words(call, message) -> None:
    with pytest.raises(UserError, match=message):
        call()


@given(text=st.text(alphabet=st.characters(exclude_characters="$\n"), max_size=60), length=st.integers(4, 40))
def test_a_shortened_name_keeps_both_ends(text, length) -> None:
    short = shorten(text, length)
    assert len(short) <= length and (short == text or (short[0] == text[0] and short[-1] == text[-1] and "…" in short))


def test_no_state_of_pyplot() -> None:
    program = "import sys, torch; from project.extras.look import figures; figures.pixels(figures.image_grid(torch.rand(1, 1, 2, 2)))"
    program += "; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
