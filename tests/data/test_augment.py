import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentError, ArgumentParser

from project.data.augment import (
    Augment,
    Augmentation,
    FlipRotate,
    HorizontalFlip,
    RandomCrop,
    RandomErasing,
    Rotate90,
    VerticalFlip,
)
from project.data.augment_color import Blur, Brightness, Contrast, GaussianNoise, Saturation
from project.data.augment_warp import RandomResize, Rotate
from project.data.draws import Draws
from project.data.memory import INDEX_LIMIT

EVERY = [
    HorizontalFlip(),
    HorizontalFlip(alternate=True),
    VerticalFlip(),
    Rotate90(),
    FlipRotate(),
    RandomCrop(3),
    RandomCrop(3, "constant"),
    RandomResize((0.6, 1.6)),
    Rotate(20, p=0.7),
    Brightness(0.4),
    Contrast(0.4),
    Saturation(0.4),
    Blur(5),
    GaussianNoise(0.1),
    RandomErasing(0.8),
]
named = pytest.mark.parametrize("operation", EVERY, ids=lambda operation: type(operation).__name__)


def pictures(count: int = 16, channels: int = 3, height: int = 13, width: int = 13) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def draws(count: int = 16, epoch: int = 2) -> Draws:
    return Draws(1, epoch, torch.arange(count))


@pytest.mark.parametrize("operation", [*EVERY, EVERY], ids=lambda item: getattr(type(item), "__name__", ""))
@pytest.mark.parametrize("side", [13, 24])
def test_an_image_becomes_the_same_in_any_batch_to_the_last_bit(operation, side):
    augment = Augment(operation if isinstance(operation, list) else [operation], seed=5)
    images, index = pictures(height=side, width=side), torch.randint(0, 10**6, (16,))
    together, order = augment(images, 3, index), torch.randperm(16)
    assert torch.equal(augment(images[order], 3, index[order]), together[order])
    assert torch.equal(torch.cat([augment(images[n, None], 3, index[n, None]) for n in range(16)]), together)
    assert torch.equal(torch.cat([augment(images[n : n + 5], 3, index[n : n + 5]) for n in (0, 5, 10, 15)]), together)


def test_number_of_threads_and_chunks_do_not_matter(monkeypatch):
    augment, images, index = Augment(EVERY, seed=0), pictures(8, height=64, width=64), torch.arange(8)
    expected, threads = augment(images, 0, index), torch.get_num_threads()
    monkeypatch.setattr("project.data.augment.CHUNK", 40_000)
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(augment(images, 0, index), expected)
    finally:
        torch.set_num_threads(threads)


@named
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("floating", [False, True])
def test_shape_range_and_input_are_kept(operation, channels, floating):
    if isinstance(operation, Saturation) and channels == 1:
        channels = 3  # grey images are an error for it, tested elsewhere
    images = pictures(channels=channels)
    images = images.float() / 255 if floating else images
    before = images.clone()
    result = operation(images, draws())
    assert torch.equal(images, before)
    assert result.shape == images.shape
    geometric = not isinstance(operation, Brightness | Contrast | Saturation | Blur | GaussianNoise)
    assert result.dtype == (images.dtype if geometric else torch.float32)
    if result.dtype == torch.float32:
        assert result.min() >= 0 and result.max() <= 1
    assert not torch.equal(result.float(), before.float() / (255 if result.dtype != before.dtype else 1))


@named
def test_new_epoch_or_seed_gives_another_result(operation):
    images, index = pictures(), torch.arange(16)
    first = Augment([operation], 0)(images, 0, index)
    assert not torch.equal(Augment([operation], 0)(images, 1, index), first)
    assert not torch.equal(Augment([operation], 1)(images, 0, index), first)


def test_appending_one_leaves_the_draws_of_the_earlier():
    images, index = pictures(), torch.arange(16)
    short, long = Augment([RandomCrop(2)], 0), Augment([RandomCrop(2), HorizontalFlip()], 0)
    flipped = (long(images, 0, index) != short(images, 0, index)).flatten(1).any(1)
    expected = torch.where(flipped[:, None, None, None], short(images, 0, index).flip(-1), short(images, 0, index))
    assert 0 < flipped.sum() < 16
    assert torch.equal(long(images, 0, index), expected)


def test_an_empty_list_returns_the_images():
    images = pictures()
    assert torch.equal(Augment([], 0)(images, 0, torch.arange(16)), images)


@named
def test_an_empty_batch_stays_empty(operation):
    assert len(Augment([operation], 0)(pictures(0), 0, torch.arange(0))) == 0


@pytest.mark.parametrize(("operation", "dim"), [(HorizontalFlip(), -1), (VerticalFlip(), -2)])
def test_flips_mirror_the_drawn_half(operation, dim):
    images, mask = pictures(400, height=5, width=7), draws(400).bernoulli(0.5)
    assert 140 < mask.sum() < 260
    for image, flipped, result in zip(images, mask, operation(images, draws(400)), strict=True):
        assert torch.equal(result, image.flip(dim) if flipped else image)


def test_rotate90_turns_like_numpy_each_turn_as_often():
    images = pictures(800, height=5, width=5)
    result, counts = Rotate90()(images, draws(800)), [0] * 4
    for before, after in zip(images.numpy(), result.numpy(), strict=True):
        matches = [np.array_equal(np.rot90(before, turns, (1, 2)), after) for turns in range(4)]
        assert sum(matches) == 1
        counts[matches.index(True)] += 1
    assert min(counts) > 150
    assert torch.equal(Rotate90(p=0)(images, draws(800)), images)


def test_fliprotate_gives_the_eight_symmetries_each_as_often():
    images = pictures(1600, height=5, width=5)
    result, counts = FlipRotate()(images, draws(1600)), [0] * 8
    for before, after in zip(images.numpy(), result.numpy(), strict=True):
        all_eight = [np.rot90(image, turns, (1, 2)) for image in (before, before[:, :, ::-1]) for turns in range(4)]
        matches = [np.array_equal(one, after) for one in all_eight]
        assert sum(matches) == 1
        counts[matches.index(True)] += 1
    assert min(counts) > 150


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_random_crop_is_a_window_of_the_padded_image(mode, padding):
    images = pictures(300, height=7, width=9)
    seen = set()
    for before, after in zip(images.numpy(), RandomCrop(padding, mode)(images, draws(300)).numpy(), strict=True):
        padded = np.pad(before, [(0, 0), (padding, padding), (padding, padding)], mode=mode)
        places = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
        hits = [(y, x) for y, x in places if np.array_equal(padded[:, y : y + 7, x : x + 9], after)]
        assert len(hits) == 1
        seen.update(hits)
    assert len(seen) > 0.9 * len(places)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (RandomCrop(13), "RandomCrop: cannot mirror 13 pixels"),
        (RandomCrop(-1), "RandomCrop: cannot mirror -1 pixels"),
        (HorizontalFlip(1.1), r"HorizontalFlip: p must be in \[0, 1\], not 1.1"),
        (VerticalFlip(float("nan")), "VerticalFlip: p must be"),
        (Rotate90(-0.1), "Rotate90: p must be"),
        (RandomErasing(p=1.1), "RandomErasing: p must be"),
    ],
)
def test_bad_arguments_say_what_is_wrong_in_one_line(operation, message):
    with pytest.raises(ValueError, match=message) as error:
        Augment([operation], 0)(pictures(), 0, torch.arange(16))
    assert "\n" not in str(error.value)


def test_each_is_one_line_of_yaml():
    parser = ArgumentParser()
    parser.add_argument("--augment", type=list[Augmentation])
    lines = [
        "{class_path: project.data.augment.FlipRotate}",
        "{class_path: project.data.augment.RandomCrop, init_args: {padding: 4, mode: constant}}",
        "{class_path: project.data.augment_warp.RandomResize, init_args: {scale: [0.8, 1.25]}}",
        "{class_path: project.data.augment_color.Blur, init_args: {kernel_size: 3, sigma: [0.1, 1.0]}}",
    ]
    built = parser.instantiate(parser.parse_args([f"--augment=[{', '.join(lines)}]"])).augment
    assert [type(one) for one in built] == [FlipRotate, RandomCrop, RandomResize, Blur]
    assert built[1].padding == 4 and tuple(built[2].scale) == (0.8, 1.25)


@pytest.mark.parametrize(
    "arguments",
    [
        "augment.RandomErasing, init_args: {area: [0.2, 1.1]}",
        "augment.RandomErasing, init_args: {ratio: [0, 1]}",
        "augment_warp.RandomResize, init_args: {scale: [0, 1]}",
        "augment_color.Contrast, init_args: {amount: 1.5}",
        "augment_color.Brightness, init_args: {amount: -0.1}",
        "augment_color.Blur, init_args: {kernel_size: 3, sigma: [0, 1]}",
        "augment_color.Blur, init_args: {kernel_size: 0}",
    ],
)
def test_ranges_are_those_of_the_types(arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--augment", type=list[Augmentation])
    with pytest.raises(ArgumentError):
        parser.parse_args([f"--augment=[{{class_path: project.data.{arguments}}}]"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@named
def test_a_gpu_agrees_with_the_cpu_and_with_itself(operation):
    augment, images, index = Augment([operation], 0), pictures(), torch.arange(16)
    there, here = augment(images.cuda(), 0, index), augment(images, 0, index)
    assert torch.equal(torch.cat([augment(images[n, None].cuda(), 0, index[n, None]) for n in range(16)]), there)
    tolerance = 1 if here.dtype == torch.uint8 else 1e-5  # grid_sample rounds otherwise there
    assert (there.cpu().float() - here.float()).abs().max() <= tolerance


# Erasing, judged by what is left of the images: where, how large, which shape, which grey, how often.


def busy(count: int = 16, channels: int = 3, height: int = 32, width: int = 32, floating: bool = False) -> torch.Tensor:
    """No two channels or neighbours of a pixel are alike, so that nothing looks erased."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return images.float() / 255 if floating else images


def erased_by(
    operation: RandomErasing, shape: tuple[int, ...], epoch: int = 2
) -> list[tuple[int, int, int, int, float] | None]:
    """top, left, height, width and value of each rectangle, or None: in images of NaN, whatever is not NaN."""
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
    """Real sides would be within the bounds exactly; whole pixels are off by half at most, cut at the border."""
    area, ratio = (smallest, smallest * wider), (lowest, lowest * taller)
    parts = erased_by(RandomErasing(1.0, area, ratio), (60, 1, rows, columns))
    for top, left, height, width, value in parts:
        assert top >= 0 and left >= 0 and top + height <= rows and left + width <= columns and 0 <= value <= 1
        # Some pair of real sides, each within half a pixel of ours (or beyond the image), has a share of the area
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
    operation, images = RandomErasing(0.6), busy(40, channels, 20, 27, floating)
    before = images.clone()
    result = operation(images, draws(40))
    assert torch.equal(images, before) and result.shape == images.shape and result.dtype == images.dtype
    for image, after, part in zip(images, result, erased_by(operation, (40, channels, 20, 27)), strict=True):
        expected = image.clone()
        if part is not None:
            top, left, height, width, value = part
            expected[:, top : top + height, left : left + width] = value if floating else round(value * 255)
        assert torch.equal(after, expected)


@pytest.mark.parametrize("p", [0.5, 0.2, 1.0])
def test_the_alternating_flip_shows_both_sides_in_turn(p):
    """By hand: the first epoch is drawn, each later one is the other side of the one before."""
    images, index, augment = pictures(300), torch.arange(300) * 7, [HorizontalFlip(p, alternate=True)]
    shown = [Augment(augment, 4)(images, epoch, index) for epoch in range(6)]
    for before, after in pairwise(shown):
        assert torch.equal(before.flip(-1), after)
    share = (shown[0] != images).flatten(1).any(1).float().mean()
    assert abs(share - p) < 0.1
    # The second and third time that an image comes in an epoch: the sides in turn, from that of the epoch.
    for again in (1, 2):
        assert torch.equal(Augment(augment, 4)(images, 2, index + again * INDEX_LIMIT), shown[2 + again])
    if p < 1:
        assert not torch.equal(Augment(augment, 5)(images, 0, index), shown[0])
