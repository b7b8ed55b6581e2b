import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from project.data.augment import (
    Augment,
    Augmentation,
    FlipRotate,
    HorizontalFlip,
    RandomCrop,
    Rotate90,
    VerticalFlip,
)
from project.data.augment_color import Blur, Brightness, Contrast, GaussianNoise, Saturation
from project.data.augment_warp import RandomResize, Rotate
from project.data.draws import Draws

EVERY = [
    HorizontalFlip(),
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
]
named = pytest.mark.parametrize("operation", EVERY, ids=lambda operation: type(operation).__name__)


def pictures(count: int = 16, channels: int = 3, height: int = 13, width: int = 13) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def draws(count: int = 16) -> Draws:
    return Draws(1, 2, torch.arange(count))


@pytest.mark.parametrize("operation", [*EVERY, EVERY], ids=lambda item: getattr(type(item), "__name__", ""))
@pytest.mark.parametrize("side", [13, 32])
def test_an_image_becomes_the_same_in_any_batch_to_the_last_bit(operation, side):
    augment = Augment(operation if isinstance(operation, list) else [operation], seed=5)
    images, index = pictures(height=side, width=side), torch.randint(0, 10**6, (16,))
    together, order = augment(images, 3, index), torch.randperm(16)
    assert torch.equal(augment(images[order], 3, index[order]), together[order])
    assert torch.equal(torch.cat([augment(images[n, None], 3, index[n, None]) for n in range(16)]), together)
    assert torch.equal(torch.cat([augment(images[n : n + 5], 3, index[n : n + 5]) for n in (0, 5, 10, 15)]), together)


def test_number_of_threads_and_chunks_do_not_matter(monkeypatch):
    augment, images, index = Augment(EVERY, seed=0), pictures(24, height=64, width=64), torch.arange(24)
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
    assert Augment([], 0)(images, 0, torch.arange(16)) is images


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
    ("build", "message"),
    [
        (lambda: RandomCrop(-1), "RandomCrop: padding must be 0 or more, not -1"),
        (lambda: RandomCrop(1, "edge"), "RandomCrop: mode must be"),
        (
            lambda: RandomCrop(13)(pictures(), draws()),
            "RandomCrop: padding 13 must be smaller than the images, 13 x 13",
        ),
        (lambda: HorizontalFlip(1.1), r"HorizontalFlip: p must be in \[0, 1\], not 1.1"),
        (lambda: VerticalFlip(float("nan")), "VerticalFlip: p must be"),
        (lambda: Rotate90(-0.1), "Rotate90: p must be"),
        (lambda: Rotate90()(pictures(width=12), draws()), "Rotate90: needs square images, not 13 x 12"),
        (lambda: FlipRotate()(pictures(width=12), draws()), "FlipRotate: needs square images, not 13 x 12"),
        (lambda: Augment([], 0)(pictures()[0], 0, torch.arange(3)), "Augment: images must be"),
        (lambda: Augment([], 0)(pictures(), 0, torch.arange(3)), "Augment: 16 images need as many indices, not 3"),
    ],
)
def test_bad_arguments_say_what_is_wrong_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@named
def test_a_gpu_agrees_with_the_cpu_and_with_itself(operation):
    augment, images, index = Augment([operation], 0), pictures(), torch.arange(16)
    there, here = augment(images.cuda(), 0, index), augment(images, 0, index)
    assert torch.equal(torch.cat([augment(images[n, None].cuda(), 0, index[n, None]) for n in range(16)]), there)
    tolerance = 1 if here.dtype == torch.uint8 else 1e-5  # grid_sample rounds otherwise there
    assert (there.cpu().float() - here.float()).abs().max() <= tolerance
