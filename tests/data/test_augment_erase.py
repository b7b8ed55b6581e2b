"""Random erasing, judged by what is left of the images: where, how large, which shape, which grey, how often."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from project.data import RandomErasing
from project.data.augment import Augment
from project.data.draws import Draws


def pictures(
    count: int = 16, channels: int = 3, height: int = 32, width: int = 32, floating: bool = False
) -> torch.Tensor:
    """No pixel has the same value in two of its channels and no two neighbours are alike, so that nothing looks erased."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return images.float() / 255 if floating else images


def draws(count: int, epoch: int = 2) -> Draws:
    return Draws(1, epoch, torch.arange(count))


def erased_by(
    operation: RandomErasing, shape: tuple[int, ...], epoch: int = 2
) -> list[tuple[int, int, int, int, float] | None]:
    """top, left, height, width and value of each rectangle, None where there is none: from images of NaN, whatever is not NaN."""
    images = torch.full(shape, math.nan)
    found = []
    for image in operation(images, draws(len(images), epoch)):
        hidden = ~image.isnan()
        assert (hidden == hidden[0]).all()  # the same place in every channel
        values = image[hidden].unique()
        rows, columns = hidden[0].any(1).nonzero().flatten(), hidden[0].any(0).nonzero().flatten()
        if not len(rows):
            found.append(None)
            continue
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
        assert (
            hidden[0, top : top + height, left : left + width].all() and int(hidden[0].sum()) == height * width
        )  # a rectangle
        assert len(values) == 1  # one grey
        found.append((top, left, height, width, float(values)))
    return found


@pytest.mark.parametrize("p", [0.0, 0.25, 0.7, 1.0])
def test_as_often_as_asked(p) -> None:
    count = 2000
    hidden = sum(part is not None for part in erased_by(RandomErasing(p), (count, 1, 12, 12)))
    assert abs(hidden - p * count) <= 4 * math.sqrt(p * (1 - p) * count)  # four standard deviations


@settings(max_examples=25, deadline=None)
@given(
    st.integers(8, 64), st.integers(8, 64),
    st.floats(0.02, 0.5), st.floats(1, 1.9), st.floats(0.3, 1.5), st.floats(1, 3),
)  # fmt: skip
def test_area_and_shape_are_within_their_bounds(rows, columns, smallest, wider, lowest, taller) -> None:
    """Sides of real numbers would be within the bounds exactly; whole pixels are half a pixel off at most, cut at the border."""
    area, ratio = (smallest, smallest * wider), (lowest, lowest * taller)
    parts = erased_by(RandomErasing(1.0, area, ratio), (60, 1, rows, columns))
    for top, left, height, width, value in parts:
        assert top >= 0 and left >= 0 and top + height <= rows and left + width <= columns and 0 <= value <= 1
        # Some pair of real sides, each within half a pixel of ours (or beyond the image where ours ends), has a share of the area
        # and a height over width within the bounds.
        tall = (height - 0.501 if height > 1 else 0.0, height + 0.501 if height < rows else math.inf)
        wide = (width - 0.501 if width > 1 else 0.0, width + 0.501 if width < columns else math.inf)
        assert tall[0] * wide[0] <= area[1] * rows * columns and tall[1] * wide[1] >= area[0] * rows * columns
        assert tall[0] <= ratio[1] * wide[1] and tall[1] >= ratio[0] * wide[0]


def test_the_whole_range_of_areas_shapes_places_and_greys() -> None:
    parts = erased_by(RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3)), (3000, 1, 100, 100))
    areas = torch.tensor([height * width / 10_000 for _, _, height, width, _ in parts])
    shapes = torch.tensor([math.log(height / width) for _, _, height, width, _ in parts])
    greys = torch.tensor([value * 255 for *_, value in parts])
    # uniform on their ranges: mean in the middle, deviation of the range over root 12 (four standard errors)
    for values, low, high in ((areas, 0.02, 0.33), (shapes, math.log(0.3), math.log(3.3)), (greys, 0, 255)):
        deviation = (high - low) / math.sqrt(12)
        assert abs(values.mean() - (low + high) / 2) < 4 * deviation / math.sqrt(3000)
        assert values.std() == pytest.approx(deviation, rel=0.05)
        assert values.min() < low + 0.03 * (high - low) and values.max() > high - 0.03 * (high - low)
    # every place at which the rectangle fits is as likely: mean of top / free rows is a half
    free = torch.tensor(
        [
            [top / (100 - height), left / (100 - width)]
            for top, left, height, width, _ in parts
            if max(height, width) < 90
        ]
    )
    assert (free.mean(0) - 0.5).abs().max() < 0.03 and free.min() == 0 and free.max() == 1
    assert torch.equal(greys, greys.round())  # one of the 256 greys that a uint8 image has


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("floating", [False, True])
def test_the_rest_of_the_image_is_as_it_was(channels, floating) -> None:
    operation, images = RandomErasing(0.6), pictures(40, channels, 20, 27, floating)
    before = images.clone()
    result = operation(images, draws(40))
    assert torch.equal(images, before) and result.shape == images.shape and result.dtype == images.dtype
    for image, after, part in zip(images, result, erased_by(operation, (40, channels, 20, 27)), strict=True):
        expected = image.clone()
        if part is not None:
            top, left, height, width, value = part
            expected[:, top : top + height, left : left + width] = value if floating else round(value * 255)
        assert torch.equal(after, expected)


@pytest.mark.parametrize("side", [8, 13, 32])
@pytest.mark.parametrize("floating", [False, True])
def test_an_image_becomes_the_same_in_any_batch(side, floating) -> None:
    augment = Augment([RandomErasing(0.8)], seed=5)
    images, index = pictures(height=side, width=side, floating=floating), torch.randint(0, 10**6, (16,))
    together, order = augment(images, 3, index), torch.randperm(16)
    assert torch.equal(augment(images[order], 3, index[order]), together[order])
    assert torch.equal(torch.cat([augment(images[n, None], 3, index[n, None]) for n in range(16)]), together)
    assert torch.equal(torch.cat([augment(images[n : n + 5], 3, index[n : n + 5]) for n in (0, 5, 10, 15)]), together)


def test_new_epochs_and_seeds_hide_other_parts() -> None:
    images, index = pictures(), torch.arange(16)
    first = Augment([RandomErasing(1.0)], 0)(images, 0, index)
    assert not torch.equal(Augment([RandomErasing(1.0)], 0)(images, 1, index), first)
    assert not torch.equal(Augment([RandomErasing(1.0)], 1)(images, 0, index), first)
    assert len({tuple(image.flatten().tolist()) for image in first - images}) == 16  # each image another


def test_an_empty_batch_stays_empty() -> None:
    assert len(Augment([RandomErasing()], 0)(pictures(0), 0, torch.arange(0))) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.1}, r"RandomErasing: p must be in \[0, 1\], not 1.1"),
        ({"p": math.nan}, "RandomErasing: p must be"),
        ({"area": (0.0, 0.3)}, r"RandomErasing: area must be two shares, .*not \[0.0, 0.3\]"),
        ({"area": (0.4, 0.3)}, "RandomErasing: area must be"),
        ({"area": (0.2, 1.0)}, "RandomErasing: area must be"),
        ({"area": (0.2, math.nan)}, "RandomErasing: area must be"),
        ({"ratio": (0.0, 1.0)}, "RandomErasing: ratio must be two positive numbers"),
        ({"ratio": (2.0, 1.0)}, "RandomErasing: ratio must be"),
        ({"ratio": (1.0, math.inf)}, "RandomErasing: ratio must be"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        RandomErasing(**arguments)
    assert "\n" not in str(caught.value)


def test_from_the_command_line(cli, folder, tiny_net) -> None:
    erase = '[{"class_path": "project.data.RandomErasing", "init_args": {"p": 0.5, "area": [0.1, 0.2]}}]'
    result = cli("fit", "--data.root", folder, *tiny_net, "--trainer.max_epochs", "1", "--data.augment", erase)
    assert result.code == 0 and result.err == "", result.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("floating", [False, True])
def test_a_gpu_agrees_with_the_cpu(floating) -> None:
    augment, images, index = Augment([RandomErasing(0.8)], 0), pictures(floating=floating), torch.arange(16)
    assert torch.equal(augment(images.cuda(), 0, index).cpu(), augment(images, 0, index))
