import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from project.data.augment import Augment
from project.data.augment_warp import ANGLES, RandomResize, Rotate
from project.data.draws import Draws


def pictures(count: int = 12, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def draws(count: int = 12) -> Draws:
    return Draws(1, 2, torch.arange(count))


@pytest.mark.parametrize("size", [(16, 16), (12, 19)])
@pytest.mark.parametrize("degrees", [10, 180])
def test_rotate_equals_torchvision_image_by_image(size, degrees):
    images, drawn = pictures(12, *size), draws()
    turned, steps = drawn.bernoulli(0.7), drawn.integers(ANGLES)
    result = Rotate(degrees, p=0.7, mode="constant")(images, draws())
    floats = Rotate(degrees, p=0.7, mode="constant")(images.float() / 255, draws())
    assert 0 < turned.sum() < 12
    for n in range(12):
        angle = degrees * (2 * steps[n].item() / (ANGLES - 1) - 1) if turned[n] else 0.0
        oracle = vision.rotate(images[n].double() / 255, angle, InterpolationMode.BILINEAR)
        assert (floats[n] - oracle).abs().max() < 1e-4
        assert (result[n] - oracle * 255).abs().max() < 0.52  # a half by rounding
        assert turned[n] or torch.equal(result[n], images[n])


def test_rotate_reflects_what_comes_into_view():
    images = torch.full((12, 3, 16, 16), 200, dtype=torch.uint8)
    assert (Rotate(45)(images, draws()) == 200).all()
    assert (Rotate(45, mode="constant")(images, draws())[:, :, 0, 0] == 0).any()


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("size", [(16, 16), (12, 19)])
def test_random_resize_equals_an_affine_grid_image_by_image(mode, size):
    images, drawn = pictures(12, *size), draws()
    scale, x, y = drawn.uniform(0.5, 2), drawn.uniform(-1, 1), drawn.uniform(-1, 1)
    result = RandomResize((0.5, 2), mode)(images, draws())
    for n in range(12):
        side = 1 / scale[n].item()
        room = abs(1 - side)
        affine = torch.tensor([[[side, 0, room * x[n].item()], [0, side, room * y[n].item()]]], dtype=torch.float64)
        grid = F.affine_grid(affine, [1, 3, *size], align_corners=False)
        padding = {"reflect": "reflection", "constant": "zeros"}[mode]
        oracle = F.grid_sample(images[n, None].double(), grid, padding_mode=padding, align_corners=False)[0]
        assert (result[n] - oracle).abs().max() < 0.51


def test_random_resize_in_shows_a_window_and_out_shows_everything():
    ramp = torch.arange(64.0).expand(200, 1, 64, 64) / 63  # the value is the column
    near = RandomResize((2, 2))(ramp, draws(200))
    spans = (near.amax((1, 2, 3)) - near.amin((1, 2, 3))) * 63
    assert torch.allclose(spans, torch.tensor(31.5), atol=0.51)  # half of the image
    assert near.amin() < 0.02 and near.amax() > 0.98  # and every part of it in some draw
    far = RandomResize((0.5, 0.5), "constant")(torch.ones(200, 1, 64, 64), draws(200))
    assert torch.allclose(far.sum((1, 2, 3)), torch.tensor(32.0**2), rtol=0.02)  # never cut off
    assert far[:, 0, 1].amax() == far[:, 0, -2].amax() == 1  # and it reaches both ends in some draw


def test_scale_one_is_the_image_itself():
    images = pictures()
    assert torch.equal(RandomResize((1, 1))(images, draws()), images)


@pytest.mark.parametrize(
    ("operation", "message"),
    [(RandomResize((2, 1)), r"RandomResize: a range must be \[low, high\]"), (Rotate(10, p=2), "Rotate: p must be")],
)
def test_bad_arguments_say_what_is_wrong(operation, message):
    with pytest.raises(ValueError, match=message):
        Augment([operation], 0)(pictures(), 0, torch.arange(12))
