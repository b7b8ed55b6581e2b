import math

import pytest
import torch
from torchvision.transforms.v2 import functional as vision

from project.data.augment import Augment
from project.data.augment_color import SIGMAS, Blur, Brightness, Contrast, GaussianNoise, Saturation
from project.data.draws import Draws


def pictures(count: int = 12, channels: int = 3, height: int = 15, width: int = 18) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def draws(count: int = 12) -> Draws:
    return Draws(1, 2, torch.arange(count))


def to_float(images: torch.Tensor) -> torch.Tensor:
    return images.float() * (1 / 255)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("operation", "oracle"),
    [
        (Brightness(0.6), vision.adjust_brightness),
        (Contrast(0.6), vision.adjust_contrast),
        (Saturation(0.6), vision.adjust_saturation),
    ],
)
def test_colour_equals_torchvision_image_by_image(operation, oracle, channels):
    if channels == 1 and isinstance(operation, Saturation):
        channels = 3  # grey images are an error for it, tested elsewhere
    images, factors = pictures(channels=channels), draws().uniform(0.4, 1.6)
    result = operation(images, draws())
    for n in range(12):
        colour = images[n, :3].double() / 255
        assert torch.allclose(result[n, :3].double(), oracle(colour, factors[n].item()), atol=1e-6)
        assert torch.equal(result[n, 3:], to_float(images[n, 3:]))  # alpha


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_blur_equals_torchvision_image_by_image(channels, kernel_size):
    images, drawn = pictures(channels=channels), draws()
    blurred, steps = drawn.bernoulli(0.6), drawn.integers(SIGMAS)
    result = Blur(kernel_size, (0.3, 3.0), p=0.6)(images, draws())
    assert 0 < blurred.sum() < 12
    for n in range(12):
        sigma = 0.3 + 2.7 * steps[n].item() / (SIGMAS - 1)
        colour = images[n, :3].double() / 255
        oracle = vision.gaussian_blur(colour, [kernel_size, kernel_size], [sigma, sigma]) if blurred[n] else colour
        assert torch.allclose(result[n, :3].double(), oracle, atol=1e-6)
        assert torch.equal(result[n, 3:], to_float(images[n, 3:]))


def test_noise_has_its_spread_in_its_share_of_the_images_and_no_pattern():
    grey = torch.full((200, 4, 32, 32), 0.5)
    noise = GaussianNoise(0.05, p=0.4)(grey, draws(200)) - 0.5
    assert (noise[:, 3] == 0).all()
    noisy = noise[noise.flatten(1).any(1), :3].double()
    assert 55 < len(noisy) < 105
    count = noisy.numel()
    assert abs(noisy.mean().item()) < 4 * 0.05 / math.sqrt(count)
    assert noisy.std().item() == pytest.approx(0.05, rel=4 / math.sqrt(2 * count) + 1e-4)
    between = torch.corrcoef(noisy.flatten(1)) - torch.eye(len(noisy))
    assert between.abs().max() < 5 / math.sqrt(3 * 32 * 32)


@pytest.mark.parametrize(
    "operation", [Brightness(0), Contrast(0), Saturation(0), Blur(3, p=0), GaussianNoise(0.1, p=0)]
)
def test_nothing_drawn_nothing_changed(operation):
    images = pictures()
    assert torch.allclose(operation(images, draws()), to_float(images), atol=1e-6)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Blur(3, p=-1), "Blur: p must be"),
        (Blur(31), "Blur: cannot mirror 15 pixels"),
        (GaussianNoise(0.1, p=7), "GaussianNoise: p must be"),
    ],
)
def test_bad_arguments_say_what_is_wrong(operation, message):
    with pytest.raises(ValueError, match=message):
        Augment([operation], 0)(pictures(), 0, torch.arange(12))


def test_grey_images_have_no_saturation():
    with pytest.raises(ValueError, match="grey images have no saturation"):
        Saturation(0.2)(pictures(channels=1), draws())
